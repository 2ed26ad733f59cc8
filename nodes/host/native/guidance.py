"""Guidance against the previous chunk (LVDM), as one more conditioning of the host's own guider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..encoders import Conditioning


class ChunkGuider(comfy.samplers.CFGGuider):
    """The host's own guider with one more conditioning, which only guidance against the previous chunk asks for."""

    def set_all(self, positive: Conditioning, negative: Conditioning, blind: Conditioning | None, cfg: float) -> None:
        conds = {"positive": positive, "negative": negative}
        self.inner_set_conds(conds if blind is None else {**conds, "blind": blind})
        self.set_cfg(cfg)

    def blind_conds(self, axis: int, held: int) -> list[dict[str, Any]]:
        """The prepared conditioning in which no latent counts as held."""
        conds = []
        for cond in self.conds["blind"]:
            prepared = dict(cond["model_conds"])
            if "denoise_mask" in prepared:
                mask = prepared["denoise_mask"].cond.clone()
                mask.narrow(axis, 0, held).fill_(1)
                prepared["denoise_mask"] = prepared["denoise_mask"]._copy_with(mask)
            conds.append({**cond, "model_conds": prepared})
        return conds


def against_previous(
    guider: ChunkGuider, noise: Tensor, weight: float, axis: int
) -> Callable[[dict[str, Any]], Tensor]:
    """Guidance `e + w (e_c - e_u)` where e_u knows nothing of the chunk before (reference: lvdm, section 6.4).

    `noise`: what is in place of the held latents then, `[.., held, ..]`. One more model call per step.
    """
    held = noise.shape[axis]

    def guide(args: dict[str, Any]) -> Tensor:
        x, sigma, model = args["input"].clone(), args["sigma"], args["model"]
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        # Frames in the batch have a level each; those of the held ones are the first.
        level = level[:held] if axis == 0 and level.shape[0] > 1 else level
        unit = noise.to(x)
        unknown = model.model_sampling.noise_scaling(level, unit, torch.zeros_like(unit))
        x.narrow(axis, 0, held).copy_(unknown)
        conds = guider.blind_conds(axis, held)
        blind = comfy.samplers.calc_cond_batch(model, [conds], x, sigma, args["model_options"])[0]
        return args["denoised"] + weight * (args["cond_denoised"] - blind)

    return guide
