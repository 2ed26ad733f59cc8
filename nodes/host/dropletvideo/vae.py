"""DropletVideo's VAE as the host's VAE: whole videos in one call, in the groups that its norms belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from torch import Tensor

from ....streaming_core.models.dropletvideo.config import (
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    CausalVaeConfig,
    decoded_frames,
    latent_count,
)
from ....streaming_core.models.dropletvideo.vae import CausalVae
from ..progress import check_cancel
from ..vae import NetworkVae


class _Network(CausalVae):
    """The VAE with the calls of the host; hears Cancel between groups of frames."""

    def encode(self, video: Tensor, *_unused: Any) -> Tensor:
        # The host's nodes give any number of frames; what is no whole latent is left out, as by its own video VAEs.
        whole = (video.shape[2] - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1
        return super().encode(video[:, :, :whole], check_cancel)

    def decode(self, latents: Tensor, *_unused: Any, **_options: Any) -> Tensor:
        return super().decode(latents, check_cancel=check_cancel)


class DropletVae(NetworkVae):
    """The host's VAE around the causal one. Make it with `build_vae`."""

    def __init__(self, config: CausalVaeConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.latent_dim = config.latent_channels, 3
        self.upscale_ratio = (decoded_frames, SPATIAL_SCALE, SPATIAL_SCALE)
        self.downscale_ratio = (_latents_of, SPATIAL_SCALE, SPATIAL_SCALE)
        self.upscale_index_formula = self.downscale_index_formula = (TEMPORAL_SCALE, SPATIAL_SCALE, SPATIAL_SCALE)
        widest = config.channels[0]
        # Measured on the decoder's finest level: it holds some ten maps of four frames at a time.
        self.memory_used_decode = lambda shape, dtype: (
            40 * widest * shape[3] * shape[4] * SPATIAL_SCALE**2 * mm.dtype_size(dtype)
        )
        self.memory_used_encode = lambda shape, dtype: 30 * widest * shape[3] * shape[4] * mm.dtype_size(dtype)
        self.adopt(_Network(config, comfy.ops.disable_weight_init, self.vae_dtype), tensors, "the VAE")


def build_vae(tensors: Mapping[str, Tensor], config: CausalVaeConfig) -> DropletVae:
    """VAE from tensors in the diffusers layout, loaded strictly."""
    return DropletVae(config, tensors)


def encode_video(vae: DropletVae, video: Tensor) -> Tensor:
    """Latents `[1, 16, k + 1, H/8, W/8]` float32 on the CPU of a video `[1, 3, 4k + 1, H, W]` in [-1, 1], unscaled.

    Not by the host's own `encode`: its input has been rounded to [0, 1] and back.
    """
    check_cancel()
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_encode(video.shape, vae.vae_dtype))
    with torch.inference_mode():
        latents = vae.first_stage_model.encode(video.to(device=vae.device, dtype=vae.vae_dtype))
    return latents.float().cpu()


def decode_video(vae: DropletVae, latents: Tensor) -> Tensor:
    """Frames `[N, 3, H, W]` in [0, 1] of unscaled latents `[1, 16, n, h, w]`, decoded as one video."""
    check_cancel()
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_decode(latents.shape, vae.vae_dtype))
    with torch.inference_mode():
        groups = []
        for group in vae.first_stage_model.decode_groups(latents.to(device=vae.device, dtype=vae.vae_dtype)):
            check_cancel()
            groups.append(((group[0].float() + 1) / 2).clamp(0, 1).to(vae.output_device))
    return torch.cat(groups, dim=1).movedim(1, 0)


def _latents_of(frames: int) -> int:
    return latent_count(max(frames, 1))
