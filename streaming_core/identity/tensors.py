"""Digests of tensors by value: all values, computed once per tensor and process."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .plain import Plain, plain_float

_PIECE = 1 << 22  # values hashed at a time, so that no second copy of the weights is made
_LONGEST_SHOWN = 16
_CACHED_FROM = 1 << 16  # shorter tensors are hashed faster than looked up
_SAMPLES = 256
_SEEN_WHOLE = 1 << 14
_SAID_FROM_BYTES = 1 << 30  # less takes about a second

log = logging.getLogger(__name__)


def _plain_tensor(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _canonical_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which values are hashed, so that a lossless conversion changes nothing.

    All floats that fit into float32 are hashed as float32, all whole numbers as int64.
    """
    if tensor.dtype == torch.float64:
        single = tensor.to(torch.float32)
        back = single.to(torch.float64)
        return torch.float32 if torch.equal(back.nan_to_num(), tensor.nan_to_num()) else torch.float64
    if tensor.is_floating_point():
        return torch.float32
    if tensor.dtype == torch.bool:
        return torch.bool
    try:
        torch.empty(0, dtype=tensor.dtype).to(torch.int64)
    except (RuntimeError, TypeError):
        return tensor.dtype
    return torch.int64


def _hash_values(digest: Any, tensor: Tensor) -> None:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    dtype = _canonical_dtype(tensor)
    digest.update(f"{dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE].to("cpu").to(dtype).contiguous()
        digest.update(piece.view(torch.uint8).numpy().data)


def inner_parts(tensor: Tensor) -> dict[str, Any] | None:
    """What a tensor that wraps others consists of (quantized weights), or None for a plain one."""
    if _plain_tensor(tensor):
        return None
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names, context = flatten()
        return {"kind": type(tensor).__name__, "context": context, **{name: getattr(tensor, name) for name in names}}
    if hasattr(tensor, "_qdata"):
        settings = {name: getattr(tensor, name, None) for name in ("_layout_type", "_layout_params", "_layout_cls")}
        return {"kind": type(tensor).__name__, "_qdata": tensor._qdata, **settings}
    # Raw bytes together with their type, as packs for GGUF files keep them.
    raw = tensor.as_subclass(Tensor)
    settings = {name: repr(value) for name in ("tensor_type", "tensor_shape") if (value := getattr(tensor, name, None))}
    return {"kind": type(tensor).__name__, "raw": raw, **settings} if settings else None


def _hash_any(digest: Any, value: Any) -> None:
    """Hash tensors and the plain values that belong to quantized ones."""
    if isinstance(value, Tensor):
        parts = inner_parts(value)
        if parts is not None:
            _hash_any(digest, parts)
        elif value.is_meta:
            digest.update(f"no values {tuple(value.shape)}".encode())
        else:
            _hash_values(digest, value.detach() if _plain_tensor(value) else value.detach().as_subclass(Tensor))
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"<{name}>".encode())
            _hash_any(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _hash_any(digest, item)
    elif isinstance(value, type):
        digest.update(value.__name__.encode())
    elif hasattr(value, "__dataclass_fields__"):
        _hash_any(digest, {name: getattr(value, name) for name in value.__dataclass_fields__})
    else:
        digest.update(repr(value).encode())


@torch.inference_mode()
def _full_digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _hash_any(digest, tensor)
    return digest.hexdigest()


@torch.inference_mode()
def _glance(tensor: Tensor) -> str:
    """A quick look that tells a known tensor from one changed in place: some values and the version where there is one.

    Tensors made in inference mode have no version, that is why values are looked at: all of a short tensor, evenly
    spaced ones of a long one. Who writes a few single values into large weights behind the host's back is not seen
    until the process ends; merging, training and patching change far more.
    """
    parts = inner_parts(tensor)
    if parts is not None:
        return " ".join(_glance(part) for part in parts.values() if isinstance(part, Tensor))
    if tensor.is_meta:
        return "meta"
    flat = tensor.detach().as_subclass(Tensor).reshape(-1)
    step = max(1, flat.numel() // _SAMPLES) if flat.numel() > _SEEN_WHOLE else 1
    picked = flat[::step].to("cpu")
    digest = hashlib.blake2b(digest_size=8)
    _hash_values(digest, picked)
    return f"{tuple(tensor.shape)} {digest.hexdigest()}"


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class _Remembered:
    """Digests by tensor, for as long as the tensor lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, tuple[weakref.ref[Tensor], str, str]] = {}

    def digest(self, tensor: Tensor) -> str:
        if tensor.numel() < _CACHED_FROM:
            return _full_digest(tensor)
        stamp = f"{_version(tensor)} {tensor.dtype} {_glance(tensor)}"
        key = id(tensor)
        with self._lock:
            known = self._known.get(key)
        if known is not None and known[0]() is tensor and known[1] == stamp:
            return known[2]
        found = _full_digest(tensor)

        def forget(_: object) -> None:
            self._known.pop(key, None)

        with self._lock:
            self._known[key] = (weakref.ref(tensor, forget), stamp, found)
        return found


_REMEMBERED = _Remembered()


def tensor_digest(tensor: Tensor) -> str:
    """32 characters that stand for shape and all values; the same on every device and in every lossless type."""
    return _REMEMBERED.digest(tensor)


def describe_tensor(tensor: Tensor) -> Plain:
    """Shape, type and values; short ones readable, long ones by digest."""
    shape: list[Plain] = [int(side) for side in tensor.shape]
    parts = inner_parts(tensor)
    about: dict[str, Plain] = {"tensor": shape, "dtype": str(tensor.dtype).removeprefix("torch.")}
    if parts is None and tensor.numel() <= _LONGEST_SHOWN and not (tensor.is_complex() or tensor.is_meta):
        values = tensor.detach().as_subclass(Tensor).reshape(-1).to("cpu")
        if tensor.is_floating_point():
            numbers = [plain_float(number) for number in values.to(torch.float64).tolist()]
            return {**about, "numbers": list(numbers)}
        return {**about, "numbers": values.tolist()}
    return {**about, "digest": tensor_digest(tensor)}


class WeightDigests:
    """Digests of a network's weights, kept by name as long as the network lives.

    Hosts exchange, move and patch parameters all the time, so a parameter object says little; the name together with a
    glance at the values tells whether a full look is needed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakKeyDictionary[Any, dict[str, tuple[str, str]]] = weakref.WeakKeyDictionary()
        self.hashed = 0
        """How many weights got a full look so far."""

    def digest(self, owner: object, weights: Mapping[str, Tensor]) -> str:
        """One digest of all `weights` of `owner`, by name, shape and value."""
        with self._lock:
            known = self._known.setdefault(owner, {})
        names = sorted(weights)
        new_bytes = sum(weights[name].numel() * weights[name].element_size() for name in names if name not in known)
        if new_bytes > _SAID_FROM_BYTES:
            log.info("hashing %.1f GB of weights, once per server start", new_bytes / 1e9)
        workers = max(1, min(8, os.cpu_count() or 1))
        with ThreadPoolExecutor(workers) as pool:
            digests = list(pool.map(lambda name: self._one(known, name, weights[name]), names))
        whole = hashlib.blake2b(digest_size=16)
        for name, digest in zip(names, digests, strict=True):
            whole.update(f"{name} {digest}\n".encode())
        return whole.hexdigest()

    def _one(self, known: dict[str, tuple[str, str]], name: str, weight: Tensor) -> str:
        glance = _glance(weight)
        if name in known and known[name][0] == glance:
            return known[name][1]
        digest = _full_digest(weight)
        known[name] = (glance, digest)
        self.hashed += 1
        return digest


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """One digest of a table of weights, for example of a LoRA: by name, shape and value."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        whole.update(f"{name} {tensor_digest(weights[name])}\n".encode())
    return whole.hexdigest()
