"""Values that hold no others: numbers, texts, arrays, images, classes, states of random generators."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import logging
import random
import re
import threading
import types
import uuid
import weakref
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Final

import numpy
import torch

from .functions import code_digest, qualified_name
from .plain import Plain, digest, plain_float, plain_text

_QUIET = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Event,
    threading.Condition,
    threading.Thread,
    threading.local,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
)
"""Counted by type without a word: they hold nothing that is a setting."""


class NotMine(enum.Enum):
    """What a rule returns for values that it leaves to others."""

    NOT_MINE = "not mine"


NOT_MINE: Final = NotMine.NOT_MINE


def leaf(value: Any) -> Plain | NotMine:
    """Values that hold nothing else."""
    if value is None or type(value) is bool or type(value) is int:
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    for kinds, describe in _LEAVES:
        if isinstance(value, kinds):
            return describe(value)
    if type(value).__module__.split(".")[0] == "PIL" and hasattr(value, "tobytes"):
        return {"image": value.mode, "size": list(value.size), "digest": _bytes(value.tobytes())}
    return NOT_MINE


def _bytes(value: Any) -> Plain:
    raw = bytes(value)
    return raw.hex() if len(raw) <= 32 else digest([len(raw), raw.hex()])


def _number(value: Any) -> Plain:
    """A number of numpy's as Python's."""
    item = value.item()
    return plain_float(item) if isinstance(item, float) else item if isinstance(item, (bool, int)) else str(item)


def _array(value: Any) -> Plain:
    if value.dtype.hasobject:
        return {"array": list(value.shape), "values": [str(item) for item in value.reshape(-1)[:1000]]}
    about: dict[str, Plain] = {"array": [int(side) for side in value.shape], "dtype": str(value.dtype)}
    if value.size <= 16 and value.dtype.kind in "iufb":
        return {**about, "numbers": [_number(number) for number in value.reshape(-1)]}
    return {**about, "digest": _bytes(numpy.ascontiguousarray(value).tobytes())}


def _seeded(value: Any) -> Plain:
    """Where a random generator stands."""
    if isinstance(value, torch.Generator):
        return {"class": "Generator", "state": _bytes(value.get_state().numpy().tobytes())}
    state = value.getstate() if isinstance(value, random.Random) else value.bit_generator.state
    return {"class": type(value).__name__, "state": digest(repr(state))}


_LEAVES: tuple[tuple[Any, Callable[[Any], Plain]], ...] = (
    (str, lambda value: plain_text(str(value))),
    (float, lambda value: plain_float(float(value))),
    (int, int),
    (complex, str),
    ((bytes, bytearray, memoryview), _bytes),
    (numpy.ndarray, _array),
    (numpy.generic, lambda value: _number(value)),
    (uuid.UUID, lambda value: "(random id)"),
    (torch.device, lambda value: "(device)"),
    ((torch.dtype, torch.layout, torch.memory_format), lambda value: str(value).removeprefix("torch.")),
    (torch.Size, list),
    ((torch.Generator, random.Random, numpy.random.Generator), _seeded),
    (PurePath, lambda value: {"path": value.name}),
    ((slice, range, type(Ellipsis), type(NotImplemented)), repr),
    ((decimal.Decimal, fractions.Fraction, datetime.date, datetime.time, datetime.timedelta), str),
    (re.Pattern, lambda value: {"pattern": str(value.pattern), "flags": value.flags}),
    (types.ModuleType, lambda value: {"module": value.__name__.rsplit(".", 1)[-1]}),
    (types.CodeType, lambda value: {"code": code_digest(value)}),
    (type, lambda value: {"type": qualified_name(value)}),
    (types.GenericAlias, str),
    (logging.Logger, lambda value: {"class": "Logger"}),
    (_QUIET, lambda value: {"class": type(value).__name__}),
)


def key_text(key: Any) -> str:
    """A key of a dictionary as text; keys that differ by type alone (1 and "1") are told apart by their order only."""
    if isinstance(key, tuple):
        return " ".join(map(key_text, key))
    plain = leaf(key)
    if isinstance(plain, NotMine):
        return label_of_type(key) if not hasattr(key, "__qualname__") else str(key.__qualname__)
    if isinstance(plain, dict):
        return " ".join(str(part) for part in plain.values())
    return str(plain)


def label_of_type(value: object) -> str:
    """The name of a class, without its module."""
    return type(value).__qualname__
