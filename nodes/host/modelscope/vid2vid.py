"""MS-Vid2Vid, the official refiner of StreamingModelscope, as a host MODEL (reference: streamingmodelscope, section 6).

It predicts velocity on its own 1000 noise levels, the last of which holds no signal. Latents are frames in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.models.layers import Device
from ....streaming_core.models.modelscope.detect import BASE_ARCHITECTURE, detect_unet
from ....streaming_core.models.modelscope.vid2vid import ARCHITECTURE, rename
from ....streaming_core.models.registry import shapes_of
from ....streaming_core.schedules.vid2vid import refiner_noise, rescaled_guidance, signal_of
from .model import ModelscopeModel, build_modelscope

SIGMA_MAX = 1e4
"""Noise per signal at the last level, where the official schedule has no signal and the true value is infinite."""


class Vid2VidSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's sampling object on the refiner's levels."""

    def __init__(self, model_config: comfy.supported_models_base.BASE | None = None) -> None:
        super().__init__(model_config)
        noise = refiner_noise().double()
        self.set_sigmas((noise / signal_of(noise)).clamp(max=SIGMA_MAX).float())


class Vid2VidModel(ModelscopeModel):
    """The refiner as the host's model object."""

    def __init__(self, model_config: comfy.supported_models_base.BASE, device: Device = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.V_PREDICTION, device)
        self.model_sampling = Vid2VidSampling(model_config)


def build_vid2vid(
    tensors: Mapping[str, Tensor],
    source: str = "the file",
    head_width: int = 64,
    keep_in: torch.dtype | None = None,
) -> ModelPatcher:
    """MODEL from an MS-Vid2Vid UNet under its official names, or as the host saves the MODEL; loaded strictly.

    `keep_in` is the type the weights are kept in (fp8 halves them once more); None lets the host choose.
    Raises `WrongCheckpointError`, which says what the file is instead, and `IncompleteCheckpointError`.
    """
    if BASE_ARCHITECTURE.missing(tensors):
        ARCHITECTURE.check(tensors, source)
        tensors = rename(tensors)
    config = detect_unet(shapes_of(tensors), "", head_width, padded_rows=True)
    return build_modelscope(tensors, config, "the MS-Vid2Vid UNet", Vid2VidModel, keep_in)


def with_rescaled_guidance(model: ModelPatcher, rescale: float) -> ModelPatcher:
    """A clone of `model` whose guidance is partly brought back to the spread of the conditional prediction.

    The spread is of velocities and over all frames together, as officially over a window; the host's own node measures
    every frame of a batch alone.
    """

    def guided(args: dict[str, Any]) -> Tensor:
        x = args["input"]
        sigma = args["sigma"].to(x).view(-1, *[1] * (x.ndim - 1))
        signal = (1 + sigma**2).rsqrt()

        def velocity(denoised: Tensor) -> Tensor:
            return (signal**2 * x - denoised) / (sigma * signal)

        cond, uncond = (velocity(args[name])[None] for name in ("cond_denoised", "uncond_denoised"))
        v = rescaled_guidance(cond, uncond, args["cond_scale"], rescale)[0]
        # The host wants what is to be taken away from x.
        return x - (signal**2 * x - sigma * signal * v)

    clone = model.clone()
    clone.set_model_sampler_cfg_function(guided, disable_cfg1_optimization=True)
    return clone
