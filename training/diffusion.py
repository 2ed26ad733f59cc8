"""What SVD is trained on: clips as latents with their conditions, noise levels, and the loss.

Latents are at unit scale (the VAE's times 0.18215); the noise levels are those of inference, so the v-prediction
scalings of `streaming_core.schedules` apply unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from streaming_core.models.streamingsvd.blocks import sinusoid
from streaming_core.schedules.svd import v_prediction_scalings

from .footage import Clip
from .layout import LATENT_SCALE, host

FPS_ID = 6
AUGMENTATION = 0.02
EXTRA_WEIGHT_OF_MOVING = 3.0
USUAL_NOISE = 0.4
"""Mean of the logarithm of the noise level."""
DROPPED = 0.05
"""Share of clips that are shown neither the image latent nor its embedding: the unconditional half of guidance."""


@dataclass(frozen=True)
class Batch:
    """B clips of T frames. `latents` `[B, T, 4, h, w]` and those of the anchor, `image` `[B, 4, h, w]`, both at unit
    scale; its embedding `context` `[B, 1, C]`; `vector` `[B, V]`; how much moves, `moving` `[B, T, 1, h, w]`, 0 to 1.
    """

    latents: Tensor
    image: Tensor
    context: Tensor
    vector: Tensor
    moving: Tensor

    @property
    def frames(self) -> int:
        return self.latents.shape[1]


def randn(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Drawn on the CPU, so that every device gets the same."""
    return torch.randn(shape, generator=generator).to(like)


class Encoder:
    """From clips to a `Batch`: a frozen VAE and image tower."""

    def __init__(self, vae: nn.Module, clip_vision: Any, vector_width: int, device: torch.device):
        self.vae, self.clip_vision, self.vector_width, self.device = vae, clip_vision, vector_width, device

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """`[n, 3, H, W]` in 0..1 to unit-scale latents `[n, 4, h, w]` (posterior means)."""
        return self.vae.encode(frames.to(self.device) * 2 - 1) * LATENT_SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """One clip `[n, 4, h, w]` of unit scale to `[n, 3, H, W]` in 0..1."""
        return ((self.vae.decode(latents / LATENT_SCALE) + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """`[n, 3, H, W]` in 0..1 to `[n, 1, C]`."""
        # The host answers under inference mode; a copy made outside of it may take part in training.
        return host().svd.embed_image(self.clip_vision, frames).to(self.device).clone()

    def vectors(self, motion_buckets: list[int]) -> Tensor:
        """`[B, V]`: rate, motion bucket and augmentation level as SVD embeds them."""
        numbers = torch.tensor([[FPS_ID, bucket, AUGMENTATION] for bucket in motion_buckets])
        return sinusoid(numbers.flatten(), self.vector_width // 3).reshape(len(motion_buckets), -1).to(self.device)

    def _latents(self, clip: Clip) -> Tensor:
        return self.encode(clip.footage.frames) if clip.latents is None else clip.latents.to(self.device)

    def _images(self, clips: list[Clip], generator: torch.Generator) -> Tensor:
        """Latents of the anchors, `[B, 4, h, w]`, with the noise of inference in front of the encoder.

        Made beforehand they are without it, which changes them by a hundredth of what they are.
        """
        made = [clip.anchor_latent for clip in clips if clip.anchor_latent is not None]
        if len(made) == len(clips):
            return torch.stack(made).to(self.device)
        anchors = torch.cat([clip.anchor for clip in clips])
        # Level 0.02 on the scale of [-1, 1], half of it here.
        return self.encode(anchors + AUGMENTATION / 2 * randn(anchors.shape, generator, anchors))

    def batch(self, clips: list[Clip], generator: torch.Generator) -> Batch:
        """All clips are of one length and size."""
        anchors = torch.cat([clip.anchor for clip in clips])
        latents = torch.stack([self._latents(clip) for clip in clips])
        moving = torch.stack([clip.footage.moving for clip in clips]).to(self.device)
        # A latent moves as much as the most moving of its pixels.
        moving = F.adaptive_max_pool2d(rearrange(moving, "b t 1 h w -> b t h w"), latents.shape[-2:])
        return Batch(
            latents=latents,
            image=self._images(clips, generator),
            context=self.embed(anchors),
            vector=self.vectors([clip.motion_bucket_id for clip in clips]),
            moving=moving[:, :, None],
        )


def drop_conditions(batch: Batch, generator: torch.Generator) -> Batch:
    keep = (torch.rand(len(batch.latents), generator=generator) >= DROPPED).to(batch.latents)
    return replace(batch, image=batch.image * keep.view(-1, 1, 1, 1), context=batch.context * keep.view(-1, 1, 1))


def draw_sigmas(count: int, generator: torch.Generator, mean: float = USUAL_NOISE) -> Tensor:
    """`[count]`: ln sigma ~ N(mean, 1.4) for 85 %, uniform between ln 0.02 and ln 700 for the rest."""
    usual = mean + 1.4 * torch.randn(count, generator=generator)
    low, high = math.log(0.02), math.log(700.0)
    spread = low + (high - low) * torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < 0.85
    return torch.where(chosen, usual, spread).clamp(low, high).exp()


def weighted_error(squared: Tensor, moving: Tensor) -> Tensor:
    """Mean of `squared` `[B, T, C, h, w]`, four times as heavy where something moves."""
    weight = 1 + EXTRA_WEIGHT_OF_MOVING * moving
    return (weight * squared).sum() / (weight.sum() * squared.shape[2])


def moving_error(squared: Tensor, moving: Tensor) -> float:
    """Mean of `squared` `[B, T, C, h, w]` where something moves."""
    return float((moving * squared).sum() / (moving.sum() * squared.shape[2]))


def errors_of_parts(squared: Tensor, moving: Tensor, sigma: float, parts: Mapping[str, slice]) -> dict[str, float]:
    """`moving_error` of the named parts of the clips, by name and noise level."""
    return {f"{name}_{sigma:g}": moving_error(squared[:, frames], moving[:, frames]) for name, frames in parts.items()}


Network = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""`(x, timesteps, context, vector, frames) -> output`, all `[batch * frames, ...]`, as the UNet takes them."""


def predict(network: Network, batch: Batch, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network's output for `noisy` `[B, T, 4, h, w]` at `sigma` `[B]`, and the denoised clip it stands for."""
    wide = sigma.view(-1, 1, 1, 1, 1)
    scale = v_prediction_scalings(wide)
    image = batch.image[:, None].expand_as(noisy)
    each = {"t": batch.frames}
    output = network(
        rearrange(torch.cat([scale.c_in * noisy, image], dim=2), "b t ... -> (b t) ..."),
        repeat(v_prediction_scalings(sigma).c_noise, "b -> (b t)", **each),
        repeat(batch.context, "b ... -> (b t) ...", **each),
        repeat(batch.vector, "b ... -> (b t) ...", **each),
        batch.frames,
    )
    output = rearrange(output, "(b t) ... -> b t ...", t=batch.frames)
    return output, scale.c_out * output + scale.c_skip * noisy


def v_loss(network: Network, batch: Batch, generator: torch.Generator, noise: float = USUAL_NOISE) -> Tensor:
    """Squared error of the network's own output, four times as heavy where something moves.

    `noise`: mean of the logarithm of the noise level.
    """
    sigma = draw_sigmas(len(batch.latents), generator, noise).to(batch.latents)
    wide = sigma.view(-1, 1, 1, 1, 1)
    noisy = batch.latents + wide * randn(batch.latents.shape, generator, batch.latents)
    output, _ = predict(network, batch, noisy, sigma)
    scale = v_prediction_scalings(wide)
    target = (batch.latents - scale.c_skip * noisy) / scale.c_out
    return weighted_error((output - target) ** 2, batch.moving)


@torch.no_grad()
def moving_errors(network: Network, batch: Batch, sigma: float, parts: Mapping[str, slice]) -> dict[str, float]:
    """Mean squared error of the denoised latents where something moves, for the named parts of the clips.

    All at one noise level and with the same noise every time.
    """
    noise = randn(batch.latents.shape, torch.Generator().manual_seed(0), batch.latents)
    levels = torch.full((len(batch.latents),), sigma).to(batch.latents)
    _, denoised = predict(network, batch, batch.latents + sigma * noise, levels)
    return errors_of_parts((denoised - batch.latents) ** 2, batch.moving, sigma, parts)
