"""I2VGen-XL as a host MODEL: v-prediction on a cosine schedule with zero terminal signal, frames in the batch.

Latents are `[frames, 4, h, w]`, so the host's VAE nodes and samplers fit, and any window handler cuts them on the
batch. One row of conditions per guidance branch holds for all frames; the position ramp after the encoded image is
made for the frames at hand, so a window is conditioned like a video of its own (reference: enhancer, sections 2 and 9).
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
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor, nn

from ....streaming_core.enhance.settings import EnhanceSettings
from ....streaming_core.errors import SettingsError
from ....streaming_core.models.i2vgenxl.detect import I2VGenXLConfig, detect
from ....streaming_core.models.i2vgenxl.network import I2VGenXL, position_ramp
from ....streaming_core.models.registry import shapes_of
from ....streaming_core.schedules.ddim import enhancer_alphas_cumprod, noise_per_signal
from ..encoders import PerVideo
from ..patchers import HostNetwork, choose_dtype, load_model, parameter_count, stored_dtype

IMAGE_EMBEDDING = "streamingt2v_image_embedding"
"""Key of a CONDITIONING's options: CLIP embedding of the condition image, `[1, 1, width]`; zeros when absent."""
FPS_CONDITION = "streamingt2v_fps_condition"
FRUGAL = "streamingt2v_frugal"
"""Entry of `transformer_options`: guidance rows one after the other, skips in system memory."""


class I2VGenXLSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's sampling object on the enhancer's 1000 levels."""

    def __init__(self, model_config: Any = None) -> None:
        super().__init__(model_config)
        self.set_sigmas(noise_per_signal(enhancer_alphas_cumprod()))


class HostI2VGenXL(HostNetwork, I2VGenXL):
    """The network with the signature and the wrappers that the host expects of a diffusion model."""

    called = "I2VGen-XL"

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: dict | None,
        transformer_options: dict,
        image_latents: Tensor,
        image_embeddings: Tensor,
        fps: Tensor,
        **_unused: Any,
    ) -> Tensor:
        if control is not None:
            raise SettingsError("I2VGen-XL cannot take a ControlNet; remove it from the conditioning")
        inputs = context, image_latents, image_embeddings, fps
        if not transformer_options.get(FRUGAL):
            return self._denoise(x, timesteps, transformer_options, inputs, frugal=False)
        rows = len(context)
        frames = len(x) // rows
        branches = transformer_options.get("cond_or_uncond", [0] * rows)
        return torch.cat(
            [
                self._denoise(
                    x[row * frames : (row + 1) * frames],
                    timesteps[row * frames : (row + 1) * frames],
                    {**transformer_options, "cond_or_uncond": [branches[row]]},
                    tuple(part[row : row + 1] for part in inputs),
                    frugal=True,
                )
                for row in range(rows)
            ]
        )

    def _denoise(
        self, x: Tensor, timesteps: Tensor, transformer_options: dict, inputs: tuple[Tensor, ...], frugal: bool
    ) -> Tensor:
        context, image_latents, image_embeddings, fps = inputs
        rows, options = len(context), dict(transformer_options)
        frames = len(x) // rows
        velocity = self.denoise(
            rearrange(x, "(rows frames) c h w -> rows c frames h w", rows=rows),
            timesteps[::frames],
            context,
            position_ramp(image_latents, frames),
            image_embeddings,
            fps,
            attention=partial(optimized_attention, transformer_options=options),
            frugal=frugal,
            hooks=self.hooks(options, x, timesteps, context),
        )
        return rearrange(velocity, "rows c frames h w -> (rows frames) c h w")


class I2VGenXLHostConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of the family."""

    unet_extra_config: dict[str, object] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 2.0


class I2VGenXLModel(comfy.model_base.BaseModel):
    """The host's model object. `network` is the class of the diffusion model, made from `unet_config`."""

    def __init__(
        self,
        model_config: I2VGenXLHostConfig,
        device: torch.device | None = None,
        network: type[nn.Module] = HostI2VGenXL,
    ) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.V_PREDICTION, device=device, unet_model=network)
        self.model_sampling = I2VGenXLSampling(model_config)
        config = model_config.unet_config["config"]
        model_config.unet_config["model_channels"] = config.block_out_channels[0]  # what FreeU reads

    @property
    def condition_width(self) -> int:
        """Width of text tokens and of image embeddings."""
        return self.model_config.unet_config["config"].cross_attention_dim

    def check_text(self, tokens: Tensor | None) -> Tensor:
        """`tokens`; raises `SettingsError` unless they are one prompt `[1, n, condition_width]`."""
        width = self.condition_width
        if tokens is None or tokens.ndim != 3 or tokens.shape[-1] != width or tokens.shape[0] != 1:
            got = "nothing" if tokens is None else f"shape {list(tokens.shape)}"
            raise SettingsError(
                f"I2VGen-XL takes one prompt of width {width}, got {got}; encode it with OpenCLIP ViT-H, "
                "the text encoder of Stable Diffusion 2.1"
            )
        return tokens

    def check_embedding(self, embedding: Tensor) -> None:
        """Raise `SettingsError` unless `embedding` is as wide as `condition_width`."""
        width = self.condition_width
        if embedding.shape[-1] != width:
            raise SettingsError(
                f"I2VGen-XL takes image embeddings of width {width}, got {embedding.shape[-1]}; use CLIP vision ViT-H"
            )

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        text = self.check_text(kwargs.get("cross_attn"))
        image, noise = kwargs.get("concat_latent_image"), kwargs["noise"]
        if image is None:
            raise SettingsError(
                "I2VGen-XL needs an image that shows what the video looks like; make the conditioning with "
                "Enhancer Conditioning"
            )
        if image.shape[-2:] != noise.shape[-2:]:
            image = comfy.utils.common_upscale(image, noise.shape[-1], noise.shape[-2], "bilinear", "center")
        embedding = kwargs.get(IMAGE_EMBEDDING)
        if embedding is None:
            embedding = torch.zeros(1, 1, self.condition_width)
        self.check_embedding(embedding)
        fps = torch.tensor([kwargs.get(FPS_CONDITION, EnhanceSettings.fps_condition)], dtype=torch.long)
        device = kwargs["device"]
        return {
            "c_crossattn": PerVideo(text.to(device)),
            "image_latents": PerVideo(self.process_latent_in(image[:1]).to(device)),
            "image_embeddings": PerVideo(embedding.to(device)),
            "fps": PerVideo(fps.to(device)),
        }


def empty_i2vgenxl(
    config: I2VGenXLConfig,
    stored: torch.dtype,
    parameters: int,
    keep_in: torch.dtype | None = None,
    device: torch.device | None = None,
    network: type[nn.Module] = HostI2VGenXL,
) -> I2VGenXLModel:
    """The host's model object without weights, on the host's choice of types and devices for a file of this type.

    `keep_in` is the type of the weights instead of the host's choice.
    """
    model_config = I2VGenXLHostConfig({"config": config})
    dtype = choose_dtype(model_config, stored, parameters, keep_in)
    return I2VGenXLModel(model_config, device or mm.unet_inital_load_device(parameters, dtype), network)


def build_i2vgenxl(
    tensors: Mapping[str, Tensor], source: str, keep_in: torch.dtype | None = None, norm_groups: int = 32
) -> ModelPatcher:
    """MODEL from I2VGen-XL's UNet weights in the diffusers layout, loaded strictly.

    `keep_in` is the type the weights are kept in (fp8 halves them once more); None lets the host choose.
    Raises `WrongCheckpointError`, which says what the file is instead, and `IncompleteCheckpointError`.
    """
    config = detect(shapes_of(tensors), source, norm_groups)
    model = empty_i2vgenxl(config, stored_dtype(tensors), parameter_count(tensors), keep_in)
    return load_model(model, tensors, "I2VGen-XL")


def frugal(model: ModelPatcher) -> ModelPatcher:
    """A clone of MODEL that runs guidance rows one after the other and keeps skips in system memory."""
    model = model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    model.model_options["transformer_options"] = {**options, FRUGAL: True}
    return model
