"""Weights that a converter has scaled to fit eight bits, back as plain ones.

The forms are those of ComfyUI's converters: `scale_weight` with a `scaled_fp8` mark, and `weight_scale` with a
`comfy_quant` description per layer, or one of all layers in the metadata. A layer's weight is its stored values times
the scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

METADATA_KEY = "_quantization_metadata"
_FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_SCALES = ("scale_weight", "weight_scale")
_PARTS = (
    *_SCALES,
    *("scale_input", "input_scale", "comfy_quant", "scaled_fp8", "weight_scale_2", "pre_quant_scale"),
    *("weight_s_rel", "weight_s_channel", "weight_codebook"),
)
"""Last words of keys that describe a quantized weight. Scales of inputs serve faster kernels; results need none."""
_FOREIGN = {
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "qweight": "GPTQ, AWQ or Nunchaku",
    "qzeros": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "_data": "quanto",
}
Layer = dict[str, Tensor]
"""The tensors of one quantized layer, by the last word of their keys."""
Decode = Callable[[Layer, Mapping[str, Any], torch.dtype], Tensor | None]
"""(layer, its description, wanted type) to the weight, or None for a format that nobody here knows."""


def plain_weights(
    tensors: Mapping[str, Tensor],
    source: str,
    metadata: Mapping[str, str] | None = None,
    decode: Decode | None = None,
) -> tuple[dict[str, Tensor], int]:
    """`tensors` of the file `source` with every quantized weight as plain numbers, and how many were quantized.

    They get the 16-bit type of the file's other weights, float16 where there is none. `metadata` is that of the file;
    `decode` reads formats other than scaled fp8. Plain fp8 stays as it is. Raises `CheckpointError` for a format that
    cannot be read.
    """
    _refuse_foreign(tensors, source)
    described = {_stem(key): _description(value) for key, value in tensors.items() if _last(key) == "comfy_quant"}
    described |= _described_in(metadata, source)
    stems = {_stem(key) for key in tensors if _last(key) in _SCALES}
    stems |= {stem for stem in described if f"{stem}weight" in tensors}
    plain = {key: value for key, value in tensors.items() if _last(key) not in _PARTS}
    dtype = _type_of(plain)
    for stem in stems:
        layer = {part: tensors[stem + part] for part in ("weight", *_PARTS) if stem + part in tensors}
        plain[f"{stem}weight"] = _weight(layer, described.get(stem, {}), dtype, f"{source}: {stem}weight", decode)
    return plain, len(stems)


def _stem(key: str) -> str:
    """A key up to its last word."""
    return key[: len(key) - len(_last(key))]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _refuse_foreign(tensors: Mapping[str, Tensor], source: str) -> None:
    for key in tensors:
        if (kind := _FOREIGN.get(_last(key))) or ".quant_state." in key:
            raise CheckpointError(
                f"{source} is quantized by {kind or 'bitsandbytes'} (key {key}), which this loader does not read; "
                "use a float32, float16, bfloat16 or fp8 file"
            )


def _description(value: Tensor) -> dict[str, Any]:
    """What a `comfy_quant` tensor, JSON in bytes, says of its layer."""
    try:
        described = json.loads(bytes(value.flatten().to(torch.uint8).tolist()))
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def _described_in(metadata: Mapping[str, str] | None, source: str) -> dict[str, dict[str, Any]]:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return {f"{stem}.": dict(described) for stem, described in json.loads(text)["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source} has unreadable metadata of its quantization ({error!r}); use another file"
        ) from error


def _type_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The 16-bit type that most of the weights have, float16 where none has one."""
    sizes = {torch.float16: 0, torch.bfloat16: 0}
    for tensor in tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.numel()
    return max(sizes, key=sizes.__getitem__)


def _weight(layer: Layer, described: Mapping[str, Any], dtype: torch.dtype, what: str, decode: Decode | None) -> Tensor:
    if "weight" not in layer:
        raise CheckpointError(f"{what} is missing, though its scale is there; use a complete file")
    stored, kind = layer["weight"], described.get("format")
    scale = next((layer[name] for name in _SCALES if name in layer), None)
    if (kind is None and stored.is_floating_point()) or kind in _FP8:
        values = stored.view(_FP8[kind]) if kind in _FP8 and stored.dtype == torch.uint8 else stored
        return _scaled(values.float(), scale, what).to(dtype)
    plain = decode(layer, described, dtype) if decode else None
    if plain is None:
        raise CheckpointError(
            f"{what} is stored as {kind or stored.dtype}, which this ComfyUI does not read; "
            "use a float32, float16, bfloat16 or fp8 file"
        )
    return plain


def _scaled(values: Tensor, scale: Tensor | None, what: str) -> Tensor:
    """Values times a scale for all of them or one per row."""
    if scale is None or scale.numel() == 0:
        return values
    if scale.numel() not in (1, len(values)):
        raise CheckpointError(
            f"{what} has {scale.numel()} scales for {len(values)} rows instead of one for all or one each; "
            "use another file"
        )
    return values * scale.float().reshape(-1, *[1] * (values.ndim - 1))
