"""The host's CLIP_VISION made from an OpenCLIP image tower of any size."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping

import comfy.clip_vision
from torch import Tensor

from ...streaming_core.models.registry import compare_keys, shapes_of
from ...streaming_core.models.towers import ClipVisionConfig


def empty_clip_vision(config: ClipVisionConfig):
    """CLIP_VISION without weights."""
    described = {
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "image_size": config.image_px,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch_px,
        "projection_dim": config.projection_width,
    }
    # Hosts before 0.33 take the description as a file only.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip_vision_config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(described, file)
        return comfy.clip_vision.ClipVisionModel(path)


def build_clip_vision(tensors: Mapping[str, Tensor], config: ClipVisionConfig):
    """CLIP_VISION from an OpenCLIP image tower, loaded strictly; `tensors` are keyed without the tower's prefix."""
    clip_vision = empty_clip_vision(config)
    converted = convert_clip_vision(tensors)
    compare_keys(clip_vision_shapes(clip_vision), shapes_of(converted), "the CLIP image tower")
    clip_vision.load_sd(converted)
    return clip_vision


def clip_vision_shapes(clip_vision) -> dict[str, tuple[int, ...]]:
    """What a CLIP_VISION expects, in the host's names; position numbers are no weights."""
    return {key: s for key, s in shapes_of(clip_vision.get_sd()).items() if not key.endswith("position_ids")}


def convert_clip_vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An OpenCLIP image tower in the host's names."""
    converted = comfy.clip_vision.convert_to_transformers({"v." + key: t for key, t in tensors.items()}, "v.")
    return {key: tensor for key, tensor in converted.items() if not key.endswith("position_ids")}
