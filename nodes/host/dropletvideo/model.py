"""DropletVideo as a host MODEL: v-prediction on a schedule with zero terminal signal (reference: dropletvideo).

Latents are `[B, 16, latents, H/8, W/8]`, as of every video model of the host, so its empty latents, masks, samplers and
context windows fit. The 17 channels that say what is known of the video come as channels to concatenate, the motion
setting as a condition of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.attention import Compute
from ....streaming_core.models.dropletvideo.config import DEFAULT_SCALING_FACTOR, DropletConfig
from ....streaming_core.models.dropletvideo.network import DropletVideo
from ....streaming_core.models.layers import Device
from ....streaming_core.schedules.ddim import noise_per_signal
from ....streaming_core.schedules.dropletvideo import DEFAULT_SCHEDULE, DropletSchedule
from ..patchers import HostNetwork, choose_dtype, load_model, parameter_count, stored_dtype
from ..unet_patches import refuse_patches

INPAINT = "streamingt2v_droplet_inpaint"
"""Key of a CONDITIONING's options: mask and known latents `[1, 17, latents, h, w]`, scaled; zeros when absent."""
FPS = "streamingt2v_droplet_fps"
"""Key of a CONDITIONING's options: the motion setting, a number."""
DEFAULT_FPS = 16.0


class HostDropletVideo(HostNetwork, DropletVideo):  # type: ignore[misc]  # the host's call comes first
    """The network with the signature and the wrappers that the host expects of a diffusion model."""

    called = "DropletVideo"

    def check(self, transformer_options: Mapping[str, Any]) -> None:
        """Raise `SettingsError` for patches: its blocks are not those of any network that other nodes patch."""
        refuse_patches(transformer_options, self.called)

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: dict | None,
        transformer_options: dict,
        fps: Tensor,
        **_unused: Any,
    ) -> Tensor:
        if control is not None:
            raise SettingsError("DropletVideo cannot take a ControlNet; remove it from the conditioning")
        frames = x.transpose(1, 2)
        noisy, inpaint = frames[:, :, : self.config.out_channels], frames[:, :, self.config.out_channels :]
        compute = Compute(attention=partial(optimized_attention, transformer_options=transformer_options))
        return self.denoise(noisy, inpaint, timesteps, context, fps, compute).transpose(1, 2)

    def denoise(self, *inputs: Any) -> Tensor:
        return DropletVideo.forward(self, *inputs)


class DropletLatents(comfy.latent_formats.LatentFormat):
    """Latents as the VAE gives them, times its scaling factor for the model."""

    latent_channels = 16
    latent_dimensions = 3
    temporal_downscale_ratio = 4

    def __init__(self, scale_factor: float = DEFAULT_SCALING_FACTOR) -> None:
        self.scale_factor = scale_factor


class DropletHostConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of the family."""

    unet_extra_config: dict[str, object] = {}
    memory_usage_factor = 2.8
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def __init__(self, unet_config: dict[str, Any], scaling_factor: float) -> None:
        super().__init__(unet_config)
        self.latent_format = DropletLatents(scaling_factor)
        self.latent_format.latent_channels = unet_config["config"].out_channels


class DropletSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's sampling object on DropletVideo's 1000 levels."""

    def __init__(self, model_config: Any = None, schedule: DropletSchedule = DEFAULT_SCHEDULE) -> None:
        super().__init__(model_config)
        self.set_sigmas(noise_per_signal(schedule.alphas_cumprod()))


class DropletModel(comfy.model_base.BaseModel):
    """The host's model object around `HostDropletVideo`. `schedule`: of the folder it was published in."""

    def __init__(
        self, model_config: DropletHostConfig, device: Device = None, schedule: DropletSchedule = DEFAULT_SCHEDULE
    ) -> None:
        kind = comfy.model_base.ModelType.V_PREDICTION
        super().__init__(model_config, kind, device=device, unet_model=HostDropletVideo)
        self.schedule = schedule
        self.model_sampling = DropletSampling(model_config, schedule)

    @property
    def config(self) -> DropletConfig:
        return self.diffusion_model.config

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Called once per sampling run and prompt."""
        noise, device = kwargs["noise"], kwargs["device"]
        inpaint = kwargs.get(INPAINT)
        if inpaint is None:
            inpaint = noise.new_zeros(1, self.config.in_channels - noise.shape[1], *noise.shape[2:])
        if inpaint.shape[2:] != noise.shape[2:]:
            raise SettingsError(
                f"the known frames were prepared for {_size(inpaint)}, and the latent is for {_size(noise)}; give "
                "DropletVideo Conditioning the size and length of the latent"
            )
        fps = torch.tensor([float(kwargs.get(FPS, DEFAULT_FPS))])
        return {
            "c_crossattn": comfy.conds.CONDRegular(self._text(kwargs.get("cross_attn")).to(device)),
            "c_concat": comfy.conds.CONDNoiseShape(inpaint.to(device)),
            "fps": comfy.conds.CONDRegular(fps.to(device)),
        }

    def _text(self, text: Tensor | None) -> Tensor:
        width = self.config.text_width
        if text is None or text.ndim != 3 or text.shape[-1] != width:
            got = "nothing" if text is None else f"shape {list(text.shape)}"
            raise SettingsError(
                f"DropletVideo takes text of width {width}, got {got}; encode it with DropletVideo Text and a T5 XXL "
                "text encoder"
            )
        return text


def _size(latents: Tensor) -> str:
    return f"{latents.shape[-1] * 8}x{latents.shape[-2] * 8} pixels and {latents.shape[2]} latents"


def empty_dropletvideo(
    config: DropletConfig,
    weight_dtype: torch.dtype,
    parameters: int,
    scaling_factor: float = DEFAULT_SCALING_FACTOR,
    schedule: DropletSchedule = DEFAULT_SCHEDULE,
    device: Device = None,
) -> DropletModel:
    """The host's model without weights; `parameters` lets the host choose type and device as for a file."""
    model_config = DropletHostConfig({"config": config}, scaling_factor)
    dtype = choose_dtype(model_config, weight_dtype, parameters)
    return DropletModel(model_config, device or mm.unet_inital_load_device(parameters, dtype), schedule)


def build_dropletvideo(
    tensors: Mapping[str, Tensor],
    config: DropletConfig,
    scaling_factor: float = DEFAULT_SCALING_FACTOR,
    schedule: DropletSchedule = DEFAULT_SCHEDULE,
) -> ModelPatcher:
    """MODEL from a transformer's tensors in the diffusers layout, loaded strictly.

    scaling_factor: of the VAE that it was trained with.
    """
    model = empty_dropletvideo(config, stored_dtype(tensors), parameter_count(tensors), scaling_factor, schedule)
    return load_model(model, tensors, "the transformer")
