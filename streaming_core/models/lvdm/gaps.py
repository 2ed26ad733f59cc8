"""Counting latents: those that a prediction model makes, those between them, and gaps between two frames."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor


def base_latents(latents: int, stride: int) -> int:
    """Latents that a prediction model makes of a row of about `latents`, every `stride`-th, with both ends."""
    return 1 + round((latents - 1) / stride)


def latents_of_bases(bases: int, stride: int) -> int:
    """The row of which every `stride`-th latent, with both ends, is one of `bases`."""
    return 1 + (bases - 1) * stride


def standing_still(frame: Tensor, frames_per_latent: int) -> Tensor:
    """`[1, 3, H, W]` as the frames that one latent stands for."""
    return frame.expand(frames_per_latent, -1, -1, -1)


def gap_latents(num_frames: int, trained: int, frames_per_latent: int) -> int:
    """Latents of a gap of `num_frames`, both ends included: as many as the model was trained with, or more."""
    return max(trained, math.ceil((num_frames - 1) / frames_per_latent) + 1)


def gap_frames(num_frames: int, latents: int, frames_per_latent: int) -> list[int]:
    """Which of the decoded frames are those of a gap, evenly from the middle of the first latent to that of the last.

    The frames of these two stand still. Where there are enough others, those come next to the ends.
    """
    unit = frames_per_latent
    start, step = (unit - 1) / 2, unit * (latents - 1) / (num_frames - 1)
    frames = [math.floor(start + number * step + 0.5) for number in range(num_frames)]
    moving = [min(max(frame, unit), unit * (latents - 1) - 1) for frame in frames[1:-1]]
    chosen = [frames[0], *moving, frames[-1]]
    return chosen if all(a < b for a, b in pairwise(chosen)) else frames
