"""Solvers written out, to replay recorded loops. The pack itself samples with the host's own solvers."""

from __future__ import annotations

import math

from torch import Tensor

from streaming_core.schedules.vid2vid import signal_of


def initial_noise_scale(sigma_max: float) -> float:
    """Factor that brings unit noise to the start of sampling at `sigma_max`."""
    return math.sqrt(1 + sigma_max**2)


def level_of(sigma: Tensor, noise: Tensor) -> Tensor:
    """The whole level nearest to `sigma` in log space, int64."""
    levels = (noise / signal_of(noise)).log()[:-1]
    above = (levels < sigma.log()).sum().clamp(1, len(levels) - 1)
    weight = (sigma.log() - levels[above - 1]) / (levels[above] - levels[above - 1])
    return (above - 1 + weight).round().long()


def dpmpp_2m_sde_step(
    x: Tensor, clean: Tensor, before: Tensor | None, sigmas: Tensor, step: int, noise: Tensor | None
) -> Tensor:
    """One update of DPM-Solver++(2M) SDE, midpoint, eta 1 (Lu et al., arXiv:2211.01095).

    `clean` is the denoised estimate at `sigmas[step]`, `before` the one of the step before (None at the first),
    `noise` has unit variance and is not used in the last step, which returns `clean`.
    """
    sigma, after = sigmas[step], sigmas[step + 1]
    if after == 0:
        return clean
    h = sigma.log() - after.log()
    gain = -(-2 * h).expm1()
    x = after / sigma * (-h).exp() * x + gain * clean
    if before is not None:
        h_before = sigmas[step - 1].log() - sigma.log()
        x = x + 0.5 * gain * (h / h_before) * (clean - before)
    assert noise is not None, "every step but the last draws noise"
    return x + noise * after * gain.sqrt()
