"""Counting latents: those that a prediction model makes, those between them, and gaps between two frames."""

from __future__ import annotations

import math

from torch import Tensor

LEAST_LATENTS = 3
"""Two ends and something between them."""


def base_latents(latents: int, stride: int) -> int:
    """Latents that a prediction model makes of a row of about `latents`, every `stride`-th, with both ends."""
    return 1 + round((latents - 1) / stride)


def latents_of_bases(bases: int, stride: int) -> int:
    """The row of which every `stride`-th latent, with both ends, is one of `bases`."""
    return 1 + (bases - 1) * stride


def standing_still(frame: Tensor, frames_per_latent: int) -> Tensor:
    """`[1, 3, H, W]` as the frames that one latent stands for."""
    return frame.expand(frames_per_latent, -1, -1, -1)


def gap_frames(latents: int, frames_per_latent: int) -> int:
    """Frames of a gap of that many latents, whose first and last one stand for frames that stand still.

    Of those frames only the inner one counts at each end, or the video would stop there.
    """
    return frames_per_latent * latents - 2 * (frames_per_latent - 1)


def gap_latents(num_frames: int, frames_per_latent: int) -> int:
    """The fewest latents of a gap of at least `num_frames`, both ends included."""
    return max(LEAST_LATENTS, math.ceil((num_frames + 2 * (frames_per_latent - 1)) / frames_per_latent))
