"""Tiny LVDM files in the official layouts: whole checkpoints and autoencoders, as Lightning pickles or safetensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.lvdm.config import LvdmConfig, VideoAutoencoderConfig
from streaming_core.models.lvdm.layout import checkpoint_shapes, video_autoencoder_shapes
from streaming_core.models.modelscope.config import TextEncoderConfig
from streaming_core.models.shapes import KeyShapes
from streaming_core.models.towers import VaeConfig

from .streamingsvd import random_weights, write

TINY = LvdmConfig(width=32, multipliers=(1, 2), blocks_per_level=1, attention=(False, True), heads=2)
"""Short videos from noise."""
TINY_PREDICTION = replace(TINY, in_channels=5, labels=251)
TINY_INTERPOLATION = replace(TINY_PREDICTION, temporal_length=5)
TINY_TEXT = replace(TINY, attention=(True, True), heads=4, temporal_length=16, scale_shift=False, context_width=16)
TINY_AUTOENCODER = VideoAutoencoderConfig(base_channels=16)
TINY_VAE = VaeConfig(
    base_channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4, temporal=False
)
TINY_TEXT_ENCODER = TextEncoderConfig(vocabulary=49408, width=16, layers=2, heads=1, mlp_width=32, max_tokens=77)


def shapes(config: LvdmConfig, average: bool = True) -> KeyShapes:
    """Every key of a whole checkpoint around a UNet of `config`; a text-to-video one never has a moving average."""
    if config.kind == "text":
        return checkpoint_shapes(config, TINY_VAE, TINY_TEXT_ENCODER, average=False)
    return checkpoint_shapes(config, TINY_AUTOENCODER, average=average)


def _aliased(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Second names of convolutions bring the same tensors."""
    return {
        key: weights.get(f"{key.removesuffix('.weight')}.conv.weight", value) if key.endswith(".weight") else value
        for key, value in weights.items()
    }


def lvdm_weights(config: LvdmConfig = TINY, seed: int = 0, average: bool = True) -> dict[str, Tensor]:
    """A whole checkpoint."""
    return _aliased(random_weights(shapes(config, average), seed, torch.float32))


def autoencoder_weights(config: VideoAutoencoderConfig = TINY_AUTOENCODER, seed: int = 0) -> dict[str, Tensor]:
    """An autoencoder's own file, with what its training leaves there."""
    weights = random_weights(video_autoencoder_shapes(config), seed, torch.float32)
    return _aliased(weights) | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3)}


def lightning(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning pickles around the weights."""
    return {
        "epoch": 12,
        "global_step": 3000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": weights,
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"step": 3000, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6e-5}]}],
        "lr_schedulers": [],
    }


def write_tiny_lvdm(path: Path, config: LvdmConfig = TINY, seed: int = 0, average: bool = True) -> Path:
    """A whole checkpoint, as safetensors or, by its ending, as the pickle that the release is."""
    weights = lvdm_weights(config, seed, average)
    return write(path, {key: value.clone() for key, value in weights.items()}, lightning(weights))


def write_tiny_autoencoder(path: Path, seed: int = 0) -> Path:
    weights = autoencoder_weights(seed=seed)
    return write(path, {key: value.clone() for key, value in weights.items()}, lightning(weights))
