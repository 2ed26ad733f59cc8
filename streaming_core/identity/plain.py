"""Plain values: what a description is made of, and what JSON can hold."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import PurePath, PureWindowsPath
from typing import TypeAlias

Plain: TypeAlias = "None | bool | int | float | str | list[Plain] | dict[str, Plain]"

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def plain_float(number: float) -> Plain:
    """A number that JSON can hold and that equals itself; the rest, and minus zero, as words."""
    if math.isfinite(number) and (number or math.copysign(1, number) > 0):
        return number
    return str(number)


def plain_text(text: str) -> Plain:
    """A text without what changes on its own: memory addresses and random ids go, of an absolute path the name stays.

    Of a path the last part counts, because folders differ between machines.
    """
    deep = len(text) < 4096 and "\n" not in text and len(re.findall(r"[/\\]", text)) > 1
    is_path = deep and (PurePath(text).is_absolute() or _is_windows_path(text))
    if is_path:
        return {"path": re.split(r"[/\\]", text.rstrip("/\\"))[-1]}
    return _UUID.sub("(random id)", _ADDRESS.sub("(address)", text))


def _is_windows_path(text: str) -> bool:
    return re.match(r"[A-Za-z]:[\\/]", text) is not None and PureWindowsPath(text).is_absolute()


def to_json(value: Plain) -> str:
    """One text per value, whatever order it was made in."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def digest(value: Plain) -> str:
    """32 characters that stand for a description."""
    return hashlib.blake2b(to_json(value).encode(), digest_size=16).hexdigest()
