"""Known latents in a prediction or interpolation model (reference: lvdm, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SettingsError
from ...schedules.ddim import add_noise
from ...schedules.lvdm import VIDEO_SCHEDULE, LvdmSchedule


def perturbed(known: Tensor, noise: Tensor, level: int | None, schedule: LvdmSchedule = VIDEO_SCHEDULE) -> Tensor:
    """`known` latents with the noise of `level`, 0 to 999; None leaves them clean. The network is told the level."""
    if level is None:
        return known
    if not 0 <= level < len(schedule.alphas_cumprod()):
        raise SettingsError(f"the noise level of known latents is 0 to 999, got {level}")
    alpha = schedule.alphas_cumprod()[level].to(device=known.device, dtype=torch.float32)
    return add_noise(known, noise, alpha).to(known.dtype)


def nearest_level(noise_per_signal: float, highest: int, schedule: LvdmSchedule = VIDEO_SCHEDULE) -> int:
    """The level of at most `highest` whose noise is nearest to that much, as in `loop.remedies.Perturbation`."""
    alphas = schedule.alphas_cumprod()[: highest + 1]
    return int((((1 - alphas) / alphas).sqrt() - noise_per_signal).abs().argmin())


def known_places(length: int, first: int, last: int = 0) -> Tensor:
    """Which of `length` latents are known, `[length]` bool: the `first` first and the `last` last ones."""
    places = torch.arange(length)
    return (places < first) | (places >= length - last)


def mask_channel(places: Tensor, like: Tensor) -> Tensor:
    """1 at the `places` `[T]` and 0 elsewhere, `[B, 1, T, h, w]` with type and device of latents `like`."""
    row = places.to(like).reshape(1, 1, -1, 1, 1)
    return row.expand(like.shape[0], 1, -1, *like.shape[-2:])
