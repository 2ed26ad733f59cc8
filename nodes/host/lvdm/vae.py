"""LVDM's 3-D autoencoder as the host's VAE; long videos are decoded in groups that overlap and keep their center."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from torch import Tensor

from ....streaming_core.loop.decoding import overlapping_groups
from ....streaming_core.models.lvdm.autoencoder import VideoAutoencoder
from ....streaming_core.models.lvdm.config import VideoAutoencoderConfig
from ..progress import check_cancel
from ..vae import NetworkVae

CONTEXT_LATENTS = 2
"""Latents on each side that a decoded one is shown with, where there are (reference: lvdm, section 3)."""
GROUP_LATENTS = 12
"""Latents that are decoded together. Norms see all of a group, so the number belongs to the result."""


class _Network(VideoAutoencoder):
    """The autoencoder with the calls of the host; hears Cancel between groups of latents."""

    def encode(self, video: Tensor, *_unused: Any) -> Tensor:
        # The host's nodes give any number of frames; what is no whole latent is left out, as by its own video VAEs.
        # Fewer than one latent stands for, an image say, stand still.
        count, unit = video.shape[2], self.config.scales[0]
        if count < unit:
            video = torch.cat([video, video[:, :, -1:].expand(-1, -1, unit - count, -1, -1)], dim=2)
        return super().encode(video[:, :, : max(count // unit, 1) * unit])

    def decode(self, latents: Tensor, *_unused: Any, **_options: Any) -> Tensor:
        decode = super().decode
        return torch.cat(list(decoded_groups(decode, latents, 0, self.config.scales[0])), dim=2)


def decoded_groups(decode: Callable[[Tensor], Tensor], latents: Tensor, first: int, unit: int) -> Any:
    """Frames `[B, 3, f, H, W]` of all latents from `first` on, group after group; `unit`: frames of a latent."""
    for group in overlapping_groups(latents.shape[2], first, GROUP_LATENTS, CONTEXT_LATENTS):
        check_cancel()
        frames = decode(latents[:, :, group.start : group.stop])
        start, stop = ((edge - group.start) * unit for edge in (group.keep_start, group.keep_stop))
        yield frames[:, :, start:stop]


class LvdmVae(NetworkVae):
    """The host's VAE around the 3-D autoencoder. Make it with `build_vae`."""

    def __init__(self, config: VideoAutoencoderConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        unit, rows, columns = config.scales
        self.latent_channels, self.latent_dim = config.latent_channels, 3
        self.upscale_ratio = (lambda latents: latents * unit, rows, columns)
        self.downscale_ratio = (lambda frames: max(frames // unit, 1), rows, columns)
        self.upscale_index_formula = self.downscale_index_formula = config.scales
        base = config.base_channels
        # Counted: at its finest level, twice `base` wide, the decoder holds 6.6 maps of all frames of a group; the
        # encoder 2.7 of `base`.
        self.memory_used_decode = lambda shape, dtype: (
            14
            * base
            * min(shape[2], GROUP_LATENTS)
            * unit
            * shape[3]
            * shape[4]
            * rows
            * columns
            * mm.dtype_size(dtype)
        )
        self.memory_used_encode = lambda shape, dtype: 3 * base * shape[2] * shape[3] * shape[4] * mm.dtype_size(dtype)
        self.adopt(_Network(config, comfy.ops.disable_weight_init, self.vae_dtype), tensors, "the autoencoder")


def build_vae(tensors: Mapping[str, Tensor], config: VideoAutoencoderConfig) -> LvdmVae:
    """VAE from an autoencoder's tensors, loaded strictly."""
    return LvdmVae(config, tensors)


def encode_frames(vae: LvdmVae, frames: Tensor) -> Tensor:
    """Latents `[1, 4, n, h, w]` float32 on the CPU, not scaled, of frames `[f, 3, H, W]` in [0, 1]."""
    check_cancel()
    video = frames.movedim(1, 0).unsqueeze(0) * 2 - 1
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_encode(video.shape, vae.vae_dtype))
    with torch.inference_mode():
        return vae.first_stage_model.encode(video.to(device=vae.device, dtype=vae.vae_dtype)).float().cpu()


def decode_frames(vae: LvdmVae, latents: Tensor, first: int = 0) -> Tensor:
    """Frames `[f, 3, H, W]` in [0, 1] of all latents from `first` on; those before are shown to the decoder."""
    check_cancel()
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_decode(latents.shape, vae.vae_dtype))
    network = vae.first_stage_model
    with torch.inference_mode():
        latents = latents.to(device=vae.device, dtype=vae.vae_dtype)
        groups = [
            ((group[0].float() + 1) / 2).clamp(0, 1).to(vae.output_device)
            for group in decoded_groups(
                lambda part: VideoAutoencoder.decode(network, part), latents, first, vae.config.scales[0]
            )
        ]
    return torch.cat(groups, dim=1).movedim(1, 0)
