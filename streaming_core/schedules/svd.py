"""Noise levels and preconditioning of SVD-like models (reference: streamingsvd, section 8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SettingsError

ALIGN_YOUR_STEPS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""Noise levels found for SVD (Sabour et al., "Align Your Steps", arXiv:2404.14507, appendix)."""


def align_your_steps_sigmas(steps: int) -> Tensor:
    """The official StreamingSVD schedule: `steps + 1` float64 sigmas, 700 first, 0 last.

    The logarithms of the published levels are interpolated linearly to exactly `steps` points with both ends kept, and
    0 is appended. (ComfyUI's own Align Your Steps node interpolates to `steps + 1` points and overwrites the last.)
    Raises `SettingsError` below 2 steps, where both ends do not fit.
    """
    if steps < 2:
        raise SettingsError(f"Align Your Steps needs at least 2 steps to keep both ends of its table, got {steps}")
    levels = torch.tensor(ALIGN_YOUR_STEPS_SVD, dtype=torch.float64).log()
    position = torch.linspace(0, len(levels) - 1, steps, dtype=torch.float64)
    left = position.floor().long().clamp(max=len(levels) - 2)
    sigmas = torch.lerp(levels[left], levels[left + 1], position - left).exp()
    # The ends are table entries; keep them exact through log and exp.
    sigmas[0], sigmas[-1] = ALIGN_YOUR_STEPS_SVD[0], ALIGN_YOUR_STEPS_SVD[-1]
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """`steps + 1` float32 sigmas of Karras et al. (arXiv:2206.00364, eq. 5), 0 last; the first chunk uses 25 steps."""
    if steps < 1:
        raise SettingsError(f"a schedule needs at least 1 step, got {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


class Scalings(NamedTuple):
    """`denoised = c_out * network(c_in * x, c_noise) + c_skip * x`, each of the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def v_prediction_scalings(sigma: Tensor) -> Scalings:
    """v-prediction with EDM noise input (reference: streamingsvd, section 8)."""
    variance = sigma**2 + 1
    return Scalings(1 / variance, -sigma / variance.sqrt(), 1 / variance.sqrt(), 0.25 * sigma.log())
