"""Stage ms_unet: the base text-to-video UNet of StreamingModelscope, on videos with captions.

Noise is predicted on the published betas, as the pack's MODEL samples it. What is not trained is in
`modelscope_towers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.attention import Compute
from streaming_core.models.modelscope.config import UNet3DConfig
from streaming_core.models.modelscope.unet import Merge, VideoUNet
from streaming_core.schedules.modelscope import published_alphas_cumprod

from .configs import DEMO_MODELSCOPE, DEMO_TEXT_TO_VIDEO
from .diffusion import Encoder, errors_of_parts, randn, weighted_error
from .first_weights import enter_in_pairs, leave_from_pairs
from .footage import Clip, VideoSource, clip_of, pick
from .layout import CPU, Base, Weights, initialize, silence
from .modelscope_towers import Prompts
from .task import Clips
from .videos import HELD_OUT, make_video

UNPROMPTED_SHARE = 0.1
"""Share of clips without prompt, and without anchor where there is one: the unconditional half of guidance."""
MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (1.0, 3.0, 14.0)


class TimeConv(nn.Conv3d):
    """A convolution over frames alone, as one of two dimensions, which the CPU computes several times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.flatten(3), self.weight.flatten(3), self.bias, padding=(1, 0))
        return y.unflatten(3, x.shape[3:])


class TrainingOperations:
    """Layers of the networks while they are trained."""

    Linear, Conv1d, Conv2d, Conv3d = nn.Linear, nn.Conv1d, nn.Conv2d, TimeConv
    GroupNorm, LayerNorm = nn.GroupNorm, nn.LayerNorm


def silence_branches(network: nn.Module) -> None:
    """Every block starts as the identity."""
    silence(network, ".conv2", ".conv4.3", ".proj_out")


def new_base_unet(config: UNet3DConfig, generator: torch.Generator) -> VideoUNet:
    """A UNet that begins by taking all it is given for noise: its input, normed.

    Without that path it would spend most of a short training on learning to copy.
    """
    unet = initialize(VideoUNet(config, operations=TrainingOperations), generator)
    silence_branches(unet)
    enter_in_pairs(unet.conv_in, config.in_channels)
    nn.init.zeros_(unet.conv_out.weight)
    leave_from_pairs(unet.conv_out, config.in_channels)
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    below = shortcut.in_channels - config.channels[0]
    with torch.no_grad():
        for channel in range(2 * config.in_channels):
            shortcut.weight[channel] = 0.0
            shortcut.weight[channel, below + channel] = 1.0
    return unet


@dataclass(frozen=True)
class CaptionedClip:
    """A clip and what it shows, in words."""

    clip: Clip
    caption: str


def draw_captioned(
    source: VideoSource, generator: torch.Generator, frames: int, starts: range, anchor_frame: int | None
) -> CaptionedClip:
    """As `VideoSource.draw`; the caption is that of the anchor frame, or else of the clip's first frame."""
    video = make_video(
        pick(generator, source.pool.num_videos if source.pool else HELD_OUT), source.size, source.variety
    )
    start = starts[pick(generator, len(starts))]
    clip = clip_of(video, frames, start, anchor_frame)
    if source.pool:
        clip = replace(clip, latents=source.pool.latents[video.seed, start : start + frames].float())
    return CaptionedClip(clip, video.caption(start if anchor_frame is None else anchor_frame))


@dataclass(frozen=True)
class ClipBatch:
    """B clips: unit-scale `latents` `[B, T, 4, h, w]`, and `moving` `[B, T, 1, h, w]`, 0 to 1."""

    latents: Tensor
    moving: Tensor

    @property
    def frames(self) -> int:
        return self.latents.shape[1]


def clip_batch(encoder: Encoder, clips: list[Clip]) -> ClipBatch:
    latents = [encoder.encode(clip.footage.frames) if clip.latents is None else clip.latents for clip in clips]
    latents = torch.stack([each.to(encoder.device) for each in latents])
    moving = torch.stack([clip.footage.moving[:, 0] for clip in clips]).to(encoder.device)
    return ClipBatch(latents, F.adaptive_max_pool2d(moving, latents.shape[-2:])[:, :, None])


SIGMAS = ((1 - published_alphas_cumprod()) / published_alphas_cumprod()).sqrt().float()


def nearest_timesteps(sigmas: Tensor, levels: Tensor = SIGMAS) -> Tensor:
    """Timesteps 0..999 of the `levels` nearest to `sigmas`, in the logarithm, as the host rounds."""
    return (sigmas.log()[:, None] - levels.log()).abs().argmin(dim=1)


def draw_timesteps(count: int, generator: torch.Generator, levels: Tensor = SIGMAS) -> Tensor:
    """`[count]`: ln sigma ~ N(1, 1.1) for 75 %, uniform over the logarithms of the `levels` for the rest."""
    usual = 1.0 + 1.1 * torch.randn(count, generator=generator)
    low, high = math.log(0.1), math.log(float(levels[-1]))
    spread = low + (high - low) * torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < 0.75
    return nearest_timesteps(torch.where(chosen, usual, spread).exp(), levels)


def run_base(unet: VideoUNet, memory: Tensor, x: Tensor, timesteps: Tensor, merge: Merge | None = None) -> Tensor:
    """Predicted noise for `x` `[B, T, 4, h, w]` of unit variance; `memory` from `project_context`."""
    noise = unet(rearrange(x, "b t ... -> (b t) ..."), timesteps.float(), memory, merge, Compute())
    return rearrange(noise, "(b t) ... -> b t ...", b=len(x))


Predict = Callable[[Tensor, Tensor], Tensor]
"""`(x, timesteps) -> noise`: `x` `[B, T, 4, h, w]` of unit variance, timesteps `[B]`."""


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees, `[B, T, 4, h, w]` of unit variance, and the noise levels `[B, 1, 1, 1, 1]`."""
    sigma = SIGMAS[timesteps].to(latents).view(-1, 1, 1, 1, 1)
    return (latents + sigma * noise) / (1 + sigma**2).sqrt(), sigma


def noise_loss(predict: Predict, batch: ClipBatch, generator: torch.Generator) -> Tensor:
    """Squared error of `predict(x, timesteps)`, four times as heavy where something moves.

    Weighted with 1 + sigma^2: near pure noise that is the error of the clip itself, which decides there, and near none
    that of the noise. It equals the error of a v-prediction.
    """
    timesteps = draw_timesteps(len(batch.latents), generator)
    noise = randn(batch.latents.shape, generator, batch.latents)
    x, sigma = noised(batch.latents, noise, timesteps)
    return weighted_error((1 + sigma**2) * (predict(x, timesteps.to(x.device)) - noise) ** 2, batch.moving)


@torch.no_grad()
def moving_noise_errors(
    predict: Predict, batch: ClipBatch, sigma: float, parts: Mapping[str, slice]
) -> dict[str, float]:
    """Squared error of the denoised latents where something moves, for parts of the clips; always the same noise."""
    noise = randn(batch.latents.shape, torch.Generator().manual_seed(0), batch.latents)
    timesteps = nearest_timesteps(torch.full((len(noise),), sigma))
    x, level = noised(batch.latents, noise, timesteps)
    squared = (level * (predict(x, timesteps.to(x.device)) - noise)) ** 2
    return errors_of_parts(squared, batch.moving, sigma, parts)


class ModelscopeUnetTask:
    """Clips and their captions, which are left out for a tenth of them. `base` holds the VAE.

    `start`: what another run of this stage wrote, to begin with.
    """

    stage = "ms_unet"

    def __init__(
        self,
        base: Base,
        clips: Clips,
        config: UNet3DConfig = DEMO_TEXT_TO_VIDEO,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.clips, self.source, self.starts = clips, clips.source, clips.starts(clips.frames)
        self.network = new_base_unet(config, torch.Generator().manual_seed(seed)).to(device)
        if start is not None:
            self.network.load_state_dict(start)
        self.encoder = Encoder(base.vae(device), None, 0, device)
        self.prompts = Prompts(DEMO_MODELSCOPE.text_encoder, device)
        self.measured: tuple[ClipBatch, Tensor] | None = None

    def settings(self) -> dict[str, Any]:
        return self.clips.settings()

    def loss(self, generator: torch.Generator) -> Tensor:
        frames, batch = self.clips.frames, self.clips.batch
        drawn = [draw_captioned(self.source, generator, frames, self.starts, None) for _ in range(batch)]
        prompted = [bool(draw >= UNPROMPTED_SHARE) for draw in torch.rand(batch, generator=generator)]
        captions = [each.caption if has else "" for each, has in zip(drawn, prompted, strict=True)]
        text = torch.cat([self.prompts(caption) for caption in captions])
        clips = clip_batch(self.encoder, [each.clip for each in drawn])
        return noise_loss(self._predict(text), clips, generator)

    def _predict(self, text: Tensor) -> Predict:
        memory = self.network.project_context(text)
        return lambda x, timesteps: run_base(self.network, memory, x, timesteps)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of held-out videos: `error` with their captions, `untold` without any."""
        if self.measured is None:
            videos = self.clips.held_out(MEASURED_VIDEOS)
            batch = clip_batch(self.encoder, [clip_of(video, self.clips.frames, 0, None) for video in videos])
            self.measured = batch, torch.cat([self.prompts(video.caption(0)) for video in videos])
        (batch, text), errors = self.measured, {}
        for sigma in MEASURED_SIGMAS:
            errors.update(moving_noise_errors(self._predict(text), batch, sigma, {"error": slice(None)}))
            errors.update(moving_noise_errors(self._predict(0 * text), batch, sigma, {"untold": slice(None)}))
        return errors

    def weights(self) -> Weights:
        """The base UNet's file, whose names are the network's own."""
        return {key: tensor.detach() for key, tensor in self.network.state_dict().items()}
