"""What the stages of StreamingModelscope do not train: text tower, image tower and VAE of the demo file.

Both towers have weights made by hand or drawn once, always the same ones; the VAE is that of stage vae under the names
of the ModelScope file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.modelscope.config import TextEncoderConfig
from streaming_core.models.modelscope.detect import CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX
from streaming_core.models.modelscope.shapes import clip_text_shapes, diffusers_vae_shapes
from streaming_core.models.modelscope.vae_names import stable_diffusion_name
from streaming_core.models.registry import shapes_of, take
from streaming_core.models.shapes import openclip_shapes
from streaming_core.models.streamingsvd.detect import IMAGE_ENCODER_PREFIX
from streaming_core.models.towers import ClipVisionConfig, detect_vae

from .configs import DEMO_MODELSCOPE
from .layout import Base, Weights, floats, host

TEXT_SEED, VISION_SEED = 21, 22
LEAST_DIFFERENCE = 1.9
"""Between two channels of a saturated color, in standard deviations of CLIP's images; backgrounds have less."""
SILENT_TOKENS = (0, 49406, 49407, 320, 1069, 3584)
"""Padding, start, end, "a", "ball" and "moving" have no vector of their own: what all prompts have in common would
outweigh what tells them apart, and an empty prompt is all zeros.
"""
TEXT_SIZE = 4.0
"""Root mean square of what the tower puts out. At 1 the UNet had not begun to read it after 600 steps."""


def random_text_encoder(config: TextEncoderConfig) -> Weights:
    """A text tower of random weights, always the same ones, under the official keys.

    Its attention looks at all words alike and its feed-forward and positions are silent, so every token after the
    words carries their sum: prompts of different words are different vectors, and no word drowns in the padding.
    """
    generator, weights = torch.Generator().manual_seed(TEXT_SEED), {}
    for key, shape in sorted(clip_text_shapes(config).items()):
        if key.endswith("token_embedding.weight"):
            weights[key] = torch.randn(shape, generator=generator)
            weights[key][list(SILENT_TOKENS)] = 0.0
        elif key.endswith("final_layer_norm.weight"):
            weights[key] = torch.full(shape, TEXT_SIZE)
        elif len(shape) == 1:
            weights[key] = torch.full(shape, 1.0 if "norm" in key and key.endswith("weight") else 0.0)
        elif any(part in key for part in ("position_embedding", "q_proj", "k_proj", "fc2")):
            weights[key] = torch.zeros(shape)
        else:
            weights[key] = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
            # Shared among 77 tokens, two or three words are faint; the last norm should still find them.
            weights[key] *= 10.0 if "out_proj" in key else 1.0
    return {TEXT_PREFIX + key: tensor for key, tensor in weights.items()}


def modelscope_vae(base: Base) -> Weights:
    """The still-image autoencoder of `base` under the diffusers names of a StreamingModelscope file."""
    image = take(base.tensors, IMAGE_ENCODER_PREFIX)
    config = detect_vae(shapes_of(base.tensors), IMAGE_ENCODER_PREFIX)
    weights, levels = {}, len(config.channel_multipliers)
    for key, shape in diffusers_vae_shapes(config).items():
        weights[VAE_PREFIX + key] = image[stable_diffusion_name(key, levels)].reshape(shape)
    return weights


def frozen_parts(base: Base) -> Weights:
    """What the stages of StreamingModelscope do not train, by official key: VAE and both towers."""
    return {
        **modelscope_vae(base),
        **random_text_encoder(DEMO_MODELSCOPE.text_encoder),
        **color_clip_vision(DEMO_MODELSCOPE.clip_vision),
    }


def color_clip_vision(config: ClipVisionConfig) -> Weights:
    """An image tower made by hand: its embedding tells which saturated colors an image holds, and how evenly.

    A ball's colored half is 3 % of a frame, too little for towers of random weights (`layout.random_clip_vision`):
    their embeddings of videos of one color lie as far apart as those of two. Here every patch becomes its mean color
    (0..2, and its opposite in 3..5, next to constants that fix the scale of all norms), the first feed-forward keeps by
    how much one channel outweighs another (10..15 and 20..25), the second attention averages that over the image.
    """
    generator = torch.Generator().manual_seed(VISION_SEED)
    weights = {
        key: torch.full(shape, 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0)
        for key, shape in openclip_shapes(config).items()
    }
    width, constant = config.width, 20.0
    scale = constant * math.sqrt(2 / width)  # what the norms divide by
    first, second = "transformer.resblocks.0.", "transformer.resblocks.1."
    for channel in range(3):
        weights["conv1.weight"][channel, channel] = 1 / config.patch_px**2
        weights["conv1.weight"][3 + channel, channel] = -1 / config.patch_px**2
    weights["positional_embedding"][:, 6], weights["positional_embedding"][:, 7] = constant, -constant
    for norm in ("ln_pre", first + "ln_2", second + "ln_1"):
        weights[norm + ".weight"].fill_(scale)
    pairs = [(one, other) for one in range(3) for other in range(3) if one != other]
    for row, (one, other) in enumerate(pairs):
        weights[first + "mlp.c_fc.weight"][row, one] = 4.0
        weights[first + "mlp.c_fc.weight"][row, other] = -4.0
        weights[first + "mlp.c_fc.bias"][row] = -4.0 * LEAST_DIFFERENCE
        for feature, sign in ((10 + row, 1.0), (20 + row, -1.0)):
            weights[first + "mlp.c_proj.weight"][feature, row] = sign
            weights[second + "attn.in_proj_weight"][2 * width + feature, feature] = 1.0
            weights[second + "attn.out_proj.weight"][feature, feature] = 400.0
    weights["proj"] = torch.randn(width, config.projection_width, generator=generator) / 4
    weights["proj"][:10] = 0.0
    return {CLIP_VISION_PREFIX + key: tensor for key, tensor in weights.items()}


def color_tower(config: ClipVisionConfig) -> Any:
    """`color_clip_vision` as the host's CLIP_VISION."""
    return host().encoders.build_clip_vision(take(color_clip_vision(config), CLIP_VISION_PREFIX), config)


class Prompts:
    """Texts as the host's CLIP of the file gives them, `[1, 77, width]`; each is encoded once."""

    def __init__(self, config: TextEncoderConfig, device: torch.device):
        host()
        from comfyui_streamingt2v.nodes.host.modelscope.towers import build_text_encoder

        self.clip = build_text_encoder(floats(take(random_text_encoder(config), TEXT_PREFIX)), config)
        self.device = device
        self.known: dict[str, Tensor] = {}

    def __call__(self, text: str) -> Tensor:
        if text not in self.known:
            [[encoded, _]] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            # Made under inference mode; a copy made outside of it may take part in training.
            self.known[text] = encoded.float().to(self.device).clone()
        return self.known[text]
