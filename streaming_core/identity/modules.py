"""What of a torch network counts: its weights, its classes and their plain settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

MACHINERY = frozenset(vars(nn.Module()))
"""Attributes that every network has."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, less buffers that are not saved: those are caches."""
    weights: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for name, part in module.named_modules(remove_duplicate=False):
        for buffer, tensor in part._buffers.items():
            if tensor is not None and buffer not in part._non_persistent_buffers_set:
                weights[f"{name}.{buffer}" if name else buffer] = tensor
    return weights


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or a short row of such."""
    if isinstance(value, (list, tuple)):
        return len(value) < 64 and all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def structure_digest(module: nn.Module, ignore: Callable[[object, str], bool]) -> str:
    """The parts of a network: their names, classes and plain public attributes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, part in module.named_modules():
        digest.update(f"{name} {type(part).__name__}".encode())
        if part is module:
            continue
        for attribute, value in sorted(vars(part).items()):
            public = attribute not in MACHINERY and not attribute.startswith("_") and not ignore(part, attribute)
            if public and is_plain(value):
                digest.update(f" {attribute}={value!r}".encode())
    return digest.hexdigest()


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made this module of another."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules
