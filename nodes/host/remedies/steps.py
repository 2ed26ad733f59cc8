"""The part of sampling in which a remedy acts, in noise levels of a MODEL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.remedies import Remedy


@dataclass(frozen=True)
class SigmaRange:
    """Noise levels from `highest` down to `lowest`, both included, as the host compares them for ControlNets."""

    highest: float = math.inf
    lowest: float = 0.0

    @classmethod
    def of(cls, model: ModelPatcher, remedy: Remedy) -> SigmaRange:
        """Where `remedy` acts when `model` is sampled."""
        sampling = model.get_model_object("model_sampling")
        highest = math.inf if remedy.start == 0 else float(sampling.percent_to_sigma(remedy.start))
        lowest = 0.0 if remedy.end == 1 else float(sampling.percent_to_sigma(remedy.end))
        return cls(highest, lowest)

    def holds(self, sigma: Tensor) -> bool:
        """Whether a model call at `sigma`, `[1]` or one per row, is within."""
        if self == SigmaRange():
            return True
        return self.lowest <= float(sigma.max()) <= self.highest

    def is_in(self, transformer_options: Mapping[str, Any]) -> bool:
        """The same for a call of the network, which the host tells the level of."""
        return self.holds(transformer_options["sigmas"])

    def count(self, sigmas: Tensor) -> int:
        """How many of the steps of SIGMAS begin within."""
        return sum(self.holds(sigma) for sigma in sigmas[:-1])


def check_steps(model: ModelPatcher, sigmas: Tensor, *remedies: Remedy) -> None:
    """Raise `SettingsError` for a remedy that is on and would meet none of the steps."""
    for remedy in remedies:
        if remedy.is_on and not SigmaRange.of(model, remedy).count(sigmas):
            raise SettingsError(
                f"{remedy.node} would act on no step: none of the {len(sigmas) - 1} sampling steps lies between "
                f"start_percent {remedy.start:g} and end_percent {remedy.end:g}; widen the range or use more steps"
            )
