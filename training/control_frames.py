"""What control frames look like when a model made them: noisy, with other colors, with colored specks.

CAM is trained on such frames, because in a long video it sees what earlier chunks got wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import randn

DRIFT_MIX, DRIFT_OFFSET = 0.08, 0.04
"""Standard deviations of what is mixed into each color channel of frames in 0..1: of each channel, and of white."""
WORST_PIXEL_NOISE = 0.06
"""Control frames get noise of up to this standard deviation on the scale of [-1, 1]."""
MOST_SPECKS, SPECK_PX, SPECK_SIZE = 0.08, 8, 0.6
"""Share of the places that have one, their distance in pixels, and the standard deviation of a color in 0..1."""


def with_drift(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1 with all colors changed alike: gain, hue and brightness, by one draw."""
    mix = torch.eye(3).to(frames) + DRIFT_MIX * randn((3, 3), generator, frames)
    offset = DRIFT_OFFSET * randn((3, 1, 1), generator, frames)
    return (torch.einsum("oi,fihw->fohw", mix, frames) + offset).clamp(0, 1)


def with_specks(frames: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1 with round specks of any color, other ones in each, on a share of the places."""
    places = (len(frames), 1, frames.shape[2] // SPECK_PX, frames.shape[3] // SPECK_PX)
    there = torch.rand(places, generator=generator).to(frames) < density
    colors = SPECK_SIZE * randn((places[0], 3, *places[2:]), generator, frames)
    return (frames + F.interpolate(there * colors, size=frames.shape[-2:], mode="bilinear")).clamp(0, 1)


def with_pixel_noise(frames: Tensor, draw: float, generator: torch.Generator) -> Tensor:
    """Frames in 0..1 to [-1, 1], with noise for the upper half of the values of `draw`, 0 to 1."""
    level = WORST_PIXEL_NOISE * max(0.0, 2 * draw - 1)
    return frames * 2 - 1 + level * randn(frames.shape, generator, frames)
