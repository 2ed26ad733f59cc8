"""DDIM with eta, ending at the lowest level instead of at no noise: the official sampler as a host SAMPLER."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ....streaming_core.schedules.modelscope import ddim_eta_step, signal_scale
from ..progress import SamplerCallback


def step_seed(seed: int) -> int:
    """The seed of step noise. The host draws the noise to start from with `seed` itself, on the CPU, too."""
    digest = hashlib.blake2b(f"ddim {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _FromNoise(comfy.samplers.KSAMPLER):
    """Starts from unit noise at whatever level comes first; the host would do so at the highest level only."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return True


class Ddim(comfy.samplers.Sampler):
    """A SAMPLER. `eta` 1 is official; `noises` replays recorded step noise instead of drawing it from the seed.

    Step noise comes from a CPU generator, so results do not depend on the device.
    """

    def __init__(self, eta: float = 1.0, noises: Sequence[Tensor] | None = None):
        self.eta = eta
        self.noises = noises
        self.extra_options = {"eta": eta}

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
        empty = latent_image is None or not torch.count_nonzero(latent_image)
        inner = (_FromNoise if empty else comfy.samplers.KSAMPLER)(self._run)
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
        extra_args = extra_args or {}
        generator = torch.Generator("cpu").manual_seed(step_seed(extra_args.get("seed") or 0))
        for step in range(len(sigmas) - 1):
            denoised = model(x, sigmas[step].expand(x.shape[0]), **extra_args)
            if callback is not None:
                callback({"x": x, "i": step, "sigma": sigmas[step], "denoised": denoised})
            noise = self.noises[step] if self.noises else torch.randn(x.shape, generator=generator)
            x = ddim_eta_step(x, denoised, sigmas[step], sigmas[step + 1], self.eta, noise.to(x))
        return x * signal_scale(sigmas[-1])
