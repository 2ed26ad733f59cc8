"""Stage vae: the VAE, on single frames of videos.

One network is trained for both of the official autoencoders (`layout.autoencoder_tensors`); the temporal layers of the
video decoder stay at what they begin with, which is nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.streamingsvd.config import StreamingSVDConfig

from .configs import DEMO_SVD
from .diffusion import EXTRA_WEIGHT_OF_MOVING
from .footage import VideoSource, pick
from .layout import CPU, LATENT_SCALE, Weights, build_vae, initialize, silence
from .videos import Footage, Variety, held_out_videos

KL_WEIGHT = 2e-4
GUIDE_WEIGHT = 1.0
"""Of the pull that makes the first three latent channels a small copy of the image. Left to itself the network finds
brightness first and colors only after thousands of steps."""
FIRST_LOG_VARIANCE = -5.0
"""Of the posterior; at 0, the usual start, its noise drowns the first thousand steps."""
EDGE_WEIGHT = 0.5
WHOLE_SHARE = 0.25
"""Share of steps on whole frames, a quarter as many; the others see a quarter of their area, around what moves."""
VIDEO_FRAMES = 48
"""Frames are drawn from so far into a video."""
MEASURED_VIDEOS = 8


class VaeTask:
    """Absolute error of pixels and of their differences to their neighbors, and a small pull to unit Gaussians."""

    stage = "vae"

    def __init__(
        self,
        size: int = 96,
        variety: Variety = "narrow",
        batch: int = 6,
        config: StreamingSVDConfig = DEMO_SVD,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.source, self.batch, self.config, self.device = VideoSource(size, variety), batch, config, device
        # Frames are coded one by one: the video decoder's temporal layers cost half of its time and are not needed.
        network = build_vae(config.image_encoder, replace(config.first_stage, temporal=False), CPU)
        self.network = initialize(network, torch.Generator().manual_seed(seed)).to(device)
        channels = config.image_encoder.latent_channels
        with torch.no_grad():
            self.network.quant_conv.bias[channels:] = FIRST_LOG_VARIANCE

    def settings(self) -> dict[str, Any]:
        return {"size": self.source.size, "videos": self.source.variety, "batch": self.batch}

    def loss(self, generator: torch.Generator) -> Tensor:
        whole = float(torch.rand((), generator=generator)) < WHOLE_SHARE
        videos = max(1, self.batch // 4) if whole else self.batch
        clips = [self.source.draw(generator, 1, range(VIDEO_FRAMES), None).footage for _ in range(videos)]
        if not whole:
            clips = [crop_around_movement(clip, self.source.size // 2, generator) for clip in clips]
        frames = torch.cat([clip.frames for clip in clips]).to(self.device) * 2 - 1
        weight = 1 + EXTRA_WEIGHT_OF_MOVING * torch.cat([clip.moving for clip in clips]).to(self.device)
        moments, _ = self.network.encode(frames, unregularized=True)
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        decoded = self.network.decode(mean + (log_variance / 2).exp() * noise)
        pixels = (weight * (decoded - frames).abs()).sum() / (3 * weight.sum())
        edges = sum((differences(decoded, axis) - differences(frames, axis)).abs().mean() for axis in (2, 3))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        small = F.adaptive_avg_pool2d(frames, mean.shape[-2:])
        guide = F.mse_loss(mean[:, :3], small)
        return pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl + GUIDE_WEIGHT * guide

    def _held_out(self) -> Tensor:
        """`[videos, 3, H, W]` in -1..1."""
        videos = held_out_videos(MEASURED_VIDEOS, self.source.size, self.source.variety)
        return torch.cat([video.render(0, 1).frames for video in videos]).to(self.device) * 2 - 1

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Peak signal to noise ratio of held-out videos in dB, through posterior means."""
        frames = self._held_out()
        decoded = self.network.decode(self.network.encode(frames)).clamp(-1, 1)
        return {"psnr": float(-10 * torch.log10(F.mse_loss(decoded, frames) / 4))}

    @torch.no_grad()
    def weights(self) -> Weights:
        latents = self.network.encode(self._held_out())
        scaled = scaled_weights(self.network, rearrange(latents, "n c h w -> c (n h w)").square().mean(dim=1).sqrt())
        return {**idle_temporal_layers(self.config), **scaled}


def idle_temporal_layers(config: StreamingSVDConfig) -> Weights:
    """What a video decoder has more than a still one, set so that it decodes frame by frame."""
    network = initialize(build_vae(config.image_encoder, config.first_stage, CPU), torch.Generator().manual_seed(0))
    silence(network, ".time_stack.out_layers.3", "conv_out.time_mix_conv")
    nn.init.dirac_(network.decoder.conv_out.time_mix_conv.weight)
    temporal = (".time_stack.", ".mix_factor", ".time_mix_conv.")
    return {key: tensor.detach() for key, tensor in network.state_dict().items() if any(t in key for t in temporal)}


def crop_around_movement(clip: Footage, side: int, generator: torch.Generator) -> Footage:
    """A square of `side` pixels whose middle is, where the border lets it, a moving pixel of the first frame."""
    places = (clip.moving[0, 0] > 0.5).nonzero()
    if len(places):
        center = places[pick(generator, len(places))].tolist()
    else:
        center = [pick(generator, size) for size in clip.moving.shape[-2:]]
    top, left = (min(max(c - side // 2, 0), s - side) for c, s in zip(center, clip.moving.shape[-2:], strict=True))
    cut = (..., slice(top, top + side), slice(left, left + side))
    return Footage(clip.frames[cut], clip.moving[cut])


def differences(frames: Tensor, axis: int) -> Tensor:
    return frames.diff(dim=axis)


def scaled_weights(network: nn.Module, size: Tensor) -> Weights:
    """The same autoencoder with latents of root mean square 1 / 0.18215 in every channel; now they have `size` `[4]`.

    Exact: the last convolution before the latents grows by what the first one after them shrinks.
    """
    weights = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    grow = 1 / (LATENT_SCALE * size)
    rows = torch.cat([grow, torch.ones_like(grow)])
    weights["quant_conv.weight"] *= rows.view(-1, 1, 1, 1)
    weights["quant_conv.bias"] *= rows
    # The other half of its outputs are the logarithms of the variances.
    weights["quant_conv.bias"][len(grow) :] += 2 * grow.log()
    weights["decoder.conv_in.weight"] /= grow.view(1, -1, 1, 1)
    return weights
