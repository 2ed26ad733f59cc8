"""Short texts that tell models, samplers and images apart, for the settings hashes of run folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor, count: int = 16) -> bytes:
    """A few evenly spaced values, so that gigabytes of weights are told apart in milliseconds."""
    flat = tensor.detach().reshape(-1)
    picked = flat[:: max(1, flat.numel() // count)][:count]
    return picked.to("cpu", torch.float32).numpy().tobytes()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Of all values: for images and conditioning, which are small."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    return _digest([repr(tuple(values.shape)).encode(), values.numpy().tobytes()])


def model_fingerprint(patcher) -> str:
    """Of a MODEL's or VAE's weights (sampled) and its weight patches (LoRA and the like, with their strengths)."""
    parts: list[bytes] = []
    for name, parameter in patcher.model.named_parameters():
        parts += [name.encode(), repr(tuple(parameter.shape)).encode(), _sample(parameter)]
    for key in sorted(patcher.patches):
        for patch in patcher.patches[key]:
            parts += [key.encode(), repr(patch[0]).encode()]
            parts += [_sample(tensor) for tensor in _tensors(patch[1:])]
    return _digest(parts)


def _tensors(value) -> Iterable[Tensor]:
    """All tensors inside nested tuples, lists and weight adapters."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "weights"):
        yield from _tensors(value.weights)


def sampler_fingerprint(sampler) -> str:
    """Of a SAMPLER: the function's name and its options."""
    function = getattr(sampler, "sampler_function", sampler)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name} {sorted(getattr(sampler, 'extra_options', {}).items(), key=str)!r}"
