"""The host's guider where some steps are shown a perturbed tail, which comes with the conditioning."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .steps import SigmaRange

Conditioning = list[list[Any]]


class SteppedGuider(comfy.samplers.CFGGuider):
    """The host's own guider with other conditionings within some steps; without `show_within` it is the host's."""

    def __init__(self, model: ModelPatcher) -> None:
        super().__init__(model)
        self.steps: SigmaRange | None = None

    def show_within(self, steps: SigmaRange, positive: Conditioning, negative: Conditioning) -> None:
        """Within `steps` these two take the place of the others."""
        self.inner_set_conds({"shown_positive": positive, "shown_negative": negative})
        self.steps = steps

    def shown_latent(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The noisy latent `x` as the model sees it within these steps."""
        return x

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """As the host's."""
        options = model_options or {}
        if self.steps is None or not self.steps.holds(timestep):
            return super().predict_noise(x, timestep, options, seed)
        return comfy.samplers.sampling_function(
            self.inner_model,
            self.shown_latent(x, timestep),
            timestep,
            self.conds["shown_negative"],
            self.conds["shown_positive"],
            self.cfg,
            model_options=options,
            seed=seed,
        )
