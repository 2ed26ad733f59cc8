"""The random numbers of one model call of LVDM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """All random numbers of one model call: unit noise of its latents and of the known ones, a seed for the sampler."""

    latent: Tensor
    sampler_seed: int
    known: Tensor


def draw(generator: torch.Generator, shape: tuple[int, ...], axis: int, known: int) -> Draws:
    """Draw on the CPU. What is drawn for known latents changes nothing of the rest."""
    latent = torch.randn(shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    part = list(shape)
    part[axis] = known
    return Draws(latent, seed, torch.randn(part, generator=generator))
