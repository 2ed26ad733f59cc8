"""Recognizing weight files by their keys, and loading them strictly.

Rules are data: an `Architecture` says which key prefixes must be there, in what order look-alikes are asked, and which
keys of the file are known not to be used, each with the reason. Hyperparameters come from shapes (`detect.py` of each
architecture), so the official file and a tiny test file take the same path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from ..errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]
Value = TypeVar("Value")


class WrongCheckpointError(CheckpointError):
    """The file is not of the architecture that was asked for."""


class IncompleteCheckpointError(CheckpointError):
    """The file is of the architecture, but keys are missing, unknown or of another shape."""


@dataclass(frozen=True)
class KnownUnused:
    """Keys a file may hold that nothing reads. `prefix` is matched at the start of the key."""

    prefix: str
    reason: str


@dataclass(frozen=True)
class Architecture:
    """How one kind of weight file is told from others.

    `required`: prefixes of which each must start at least one key, with the words to use when it does not.
    `looks_like`: other kinds to name in the refusal, tried in order; each is (prefixes, description).
    """

    name: str
    required: Mapping[str, str]
    looks_like: Sequence[tuple[Sequence[str], str]] = ()
    known_unused: Sequence[KnownUnused] = ()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The required prefixes that no key starts with."""
        keys = list(keys)
        return [prefix for prefix in self.required if not any(key.startswith(prefix) for key in keys)]

    def check(self, keys: Iterable[str], source: str) -> None:
        """Raise `WrongCheckpointError` unless `keys` are of this architecture; `source` names the file."""
        keys = list(keys)
        if self.missing(keys):
            raise self.refusal(keys, source)

    def refusal(self, keys: Iterable[str], source: str) -> WrongCheckpointError:
        """What to say of the file `source` with `keys`, which is not of this architecture."""
        keys = list(keys)
        absent = ", ".join(f"{prefix}* ({self.required[prefix]})" for prefix in self.missing(keys) or self.required)
        article = "an" if self.name.startswith(("A", "E", "I", "O", "MS-", "LVDM")) else "a"
        message = f"{source} is not {article} {self.name} checkpoint: no {absent} among its {len(keys)} keys"
        for prefixes, description in self.looks_like:
            if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes):
                return WrongCheckpointError(f"{message}; this looks like {description}")
        return WrongCheckpointError(message)

    def unused_reason(self, key: str) -> str | None:
        """Why nothing reads `key`, or None when it should be read."""
        return next((unused.reason for unused in self.known_unused if key.startswith(unused.prefix)), None)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def take(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The tensors (or shapes) under `prefix`, keyed without it."""
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def compare_keys(expected: Shapes, found: Shapes, what: str) -> None:
    """Raise `IncompleteCheckpointError` unless both hold the same keys with the same shapes."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [key for key in sorted(expected.keys() & found.keys()) if tuple(expected[key]) != tuple(found[key])]
    problems = []
    for word, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            problems.append(f"{len(keys)} {word} (first {', '.join(keys[:3])})")
    if wrong:
        key = wrong[0]
        problems.append(f"{len(wrong)} of another shape (first {key}: {tuple(found[key])}, not {tuple(expected[key])})")
    if problems:
        raise IncompleteCheckpointError(f"{what} does not fit its weights: {'; '.join(problems)}; use a complete file")


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load `tensors` into `module`; every key of both must agree. `what` names the network in the error."""
    compare_keys(shapes_of(module.state_dict()), shapes_of(tensors), what)
    module.load_state_dict(tensors, strict=True)


def dimension(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise CheckpointError(f"cannot read the configuration: key {key} is missing; use a complete file")
    return int(shapes[key][axis])


def count_indices(keys: Iterable[str], pattern: str) -> int:
    """Number of consecutive indices from 0 that `pattern` (with one group) matches at the start of some key."""
    found = {int(match.group(1)) for match in map(re.compile(pattern).match, keys) if match}
    count = 0
    while count in found:
        count += 1
    return count
