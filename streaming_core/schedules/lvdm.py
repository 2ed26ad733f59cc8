"""LVDM's noise levels and its official samplers, DDIM with eta 1 and DDPM (reference: lvdm, section 5).

DDPM is DDIM with eta 1 on every level, so both are `modelscope.ddim_eta_step` on levels of their own. Timesteps count 0
to 999; levels are given as sigma, noise per unit of signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingsError
from .ddim import TRAIN_TIMESTEPS, scaled_linear_betas


@dataclass(frozen=True)
class LvdmSchedule:
    """Betas whose roots rise linearly. Defaults are those of the unconditional and the long models."""

    beta_start: float = 0.0015
    beta_end: float = 0.0155

    def betas(self) -> Tensor:
        """Noise added per level, `[1000]` float64."""
        return scaled_linear_betas(self.beta_start, self.beta_end)

    def alphas_cumprod(self) -> Tensor:
        """Signal variance at each level, `[1000]` float64."""
        return (1 - self.betas()).cumprod(0)


VIDEO_SCHEDULE = LvdmSchedule()
TEXT_SCHEDULE = LvdmSchedule(0.00085, 0.012)


def ddim_timesteps(steps: int, levels: int = TRAIN_TIMESTEPS) -> Tensor:
    """The official timesteps, rising, int64: multiples of `levels // steps`, plus one.

    Where `steps` does not divide 1000, they are officially more than `steps`: 31 for 30.

    Raises:
        SettingsError: fewer than 1 step, more than there are levels, or a number whose last timestep is none.
    """
    if not 1 <= steps <= levels:
        raise SettingsError(f"LVDM takes 1 to {levels} DDIM steps, got {steps}")
    if _beyond(steps, levels):
        fitting = [count for count in range(1, levels) if not _beyond(count, levels)]
        near = sorted(fitting, key=lambda count: abs(count - steps))[:2]
        raise SettingsError(
            f"LVDM's DDIM has no table for {steps} steps, because it would begin above the last noise level; use "
            f"{' or '.join(map(str, sorted(near)))} steps"
        )
    return torch.arange(0, levels, levels // steps) + 1


def _beyond(steps: int, levels: int) -> bool:
    return (levels - 1) % (levels // steps) == 0 and levels // steps < levels


def ddim_sigmas(steps: int, schedule: LvdmSchedule = VIDEO_SCHEDULE) -> Tensor:
    """Levels of the official DDIM, falling, float32. The last is that of timestep 0, so a trace of noise is left.

    Raises:
        SettingsError: as `ddim_timesteps`.
    """
    timesteps = torch.cat([ddim_timesteps(steps).flip(0), torch.zeros(1, dtype=torch.long)])
    return _sigmas(schedule)[timesteps]


def ddpm_sigmas(schedule: LvdmSchedule = VIDEO_SCHEDULE) -> Tensor:
    """All 1000 levels and 0, `[1001]` float32, falling."""
    sigmas = _sigmas(schedule).flip(0)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _sigmas(schedule: LvdmSchedule) -> Tensor:
    alphas = schedule.alphas_cumprod()
    return ((1 - alphas) / alphas).sqrt().float()
