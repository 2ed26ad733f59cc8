"""Guidance against the previous chunk: one more model call per step, without the tail (reference: lvdm, 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .steps import SigmaRange

BLIND = "streamingt2v_blind"
"""Entry of `transformer_options` that tells what continues a video (CAM) to take no part in a call."""

Blind = Callable[[dict[str, Any]], Tensor]
"""The denoised latent that the model makes without the tail, from what the host gives a post-CFG function."""


def is_blind(transformer_options: Mapping[str, Any]) -> bool:
    """Whether this call of the network is the one without the tail."""
    return bool(transformer_options.get(BLIND))


def without_cam(args: dict[str, Any]) -> Tensor:
    """What the model makes of the positive half when its CAM takes no part."""
    options = args["model_options"]
    blind = {**options, "transformer_options": {**options.get("transformer_options", {}), BLIND: True}}
    return comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], blind)[0]


def against_previous(model: ModelPatcher, weight: float, steps: SigmaRange, blind: Blind) -> ModelPatcher:
    """A clone of `model` guided by `e + w (e_c - e_u)` within `steps`; `model` itself where `weight` is 0.

    `e` is what all other guidance made of the step, `e_c` the positive half, `e_u` what `blind` returns.
    """
    if not weight:
        return model

    def guide(args: dict[str, Any]) -> Tensor:
        if not steps.holds(args["sigma"]):
            return args["denoised"]
        return args["denoised"] + weight * (args["cond_denoised"] - blind(args))

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(guide)
    return clone
