"""Stage droplet_vae: the causal 3-D VAE of DropletVideo, on clips in the official groups of frames and latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming_core.errors import SettingsError
from streaming_core.models.dropletvideo.config import DEFAULT_SCALING_FACTOR, TEMPORAL_SCALE, CausalVaeConfig
from streaming_core.models.dropletvideo.vae import CausalVae

from .configs import DEMO_DROPLET_VAE
from .diffusion import EXTRA_WEIGHT_OF_MOVING
from .droplet_videos import TimedClip, draw_timed
from .layout import CPU, Weights, initialize, silence
from .vae import (
    EDGE_WEIGHT,
    FIRST_LOG_VARIANCE,
    GUIDE_WEIGHT,
    KL_WEIGHT,
    WHOLE_SHARE,
    crop_around_movement,
    differences,
)
from .videos import Footage, Variety, held_out_videos

WHOLE_CLIPS = 2
"""Clips of a step on whole frames. torch computes a single one several times as slowly, by another kernel."""
MEASURED_FPS = (4.0, 16.0)
MEASURED_VIDEOS = 4


def new_vae(config: CausalVaeConfig, generator: torch.Generator) -> CausalVae:
    """Residual branches begin as nothing, and the latents leave the decoder's norms alone."""
    network = initialize(CausalVae(config), generator)
    silence(network, ".conv2.conv", "conv_y.conv", "conv_b.conv")
    with torch.no_grad():
        for name, layer in network.named_modules():
            if name.endswith("conv_y.conv"):
                layer.bias.fill_(1.0)
        network.encoder.conv_out.conv.bias[config.latent_channels :] = FIRST_LOG_VARIANCE
    return network


class DropletVaeTask:
    """Absolute error of pixels and of their differences in space and time, and a small pull to unit Gaussians.

    In three steps of four, clips are a quarter of the frame around what moves.
    """

    stage = "droplet_vae"

    def __init__(
        self,
        size: int = 64,
        variety: Variety = "narrow",
        batch: int = 3,
        frames: int = 17,
        config: CausalVaeConfig = DEMO_DROPLET_VAE,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        if frames < 9 or frames % 8 != 1:
            raise SettingsError(
                f"the VAE decodes latents in twos, so it is trained on 8k + 1 frames, not {frames}; use 9 or 17"
            )
        self.size, self.variety, self.batch, self.frames, self.device = size, variety, batch, frames, device
        self.config = config
        self.network = new_vae(config, torch.Generator().manual_seed(seed)).to(device)
        self.measured: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "videos": self.variety, "batch": self.batch, "frames": self.frames}

    def loss(self, generator: torch.Generator) -> Tensor:
        whole = float(torch.rand((), generator=generator)) < WHOLE_SHARE
        clips = [
            draw_timed(generator, self.size, self.variety).render(self.frames)
            for _ in range(WHOLE_CLIPS if whole else self.batch)
        ]
        if not whole:
            clips = [crop_around_movement(clip, self.size // 2, generator) for clip in clips]
        video, moving = stacked(clips, self.device)
        mean, log_variance = self.network.moments(video)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        decoded = self.network.decode(mean + (log_variance / 2).exp() * noise)
        weight = 1 + EXTRA_WEIGHT_OF_MOVING * moving
        pixels = (weight * (decoded - video).abs()).sum() / (3 * weight.sum())
        edges = sum((differences(decoded, axis) - differences(video, axis)).abs().mean() for axis in (2, 3, 4))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        guide = F.mse_loss(mean[:, :3], small_copy(video))
        return pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl + GUIDE_WEIGHT * guide

    def _held_out(self) -> Tensor:
        if self.measured is None:
            clips = [
                TimedClip(video, fps, 0).render(self.frames)
                for video in held_out_videos(MEASURED_VIDEOS, self.size, self.variety)
                for fps in MEASURED_FPS
            ]
            self.measured = stacked(clips, self.device)[0]
        return self.measured

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Peak signal to noise ratio of held-out clips in dB, through posterior means."""
        video = self._held_out()
        decoded = self.network.decode(self.network.encode(video)).clamp(-1, 1)
        return {"psnr": float(-10 * torch.log10(F.mse_loss(decoded, video) / 4))}

    @torch.no_grad()
    def weights(self) -> Weights:
        latents = self.network.encode(self._held_out())
        return rescaled(self.network.state_dict(), latents.square().mean(dim=(0, 2, 3, 4)).sqrt())


def stacked(clips: list[Footage], device: torch.device) -> tuple[Tensor, Tensor]:
    """Clips as `[B, 3, F, H, W]` in -1..1, and what moves there, `[B, 1, F, H, W]` in 0..1."""
    video = torch.stack([clip.frames.transpose(0, 1) for clip in clips]) * 2 - 1
    return video.to(device), torch.stack([clip.moving.transpose(0, 1) for clip in clips]).to(device)


def small_copy(video: Tensor) -> Tensor:
    """A video `[B, 3, 4k + 1, H, W]` in the size of its latents: the first frame alone, the others in means of four."""
    rest = video[:, :, 1:].unflatten(2, (-1, TEMPORAL_SCALE)).mean(3)
    return F.avg_pool3d(torch.cat([video[:, :, :1], rest], dim=2), (1, 8, 8))


def rescaled(weights: Mapping[str, Tensor], size: Tensor, factor: float = DEFAULT_SCALING_FACTOR) -> Weights:
    """The same VAE with latents of root mean square 1 / `factor` in every channel; now they have `size` `[C]`.

    Exact: what the last convolution of the encoder grows by, those of the decoder that see latents shrink by.
    """
    changed = {key: tensor.detach().clone() for key, tensor in weights.items()}
    grow = 1 / (factor * size)
    last = "encoder.conv_out.conv"
    rows = torch.cat([grow, torch.ones_like(grow)])
    changed[f"{last}.weight"] *= rows.view(-1, 1, 1, 1, 1)
    changed[f"{last}.bias"] *= rows
    # The other half of its outputs are the logarithms of the variances.
    changed[f"{last}.bias"][len(grow) :] += 2 * grow.log()
    for key in changed:
        if key == "decoder.conv_in.conv.weight" or key.endswith(("conv_y.conv.weight", "conv_b.conv.weight")):
            changed[key] /= grow.view(1, -1, 1, 1, 1)
    return changed


def build_vae(weights: Mapping[str, Tensor], config: CausalVaeConfig, device: torch.device) -> nn.Module:
    """The trained VAE, frozen."""
    network = CausalVae(config)
    network.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return network.to(device).eval().requires_grad_(False)
