"""DropletVideo's noise levels and its official sampler, DDIM (reference: dropletvideo, section 8).

Timesteps count 0 to 999; `alphas_cumprod` is the share of signal variance at each, exactly 0 at the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, SettingsError
from .ddim import TRAIN_TIMESTEPS, sigmas_of, zero_terminal_snr

FIXED = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "thresholding": False,
    "trained_betas": None,
}
"""Entries of scheduler_config.json for which there is one value; defaults of the other are not published."""


@dataclass(frozen=True)
class DropletSchedule:
    """Betas whose roots rise linearly, rescaled so that the last level holds no signal."""

    num_train_timesteps: int = TRAIN_TIMESTEPS
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def alphas_cumprod(self) -> Tensor:
        """Signal variance at each level, `[num_train_timesteps]` float32; exactly 0 at the last."""
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps, dtype=torch.float32)
        return (1 - zero_terminal_snr(roots**2)).cumprod(0)


DEFAULT_SCHEDULE = DropletSchedule()


@dataclass(frozen=True)
class Step:
    """One DDIM update: the model is asked at `timestep`, and signal variance goes from `alpha` to `alpha_next`."""

    timestep: int
    alpha: Tensor
    alpha_next: Tensor


def schedule_from(settings: Mapping[str, Any]) -> DropletSchedule:
    """The schedule that a scheduler_config.json describes; what it leaves out is as published.

    `snr_shift_scale` has no effect, as officially.

    Raises:
        CheckpointError: a schedule of another kind.
    """
    for name, value in FIXED.items():
        if name in settings and settings[name] != value:
            raise CheckpointError(
                f"scheduler_config.json has {name} {settings[name]!r}, and DropletVideo samples with {value!r} only; "
                "use the file that belongs to its weights"
            )
    known = {field.name for field in fields(DropletSchedule)}
    return DropletSchedule(**{name: value for name, value in settings.items() if name in known})


def trailing_timesteps(steps: int, timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Timesteps in "trailing" spacing: `[steps]` int64, falling from the last level; 999, 979, ... 19 for 50.

    Raises:
        SettingsError: fewer than 1 step or more than there are levels.
    """
    if not 1 <= steps <= timesteps:
        raise SettingsError(f"DropletVideo takes 1 to {timesteps} steps, got {steps}")
    stride = timesteps / steps
    return torch.tensor([round(timesteps - index * stride) - 1 for index in range(steps)])


def official_steps(steps: int, schedule: DropletSchedule = DEFAULT_SCHEDULE) -> list[Step]:
    """The updates of the official sampler, for `ddim.ddim_step`.

    Each lands 1000 // steps levels below its timestep, which need not be where the model is asked next: of 3
    steps, the second is asked at 666 and lands at 333, and the third is asked at 332.

    Raises:
        SettingsError: as `trailing_timesteps`.
    """
    total = schedule.num_train_timesteps
    alphas, one = schedule.alphas_cumprod(), torch.ones(())
    stride = total // steps if steps else 0
    return [
        Step(timestep, alphas[timestep], alphas[timestep - stride] if timestep >= stride else one)
        for timestep in trailing_timesteps(steps, total).tolist()
    ]


def dropletvideo_sigmas(steps: int, schedule: DropletSchedule = DEFAULT_SCHEDULE) -> Tensor:
    """Noise per unit of signal at the official timesteps, `[steps + 1]` float32, falling to 0.

    For k-diffusion samplers, which need some signal: that at the first level is `ddim.LEAST_SIGNAL` and not 0.

    Raises:
        SettingsError: as `trailing_timesteps`.
    """
    return sigmas_of(trailing_timesteps(steps, schedule.num_train_timesteps), schedule.alphas_cumprod())
