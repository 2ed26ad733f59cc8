"""The guider of one chunk of a native model: held latents that some steps see perturbed, and one call without them."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..encoders import Conditioning
from ..remedies.guidance import against_previous
from ..remedies.guider import SteppedGuider
from ..remedies.steps import SigmaRange


class ChunkGuider(SteppedGuider):
    """The host's own guider, with guidance against the previous chunk where `weight` is not 0.

    `unknown`: unit noise `[.., held, ..]` in place of the held latents in that call. `axis`: of latents in time.
    """

    def __init__(self, model: ModelPatcher, axis: int, weight: float, steps: SigmaRange, unknown: Tensor) -> None:
        super().__init__(against_previous(model, weight, steps, self.without_held))
        self.axis = axis
        self.unknown = unknown
        self.held: tuple[Tensor, Tensor] | None = None

    def set_all(self, positive: Conditioning, negative: Conditioning, blind: Conditioning | None, cfg: float) -> None:
        """`blind`: the positive conditioning of the call without the held latents, None where there is none."""
        conds = {"positive": positive, "negative": negative}
        self.inner_set_conds(conds if blind is None else {**conds, "blind": blind})
        self.set_cfg(cfg)

    def hold_perturbed(self, clean: Tensor, perturbed: Tensor) -> None:
        """Within the steps of `show_within` the held latents are `perturbed` instead of `clean`, both as VAEs take."""
        self.held = clean, perturbed

    def shown_latent(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`x` with the held latents perturbed."""
        if self.held is None:
            return x
        count = self.held[0].shape[self.axis]
        noisy = []
        for held in self.held:
            latent = torch.zeros_like(x)
            latent.narrow(self.axis, 0, count).copy_(self.inner_model.process_latent_in(held.to(x)))
            # However a model has held latents noised, it adds the same noise to both.
            made = self.inner_model.scale_latent_inpaint(
                x=x,
                sigma=sigma,
                noise=torch.zeros_like(x),
                latent_image=latent,
                denoise_mask=torch.zeros_like(x),
            )
            noisy.append(made.narrow(self.axis, 0, count))
        clean, perturbed = noisy
        x = x.clone()
        x.narrow(self.axis, 0, count).add_(perturbed - clean)
        return x

    def without_held(self, args: dict[str, Any]) -> Tensor:
        """What the model makes with noise in place of the held latents."""
        x, sigma, model = args["input"].clone(), args["sigma"], args["model"]
        held = self.unknown.shape[self.axis]
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        # Frames in the batch have a level each; those of the held ones are the first.
        level = level[:held] if self.axis == 0 and level.shape[0] > 1 else level
        unit = self.unknown.to(x)
        unknown = model.model_sampling.noise_scaling(level, unit, torch.zeros_like(unit))
        x.narrow(self.axis, 0, held).copy_(unknown)
        conds = self.blind_conds(held)
        return comfy.samplers.calc_cond_batch(model, [conds], x, sigma, args["model_options"])[0]

    def blind_conds(self, held: int) -> list[dict[str, Any]]:
        """The prepared conditioning in which no latent counts as held."""
        conds = []
        for cond in self.conds["blind"]:
            prepared = dict(cond["model_conds"])
            if "denoise_mask" in prepared:
                mask = prepared["denoise_mask"].cond.clone()
                mask.narrow(self.axis, 0, held).fill_(1)
                prepared["denoise_mask"] = prepared["denoise_mask"]._copy_with(mask)
            conds.append({**cond, "model_conds": prepared})
        return conds
