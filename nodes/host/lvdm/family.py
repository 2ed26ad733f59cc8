"""Which MODEL and VAE are LVDM's, and which belong together."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.lvdm.config import LvdmConfig
from .model import LvdmModel
from .vae import LvdmVae


def config_of(model: ModelPatcher, called: str = "the model") -> LvdmConfig:
    """Raise `SettingsError` unless MODEL is LVDM's; `called` names it."""
    if not isinstance(model.model, LvdmModel):
        raise SettingsError(f"{called} is not LVDM; load it with Load LVDM")
    return model.model.config


def check_family(model: ModelPatcher, vae: Any, interpolation: ModelPatcher | None) -> None:
    """Raise `SettingsError` unless these belong together."""
    config = config_of(model)
    if (config.kind == "text") == isinstance(vae, LvdmVae):
        raise SettingsError("the VAE does not belong to this LVDM model; connect the vae of its Load LVDM")
    if vae.latent_channels != config.out_channels:
        raise SettingsError(
            f"the model's latents have {config.out_channels} channels, the VAE's {vae.latent_channels}; connect the "
            "vae of its Load LVDM"
        )
    if interpolation is None:
        return
    if config_of(interpolation, "the interpolation model").kind != "conditional":
        raise SettingsError(
            "interpolation_model was not trained to fill in latents; connect LVDM's interpolation model"
        )
    if config.kind != "conditional":
        raise SettingsError(
            "interpolation_model has no effect: it fills in between latents of a prediction model, and this model "
            "makes all of them itself; disconnect it, or connect a prediction model"
        )
    if model.model.latent_format.scale != interpolation.model.latent_format.scale:
        raise SettingsError("prediction and interpolation model scale latents in different ways; load both alike")


def unused_settings(config: LvdmConfig) -> tuple[str, ...]:
    """Settings of the chunk sampler that a model of this kind has no use for, so that they decide nothing."""
    known = ("noise_level", "previous_guidance", "whole_mask", "perturbation")
    return (() if config.kind == "conditional" else known) + (() if config.kind == "text" else ("cfg", "negative"))
