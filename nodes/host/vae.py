"""What every family asks of the host's VAE."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from comfy.sd import VAE
from torch import Tensor

from ...streaming_core.models.towers import VaeConfig
from .progress import check_cancel


def autoencoder_params(config: VaeConfig) -> dict[str, Any]:
    """A KL autoencoder in the host's words."""
    return {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def decode_clip(vae: VAE, latents: Tensor) -> Tensor:
    """Decode `[n, 4, h, w]` in one call as one video, whatever memory is free: `[n, 3, H, W]` in [0, 1].

    The host's own `VAE.decode` splits frames by free memory, which changes what a temporal decoder makes of them.
    """
    check_cancel()
    memory = vae.memory_used_decode(latents.shape, vae.vae_dtype) * latents.shape[0]
    mm.load_models_gpu([vae.patcher], memory_required=memory)
    with torch.inference_mode():
        frames = vae.first_stage_model.decode(latents.to(device=vae.device, dtype=vae.vae_dtype))
        return ((frames.float() + 1) / 2).clamp(0, 1).to(vae.output_device)
