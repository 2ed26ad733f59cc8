"""The official sampler as a host SAMPLER: DDIM that begins without any signal (reference: dropletvideo, section 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.schedules.ddim import ddim_step
from ....streaming_core.schedules.dropletvideo import DEFAULT_SCHEDULE, DropletSchedule, official_steps
from ..progress import SamplerCallback


class DropletDdim(comfy.samplers.Sampler):
    """A SAMPLER for the SIGMAS of as many steps; without the first ones it continues from the level of the rest."""

    def __init__(self, steps: int, schedule: DropletSchedule = DEFAULT_SCHEDULE) -> None:
        self.steps = steps
        self.schedule = schedule
        self.extra_options: dict[str, Any] = {}

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: SamplerCallback | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        inner = comfy.samplers.KSAMPLER(self._run)
        return inner.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    @torch.no_grad()
    def _run(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        count = len(sigmas) - 1
        if count > self.steps:
            raise SettingsError(
                f"the DropletVideo sampler was made for {self.steps} steps and got sigmas of {count}; take both from "
                "one DropletVideo Sampling node"
            )
        steps = official_steps(self.steps, self.schedule)[self.steps - count :]
        # The host measures noise per signal; the official sampler keeps the variance of signal and noise together.
        kept = x / (1 + sigmas[0] ** 2).sqrt()
        for number, step in enumerate(steps):
            sigma = sigmas[number]
            scale = (1 + sigma**2).sqrt()
            denoised = model(kept * scale, sigma.expand(x.shape[0]), **(extra_args or {}))
            if callback is not None:
                callback({"x": kept * scale, "i": number, "sigma": sigma, "denoised": denoised})
            # What the model said, from what the host made of it.
            velocity = (kept / scale - denoised) * scale / sigma
            kept = ddim_step(kept, velocity, step.alpha.to(x), step.alpha_next.to(x))
        return kept
