"""Quantized layers read by the host's own operations, for formats that are more than a scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import comfy.ops
import torch
from torch import Tensor

from ...streaming_core.models.quantized import Layer

_PACKED = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")
"""Formats with two values in a byte."""


def decode_by_host(layer: Layer, described: Mapping[str, Any], dtype: torch.dtype) -> Tensor | None:
    """The weight of one quantized linear layer in `dtype`, or None where this host does not know its format."""
    make = getattr(comfy.ops, "mixed_precision_ops", None)
    kind = described.get("format")
    if make is None or kind not in getattr(comfy.ops, "QUANT_ALGOS", {}) or layer["weight"].ndim != 2:
        return None
    rows, columns = layer["weight"].shape
    columns *= 2 if kind in _PACKED else 1
    described_bytes = torch.tensor(list(json.dumps(dict(described)).encode()), dtype=torch.uint8)
    linear = make({"mixed_ops": True}, dtype).Linear(columns, rows, bias=False, device="cpu", dtype=dtype)
    linear.load_state_dict({**layer, "comfy_quant": described_bytes}, strict=False)
    weight: Any = linear.weight
    return weight.dequantize().to(dtype) if hasattr(weight, "dequantize") else None
