"""Prompts and images for the host's encoders, and CLIP_VISION made from an OpenCLIP image tower of any size."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.clip_vision
import comfy.conds
import comfy.model_management as mm
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from torch import Tensor

from ...streaming_core.errors import SettingsError
from ...streaming_core.loop.chunk import Chunk
from ...streaming_core.models.registry import compare_keys, shapes_of
from ...streaming_core.models.towers import ClipVisionConfig
from .progress import check_cancel

Conditioning = list[list[Any]]
"""The host's CONDITIONING: pairs of text tokens `[1, n, width]` and a dict of options."""
ConditioningPair = tuple[Conditioning, Conditioning]
"""Positive and negative."""


class PerVideo(comfy.conds.CONDRegular):
    """A condition with one row per guidance branch: joined over conditions, never repeated over frames."""

    def process_cond(self, batch_size: int, **_options: Any) -> PerVideo:
        return self._copy_with(self.cond)


def encode_prompt(clip: CLIP, text: str) -> Conditioning:
    """CONDITIONING of one prompt, with whatever schedule of hooks `clip` carries."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def connected_prompt(chunk: Chunk, prompts: Sequence[Conditioning]) -> Conditioning:
    """The connected prompt of a chunk, the last one for all further chunks, where nothing can encode one of the plan.

    Raises `SettingsError` when there is none, or the plan has one.
    """
    if chunk.prompt is not None:
        raise SettingsError("the plan has prompts; connect clip to the chunk sampler, which encodes them")
    if not prompts:
        raise SettingsError(
            f"chunk {chunk.index} has no prompt; begin the plan's prompts with '0: ...', or connect positive"
        )
    return prompts[min(chunk.index, len(prompts) - 1)]


def embed_pixels(clip_vision: ClipVisionModel, pixels: Tensor) -> Tensor:
    """CLIP embeddings `[n, width]` float32, pooled and projected, of normalized pixels `[n, 3, size, size]`.

    One image per call of the network, so memory does not grow with `n` and an embedding does not depend on the images
    next to it. The host's own `encode_image` would resize and crop first. Results lie on the intermediate device.
    """
    check_cancel()
    mm.load_models_gpu([clip_vision.patcher])
    rows = []
    with torch.inference_mode():
        for image in pixels.to(clip_vision.load_device).split(1):
            # The host returns (last hidden state, hidden state of the layer asked for, pooled and projected, ...).
            rows.append(clip_vision.model(pixel_values=image, intermediate_output=-2)[2])
    return torch.cat(rows).to(mm.intermediate_device()).float()


def empty_clip_vision(config: ClipVisionConfig) -> ClipVisionModel:
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


def build_clip_vision(tensors: Mapping[str, Tensor], config: ClipVisionConfig) -> ClipVisionModel:
    """CLIP_VISION from an OpenCLIP image tower, loaded strictly; `tensors` are keyed without the tower's prefix."""
    clip_vision = empty_clip_vision(config)
    converted = convert_clip_vision(tensors)
    compare_keys(clip_vision_shapes(clip_vision), shapes_of(converted), "the CLIP image tower")
    clip_vision.load_sd(converted)
    return clip_vision


def clip_vision_shapes(clip_vision: ClipVisionModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights a CLIP_VISION expects, by the host's names; position ids are not weights."""
    return {key: s for key, s in shapes_of(clip_vision.get_sd()).items() if not key.endswith("position_ids")}


def convert_clip_vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An OpenCLIP image tower in the host's names."""
    converted = comfy.clip_vision.convert_to_transformers({"v." + key: t for key, t in tensors.items()}, "v.")
    return {key: tensor for key, tensor in converted.items() if not key.endswith("position_ids")}
