"""LVDM as a host MODEL: epsilon prediction on its own betas (reference: lvdm, sections 4 to 6).

Latents of video models are `[B, 4, latents, H/8, W/8]`. Text-to-video encodes every frame alone, so its latents are
`[frames, 4, H/8, W/8]`, as those of the host's image models. What a prediction model knows of a video are a condition:
they take the place of the noisy latents before every call of the network, whatever sampler asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.attention import Compute
from ....streaming_core.models.layers import Device
from ....streaming_core.models.lvdm.conditioning import mask_channel
from ....streaming_core.models.lvdm.config import LATENT_SCALES, LatentScale, LvdmConfig
from ....streaming_core.models.lvdm.unet import LvdmUNet
from ....streaming_core.schedules.lvdm import TEXT_SCHEDULE, VIDEO_SCHEDULE, LvdmSchedule
from ..encoders import Conditioning, PerVideo
from ..patchers import HostNetwork, choose_dtype, load_model, parameter_count, stored_dtype
from ..unet_patches import refuse_patches

KNOWN = "streamingt2v_lvdm_known"
"""Key of a CONDITIONING's options: known latents as the network sees them, its mask channel, and 1 where a latent is
known, `[1, 6, latents, h, w]`."""
LEVEL = "streamingt2v_lvdm_level"
"""Key of a CONDITIONING's options: the noise level of known latents that the network is told; -1 for none."""


def schedule_of(config: LvdmConfig) -> LvdmSchedule:
    return TEXT_SCHEDULE if config.kind == "text" else VIDEO_SCHEDULE


def no_text() -> Conditioning:
    """What the host's guiders get of a model that takes no text."""
    return [[torch.zeros(1, 1, 1), {}]]


def with_known(known: Tensor, places: Tensor, mask: Tensor | None, level: int) -> Conditioning:
    """CONDITIONING in which the network sees `known` latents `[1, 4, n, h, w]` at `places` `[T]`.

    mask: where it is told that they are, `[T]`; None: it is told neither that nor the `level`.
    """
    latents = known.new_zeros(1, known.shape[1], len(places), *known.shape[-2:])
    latents[:, :, places.to(known.device)] = known
    told = mask_channel(torch.zeros_like(places) if mask is None else mask, latents)
    [[text, _]] = no_text()
    channels = torch.cat([latents, told, mask_channel(places, latents)], dim=1)
    return [[text, {KNOWN: channels, LEVEL: -1 if mask is None else level}]]


class HostLvdm(HostNetwork, LvdmUNet):
    """The network with the signature and the wrappers that the host expects of a diffusion model."""

    called = "LVDM"

    def check(self, transformer_options: Mapping[str, Any]) -> None:
        """Raise `SettingsError` for patches: its blocks are not those of any network that other nodes patch."""
        refuse_patches(transformer_options, self.called)

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        control: dict | None,
        transformer_options: dict,
        labels: Tensor | None = None,
        **_unused: Any,
    ) -> Tensor:
        if control is not None:
            raise SettingsError("LVDM cannot take a ControlNet; remove it from the conditioning")
        compute = Compute(attention=partial(optimized_attention, transformer_options=transformer_options))
        if context is not None:
            frames = x.shape[0] // context.shape[0]
            video = rearrange(x, "(b t) c h w -> b c t h w", t=frames)
            noise = self.denoise(video, timesteps[::frames], context, compute=compute)
            return rearrange(noise, "b c t h w -> (b t) c h w")
        if self.config.masked:
            x = self._put_in(x)
        return self.denoise(x, timesteps, labels=labels, compute=compute)

    def _put_in(self, x: Tensor) -> Tensor:
        """Noisy latents with the known ones in their places, and the mask; see `KNOWN`."""
        channels = self.config.out_channels
        noisy, known, mask, places = x.split([channels, channels, 1, 1], dim=1)
        return torch.cat([torch.where(places > 0.5, known, noisy), mask], dim=1)


class LvdmLatents(comfy.latent_formats.LatentFormat):
    """Latents as the 3-D autoencoder gives them, shifted and scaled for the model."""

    latent_channels = 4
    latent_dimensions = 3
    temporal_downscale_ratio = 4

    def __init__(self, scale: LatentScale = LATENT_SCALES["sky"]) -> None:
        self.scale = scale
        self.scale_factor = scale.scale

    def process_in(self, latent: Tensor) -> Tensor:
        return self.scale.to_model(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        return self.scale.to_autoencoder(latent)


class LvdmHostConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of the family."""

    unet_extra_config: dict[str, object] = {}
    memory_usage_factor = 2.0
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def __init__(self, config: LvdmConfig, scale: LatentScale) -> None:
        super().__init__({"config": config})
        schedule = schedule_of(config)
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": schedule.beta_start,
            "linear_end": schedule.beta_end,
        }
        if config.kind == "text":
            self.latent_format = comfy.latent_formats.SD15(scale.scale)
        else:
            self.latent_format = LvdmLatents(scale)
        self.latent_format.latent_channels = config.out_channels


class LvdmModel(comfy.model_base.BaseModel):
    """The host's model object around `HostLvdm`."""

    def __init__(self, model_config: LvdmHostConfig, device: Device = None) -> None:
        kind = comfy.model_base.ModelType.EPS
        super().__init__(model_config, kind, device=device, unet_model=HostLvdm)

    @property
    def config(self) -> LvdmConfig:
        return self.diffusion_model.config

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Called once per sampling run and prompt."""
        noise, device, text = kwargs["noise"], kwargs["device"], kwargs.get("cross_attn")
        if self.config.context_width is not None:
            return {"c_crossattn": PerVideo(self._text(text).to(device))}
        if text is not None and torch.count_nonzero(text):
            raise SettingsError(
                "this LVDM model takes no text, so a prompt has no effect; connect the conditioning of LVDM Sampling"
            )
        if noise.ndim != 5:
            raise SettingsError(
                f"this LVDM model makes video latents [B, {self.config.out_channels}, latents, height, width], got "
                f"{list(noise.shape)}; use an empty latent for videos"
            )
        return self._known(noise, device, kwargs) if self.config.masked else {}

    def _known(self, noise: Tensor, device: Any, options: Mapping[str, Any]) -> dict[str, comfy.conds.CONDRegular]:
        channels = 2 + noise.shape[1]
        known = options.get(KNOWN)
        if known is None:
            known = noise.new_zeros(1, channels, *noise.shape[2:])
        if known.shape[1:] != (channels, *noise.shape[2:]):
            raise SettingsError(
                f"known latents {list(known.shape[2:])} do not belong to latents {list(noise.shape[2:])}; make both "
                "for the same size and length"
            )
        conds = {"c_concat": comfy.conds.CONDNoiseShape(known.to(device))}
        if self.config.labels:
            conds["labels"] = comfy.conds.CONDRegular(torch.tensor([int(options.get(LEVEL, -1))], device=device))
        return conds

    def _text(self, text: Tensor | None) -> Tensor:
        width = self.config.context_width
        if text is None or text.ndim != 3 or text.shape[-1] != width:
            got = "nothing" if text is None else f"shape {list(text.shape)}"
            raise SettingsError(
                f"this LVDM model takes text of width {width}, got {got}; encode the prompt with CLIP L, which Load "
                "LVDM gives"
            )
        if text.shape[0] != 1:
            raise SettingsError(f"a video takes one prompt, got conditioning for {text.shape[0]}")
        return text


def empty_lvdm(
    config: LvdmConfig, scale: LatentScale, weight_dtype: torch.dtype, parameters: int, device: Device = None
) -> LvdmModel:
    """The host's model without weights; `parameters` lets the host choose type and device as for a file."""
    model_config = LvdmHostConfig(config, scale)
    dtype = choose_dtype(model_config, weight_dtype, parameters)
    return LvdmModel(model_config, device=device or mm.unet_inital_load_device(parameters, dtype))


def build_lvdm(tensors: Mapping[str, Tensor], config: LvdmConfig, scale: LatentScale) -> ModelPatcher:
    """MODEL from a UNet's tensors, keyed as in `LvdmUNet`, loaded strictly; `scale`: of its latents."""
    model = empty_lvdm(config, scale, stored_dtype(tensors), parameter_count(tensors))
    return load_model(model, tensors, "the UNet")
