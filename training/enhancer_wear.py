"""How clips are worn for the enhancer to mend: shrunk, made noisy as small images, and enlarged again.

The autoencoder takes away all wear finer than its latents, so only what is as coarse as they are is left to mend. The
pool holds latents of clean videos; shrinking latents comes close to encoding shrunk images (of ten pixels in place of
96: a root mean square of 0.10 apart, where doing nothing is 0.15), and needs no encoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import Encoder, randn

PIXELS_PER_LATENT = 8
"""Pixels along a side of what one latent stands for."""
COARSEST, WORST_NOISE = 0.6, 0.09
NOISY_SHARE = 0.75
SPECKLE = 0.6
"""How latents answer to speckles, as a share of how they answer to a flat color; measured on videos of ten pixels."""


@dataclass(frozen=True)
class Wear:
    """`grid_share`: pixels of the small image per latent of the clip, along a side; `noise`: standard deviation of
    the small image's noise, in pixels of 0..1, new in each frame.
    """

    grid_share: float
    noise: float


def draw_wear(generator: torch.Generator, share: float) -> Wear | None:
    """None for all but a `share` of clips."""
    draws = torch.rand(4, generator=generator).tolist()
    if draws[0] >= share:
        return None
    noise = WORST_NOISE * draws[2] if draws[3] < NOISY_SHARE else 0.0
    return Wear(COARSEST + (1 - COARSEST) * draws[1], noise)


def color_axes(encoder: Encoder, size: int, gray: float = 0.3, step: float = 0.2) -> Tensor:
    """How latents answer to red, green and blue, `[3, 4]` per unit, around a gray image."""
    colors = gray + step * torch.cat([torch.zeros(1, 3), torch.eye(3)])
    latents = encoder.encode(colors.view(4, 3, 1, 1).expand(-1, -1, size, size)).mean(dim=(2, 3))
    return (latents[1:] - latents[:1]) / step


def through(images: Tensor, grid: int, noise: Tensor | float = 0.0) -> Tensor:
    """`[F, C, H, W]` shrunk to a square of `grid`, with `noise` `[F, C, grid, grid]` added there, and enlarged."""
    if grid < images.shape[-1]:
        small = F.interpolate(images, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
        return enlarged(small + noise, images.shape[-1])
    return images + noise


def enlarged(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)


def worn_latents(latents: Tensor, wear: Wear | None, axes: Tensor, generator: torch.Generator) -> Tensor:
    """Latents of a clip `[F, 4, h, w]` about as if its images had been worn; `axes` from `color_axes`."""
    if wear is None:
        return latents
    side = latents.shape[-1]
    grid = max(2, round(wear.grid_share * side))
    noise = SPECKLE * wear.noise * randn((len(latents), 3, grid, grid), generator, latents)
    seen = F.avg_pool2d(enlarged(noise, PIXELS_PER_LATENT * side), PIXELS_PER_LATENT)
    return through(latents, grid) + torch.einsum("fchw,cl->flhw", seen, axes)


def worn_image(frames: Tensor, wear: Wear | None, generator: torch.Generator | None = None) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1, worn; without a generator, without noise."""
    if wear is None:
        return frames
    grid = max(2, round(wear.grid_share * frames.shape[-1] / PIXELS_PER_LATENT))
    noise = 0.0 if generator is None else wear.noise * randn((*frames.shape[:2], grid, grid), generator, frames)
    return through(frames, grid, noise).clamp(0, 1)
