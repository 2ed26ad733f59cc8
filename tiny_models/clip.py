"""The host's CLIP and CLIP_VISION, small and with random weights.

Import the host first (`hosting.inprocess.import_host`).
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch
from comfy.sd1_clip import SDClipModel
from comfy.sdxl_clip import SDXLTokenizer

from tiny_models.native import randomize

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def tiny_clip_vision(folder: Path, projection: int = 24) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION with embeddings of width `projection`."""
    config = {
        **SHAPE,
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "image_size": 224,
        "patch_size": 56,
        "num_channels": 3,
        "projection_dim": projection,
    }
    path = folder / "clip_vision.json"
    path.write_text(json.dumps(config))
    clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
    randomize(clip_vision.model)
    return clip_vision


class TextParts(torch.nn.Module):
    """Several CLIP text models side by side, as in the host's SDXL."""

    def __init__(self, widths: dict[str, int]):
        super().__init__()
        for name, width in widths.items():
            config = {
                **SHAPE,
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "max_position_embeddings": 77,
                "eos_token_id": 49407,
                "vocab_size": 49408,
            }
            setattr(self, f"clip_{name}", SDClipModel(dtype=torch.float32, textmodel_json_config=config))


def tiny_clip(**widths: int) -> comfy.sd.CLIP:
    """CLIP with parts of the given widths: `tiny_clip(l=16, g=24)`."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = TextParts(widths)
    randomize(clip.cond_stage_model)
    clip.tokenizer = SDXLTokenizer()
    clip.patcher = comfy.model_patcher.ModelPatcher(
        clip.cond_stage_model, mm.text_encoder_device(), mm.text_encoder_offload_device()
    )
    clip.layer_idx, clip.tokenizer_options = None, {}
    return clip
