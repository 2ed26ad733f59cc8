"""Remedies against drift that act on the tail: noise on it, and guidance against what a model makes without it.

Both come from LVDM (arXiv 2211.13221; reference: lvdm, sections 6.3 and 6.4). What they share: an amount that may grow
from chunk to chunk, and the part of sampling in which they act.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SettingsError
from .chunk import Chunk

MOST = 1.0
"""Growth ends here, or at the amount itself where that is higher."""


@dataclass(frozen=True)
class Remedy:
    """How much of a remedy each chunk gets, and in which part of sampling.

    Attributes:
        amount: in the first chunk that has a tail; 0 or more.
        growth: what every later chunk adds to it, up to `MOST`; 0 or more.
        start, end: where in sampling it begins and ends, 0 (all noise) to 1 (none), as for the host's ControlNets.

    Raises:
        SettingsError: a number out of its range, or no sampling between `start` and `end`.
    """

    amount: float = 0.0
    growth: float = 0.0
    start: float = 0.0
    end: float = 1.0

    node: ClassVar[str] = ""
    """The node that sets it, for errors."""

    def __post_init__(self) -> None:
        if not (self.amount >= 0 and self.growth >= 0):
            raise SettingsError(f"{self.node} takes numbers of 0 and more, got {self.amount:g} and {self.growth:g}")
        if not 0 <= self.start < self.end <= 1:
            raise SettingsError(
                f"{self.node} would act on no step: start_percent must be below end_percent, both from 0 to 1, got "
                f"{self.start:g} and {self.end:g}"
            )

    @property
    def is_on(self) -> bool:
        """Whether any chunk gets any of it."""
        return self.amount > 0 or self.growth > 0

    @property
    def is_whole(self) -> bool:
        """Whether it acts from the beginning of sampling to its end."""
        return self.start == 0 and self.end == 1

    @property
    def is_constant(self) -> bool:
        """Whether all chunks and all of their steps get the same, none included."""
        return not self.is_on or (self.is_whole and not self.growth)

    def at(self, index: int) -> float:
        """The amount for chunk `index`: `amount` for chunk 1, `growth` more for each later one."""
        return min(self.amount + self.growth * max(0, index - 1), max(self.amount, MOST))

    def identity(self, name: str) -> dict[str, Any]:
        """As plain values, the amount called `name`; what is at its default is left out, nothing where it is off."""
        if not self.is_on:
            return {}
        changed = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        defaults = {each.name: each.default for each in fields(self)[1:]}
        return {name: self.amount, **{key: value for key, value in changed.items() if value != defaults[key]}}


class Perturbation(Remedy):
    """Noise on the tail that the model sees; the video keeps the clean one (LVDM's conditional perturbation).

    `amount`: for frames the standard deviation on their scale of 0 to 1; for latents noise per signal, which a family
    that is told the level turns into its own label: sqrt((1 - a) / a).
    """

    node = "Perturb Tail"


class PreviousGuidance(Remedy):
    """Guidance `e + w (e_c - e_u)`, where `e_u` is what the model makes without the tail. `amount`: w.

    Ours differs from LVDM's release, whose sampler writes the tail into the noisy latent before both model calls: there
    `e_u` still sees it. One more model call per step.
    """

    node = "Previous Chunk Guidance"


def perturbed_frames(tail: Tensor, level: float, chunk: Chunk) -> Tensor:
    """Frames `[k, 3, H, W]` in [0, 1] with noise of standard deviation `level`, drawn from the chunk's seed."""
    # A generator of its own: the family's noise stays what it is without the perturbation.
    generator = torch.Generator("cpu").manual_seed(chunk.generator().initial_seed() ^ 0x7E57)
    noise = torch.randn(tail.shape, generator=generator).to(tail)
    return (tail + level * noise).clamp(0, 1)
