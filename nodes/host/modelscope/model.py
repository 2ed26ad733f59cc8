"""The ModelScope family as host MODELs: epsilon prediction on the published betas, frames in the batch.

Latents are `[frames, 4, H/8, W/8]`, as for SVD, so the host's empty latent, VAE nodes and samplers all fit. What the
network makes of a prompt (keys and values of every cross-attention, with APM's mixers where it has them) is a condition
of the sampling run: it is computed once per run, not once per step and frame (reference: streamingmodelscope, section
12).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.attention import Compute
from ....streaming_core.models.layers import Device
from ....streaming_core.models.modelscope.apm import join_context
from ....streaming_core.models.modelscope.config import UNet3DConfig
from ....streaming_core.models.modelscope.unet import VideoUNet
from ..encoders import PerVideo
from ..patchers import HostNetwork, choose_dtype, load_model, parameter_count, stored_dtype

log = logging.getLogger(__name__)

MERGE_KEY = "streamingt2v_merge"
"""Entry of `transformer_options` under which a CAM leaves the `Merge` of the call."""
CAM_ATTACHMENT = "streamingt2v_modelscope_cam"
"""Attachment of the model patcher that holds the CAM of a chunk."""
APM_TOKENS, APM_WEIGHT = "streamingt2v_apm_tokens", "streamingt2v_apm_weight"
"""Keys of a CONDITIONING entry that carry APM's image tokens `[1, tokens, width]` and their weight."""


def compute(transformer_options: dict) -> Compute:
    """The network's kernels on this host, with the user's attention overrides."""
    return Compute(attention=partial(optimized_attention, transformer_options=transformer_options))


class HostVideoUNet(HostNetwork, VideoUNet):
    """`VideoUNet` with the signature and the wrappers that the host expects of a diffusion model."""

    called = "a ModelScope video model"

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        control: dict | None,
        transformer_options: dict,
        memory: Tensor,
        **_unused: Any,
    ) -> Tensor:
        if control is not None:
            raise SettingsError("ModelScope video models cannot take a ControlNet; remove it from the conditioning")
        frames = x.shape[0] // memory.shape[0]
        options = dict(transformer_options)
        hooks = self.hooks(options, x, timesteps, context)
        return self.denoise(x, timesteps[::frames], memory, options.get(MERGE_KEY), compute(options), hooks)


class ModelscopeModelConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of the family; the betas are the published ones."""

    unet_extra_config: dict[str, object] = {}
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
    memory_usage_factor = 2.0


class ModelscopeModel(comfy.model_base.BaseModel):
    """The host's model object around `HostVideoUNet`."""

    def __init__(
        self,
        model_config: comfy.supported_models_base.BASE,
        model_type: comfy.model_base.ModelType = comfy.model_base.ModelType.EPS,
        device: Device = None,
    ):
        super().__init__(model_config, model_type, device=device, unet_model=HostVideoUNet)
        model_config.unet_config["model_channels"] = self.config.channels[0]  # what FreeU reads

    @property
    def config(self) -> UNet3DConfig:
        return self.diffusion_model.config

    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.get_dtype()

    def extra_conds(self, **kwargs: Any) -> dict:
        """Called once per sampling run and prompt, with the networks loaded."""
        text = self._text(kwargs.get("cross_attn")).to(device=kwargs["device"], dtype=self.compute_dtype())
        conds = {"memory": PerVideo(self._project(text, kwargs.get(APM_TOKENS), kwargs.get(APM_WEIGHT, 1.0)))}
        cam = self.current_patcher.get_attachment(CAM_ATTACHMENT) if self.current_patcher is not None else None
        if cam is not None:
            conds["cam_memory"] = PerVideo(cam.project_text(text))
        return conds

    def _text(self, text: Tensor | None) -> Tensor:
        width = self.config.context_width
        if text is None or text.ndim != 3 or text.shape[-1] != width:
            got = "nothing" if text is None else f"shape {list(text.shape)}"
            raise SettingsError(
                f"this model takes text of width {width}, got {got}; encode the prompt with the CLIP of its checkpoint"
            )
        if text.shape[0] != 1:
            raise SettingsError(
                f"a chunk takes one prompt, got conditioning for {text.shape[0]}; use one per chunk instead"
            )
        return text

    def _project(self, text: Tensor, tokens: Tensor | None, weight: float) -> Tensor:
        network, mixers = self.diffusion_model, self.config.mixers
        if mixers is None:
            if tokens is not None:
                log.warning("this model has no appearance preservation (APM); the anchor is ignored")
            return network.project_context(text)
        if text.shape[1] % mixers.text_tokens:
            raise SettingsError(
                f"the appearance mixers take text in pieces of {mixers.text_tokens} tokens, got {text.shape[1]}; "
                "encode the prompt with the CLIP of this checkpoint"
            )
        if tokens is None:
            log.warning("no anchor: sampling without appearance preservation; add APM Anchor Encode to use it")
            tokens, weight = text.new_zeros(1, mixers.image_tokens, text.shape[-1]), 0.0
        if tokens.shape[1] != mixers.image_tokens:
            raise SettingsError(
                f"the anchor has {tokens.shape[1]} tokens, this model mixes {mixers.image_tokens}; "
                "encode it with the APM of this checkpoint"
            )
        # A prompt longer than one piece is mixed piece by piece; officially it would be cut off.
        pieces = text.split(mixers.text_tokens, dim=1)
        return torch.cat([network.project_context(join_context(piece, tokens), weight) for piece in pieces], dim=1)


def empty_modelscope(
    config: UNet3DConfig,
    weight_dtype: torch.dtype,
    parameters: int,
    device: Device = None,
    model_class: type[ModelscopeModel] = ModelscopeModel,
    keep_in: torch.dtype | None = None,
) -> ModelscopeModel:
    """The host's model without weights; `parameters` lets the host choose type and device as for a file.

    `keep_in` is the type of the weights instead of the host's choice.
    """
    model_config = ModelscopeModelConfig({"config": config})
    dtype = choose_dtype(model_config, weight_dtype, parameters, keep_in)
    return model_class(model_config, device=device or mm.unet_inital_load_device(parameters, dtype))


def build_modelscope(
    tensors: Mapping[str, Tensor],
    config: UNet3DConfig,
    what: str,
    model_class: type[ModelscopeModel] = ModelscopeModel,
    keep_in: torch.dtype | None = None,
) -> ModelPatcher:
    """MODEL from a UNet's tensors, keyed as in `VideoUNet`; loaded strictly. `what` names the network in errors."""
    parameters = parameter_count(tensors)
    model = empty_modelscope(config, stored_dtype(tensors), parameters, model_class=model_class, keep_in=keep_in)
    return load_model(model, tensors, what)
