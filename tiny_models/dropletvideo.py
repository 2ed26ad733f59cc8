"""Tiny DropletVideo weights in the official layout: single files, or a folder as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.dropletvideo.config import CausalVaeConfig, DropletConfig
from streaming_core.models.dropletvideo.network import DropletVideo
from streaming_core.models.dropletvideo.vae import CausalVae
from streaming_core.models.registry import shapes_of

from .streamingsvd import random_weights, write

TINY = DropletConfig(width=64, head_width=32, layers=2, text_width=24, embedding_width=32, feed_forward_width=256)
TINY_VAE = CausalVaeConfig(channels=(32, 32, 32, 64), layers_per_block=1)
"""Levels that the published number of norm groups divides, so that it is detected without a config.json."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


def transformer_weights(
    seed: int = 0, config: DropletConfig = TINY, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return random_weights(shapes_of(DropletVideo(config, device="meta").state_dict()), seed, dtype)


def vae_weights(
    seed: int = 0, config: CausalVaeConfig = TINY_VAE, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return random_weights(shapes_of(CausalVae(config, device="meta").state_dict()), seed, dtype)


def transformer_settings(config: DropletConfig = TINY) -> dict[str, Any]:
    """The config.json next to the transformer."""
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_width,
        "num_layers": config.layers,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_embed_dim": config.text_width,
        "time_embed_dim": config.embedding_width,
        "patch_size": config.patch,
        "norm_eps": config.norm_eps,
        "activation_fn": "gelu-approximate",
        "use_rotary_positional_embeddings": True,
        "add_noise_in_inpaint_model": config.noise_on_reference,
    }


def vae_settings(config: CausalVaeConfig = TINY_VAE) -> dict[str, Any]:
    """The config.json next to the VAE."""
    return {
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "scaling_factor": config.scaling_factor,
        "sample_height": config.sample_height,
        "sample_width": config.sample_width,
    }


def write_tiny_dropletvideo(folder: Path, seed: int = 0, config: DropletConfig = TINY) -> Path:
    """A folder as published, without text encoder: `transformer` and `vae` with weights and config.json each."""
    for name, weights, settings in (
        ("transformer", transformer_weights(seed, config), transformer_settings(config)),
        ("vae", vae_weights(seed), vae_settings()),
    ):
        write(folder / name / WEIGHTS, weights)
        (folder / name / "config.json").write_text(json.dumps(settings, indent=2))
    return folder
