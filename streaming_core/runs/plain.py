"""Plain values (what JSON can hold) in one canonical form, and the hashes of settings made from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import SettingsError


def plain(value: Any) -> Any:
    """A value as JSON would give it back: texts, numbers, lists and dictionaries; whole floats become integers.

    Raises:
        SettingsError: NaN, infinity, or something that has no plain form (a tensor, a model).
    """
    return json.loads(canonical_json(value))


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces, whole floats as integers, fractions and paths as text.

    Raises:
        SettingsError: NaN, infinity, or something that has no plain form (a tensor, a model).
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SettingsError(f"a setting is {value}, which cannot be stored")
        return int(value) if value.is_integer() else value
    if isinstance(value, (Fraction, Path)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise SettingsError("settings need names that are texts or whole numbers")
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise SettingsError(f"a setting of type {type(value).__name__} cannot be stored; store a digest of it instead")


def settings_hash(settings: Mapping[str, Any], previous: str = "") -> str:
    """The sha256 (hexadecimal) of settings in canonical form.

    Args:
        settings: all that the result depends on: model identity, prompt, seed, sizes, sampler, anchor.
        previous: hash of the chunk before, when this one depends on it; a change there then changes this hash too.
    """
    return _sha256(f"{previous}\n{canonical_json(settings)}")


def identity_key(identity: Mapping[str, Any]) -> str:
    """The key of a run-level description in `RunManifest.identities`: 32 hexadecimal digits of its sha256."""
    return _sha256(canonical_json(identity))[:32]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
