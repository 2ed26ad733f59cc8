"""Identities of any values, and the watch that keeps run-time state out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from ....streaming_core.identity import Plain, describe
from ....streaming_core.identity.slots import Owners
from .describer import STATE, HostDescriber
from .objects import RULES


def identity_of(value: object) -> Plain:
    """Describe anything that decides a result: models, VAEs, conditionings, samplers, tensors, settings."""
    return describe(value, HostDescriber(RULES))


@contextmanager
def watch(*values: object) -> Iterator[None]:
    """Keep around each sampling: what changes in `values` meanwhile is run-time state, and counts as it was before.

    Only around sampling: a setting that is changed within would count as state, too. Take identities before the first.
    """

    def look() -> Owners:
        describer = HostDescriber(RULES, weights=False)
        describer.value(list(values))
        return describer.owners

    with STATE.watch(look):
        yield


def identities(**values: Any) -> dict[str, Plain]:
    """Several values by name, at once: long parts that they share stand once."""
    plain = describe(values, HostDescriber(RULES))
    return plain if isinstance(plain, dict) else {}


def fields_identity(sampler: Any, *left_out: str) -> dict[str, Plain]:
    """All fields of a dataclass but private ones and those `left_out`: a field that is added later counts, too."""
    names = [each.name for each in fields(sampler) if each.name not in left_out and not each.name.startswith("_")]
    return identities(**{name: getattr(sampler, name) for name in names})
