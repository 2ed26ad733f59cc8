"""Noise schedule and solver of the MS-Vid2Vid refiner (reference: streamingmodelscope, section 6.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SettingsError

LEVELS = 1000


def _cosine_log_snr(times: Tensor, shift: float, log_snr_max: float = 15.0) -> Tensor:
    """Cosine log signal-to-noise ratio, moved towards noise for larger images by `2 ln(1 / shift)`.

    Hoogeboom et al., "simple diffusion", arXiv:2301.11093, eq. 5.
    """
    low, high = math.atan(math.exp(log_snr_max / 2)), math.atan(math.exp(-log_snr_max / 2))
    return -2 * torch.log(torch.tan(low + times * (high - low))) + 2 * math.log(1 / shift)


def refiner_noise(levels: int = LEVELS, shifts: tuple[float, float] = (2.0, 4.0)) -> Tensor:
    """Standard deviation of the noise at each level, `[levels]` float32, the last exactly 1.

    Signal has what is left of unit variance.
    """
    times = torch.linspace(1, 0, levels)
    fine, coarse = (_cosine_log_snr(times, shift) for shift in shifts)
    noise = torch.sigmoid(-(times * fine + (1 - times) * coarse)).sqrt()
    # Published with the levels falling; the network counts them rising.
    low, high = noise.min(), noise.max()
    return low + (1 - low) / (high - low) * (noise - low)


def signal_of(noise: Tensor) -> Tensor:
    """Signal that goes with `noise` where both variances add up to 1."""
    return (1 - noise**2).sqrt()


def trailing_timesteps(steps: int, last_level: int) -> Tensor:
    """Levels from `last_level` down, float32. Rounding of the stride decides the count (31 points for 30 steps)."""
    if steps < 1:
        raise SettingsError(f"the refiner needs at least 1 step, got {steps}")
    stride = (last_level + 1) / (steps + 1)
    return torch.arange(last_level, -1, -stride).clamp(0, last_level)


def refiner_sigmas(steps: int, last_level: int, noise: Tensor | None = None) -> Tensor:
    """Noise per signal for the solver, float32: falling, the second-to-last entry dropped, a 0 at the end."""
    noise = refiner_noise() if noise is None else noise
    levels = (noise / signal_of(noise)).log()
    position = trailing_timesteps(steps, last_level)
    below, above = position.floor().long(), position.ceil().long()
    sigmas = torch.lerp(levels[below], levels[above], position - below).exp()
    return torch.cat([sigmas[:-1], sigmas.new_zeros(1)])


def rescaled_guidance(cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
    """Guidance whose result is partly brought back to the spread of `cond` (Lin et al., arXiv:2305.08891, eq. 15, 16).

    Spreads are over everything but the batch.
    """
    guided = uncond + scale * (cond - uncond)
    dims = tuple(range(1, guided.ndim))
    factor = cond.std(dims, keepdim=True) / (guided.std(dims, keepdim=True) + 1e-12)
    return guided * (rescale * factor + 1 - rescale)
