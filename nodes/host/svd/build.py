"""The host's MODEL, VAE and CLIP_VISION objects, made from our detected configuration.

The host's own detection accepts full-size files only. These builders make the very same objects for every size; for the
full size their configuration equals the one the host detects, which a test shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.clip_vision
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
from comfy.model_base import SVD_img2vid
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.layers import Device
from ....streaming_core.models.registry import load_strict
from ....streaming_core.models.streamingsvd.config import VideoUNetConfig
from ....streaming_core.models.towers import VaeConfig
from ..patchers import choose_dtype, load_model, managed, parameter_count, stored_dtype
from ..vae import autoencoder_params


def host_unet_config(config: VideoUNetConfig) -> dict[str, Any]:
    """The video UNet in the host's words: equal to what the host detects, where it does."""
    depths = [depth for level in config.levels for depth in level.transformer_depths]
    # The decoder mirrors the encoder with one block more per level; the host reads its list from the end.
    output_depths = [
        depth for level in config.levels for depth in (*level.transformer_depths, level.transformer_depths[-1])
    ]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": config.vector_width,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": config.model_channels,
        "num_res_blocks": [len(level.transformer_depths) for level in config.levels],
        "transformer_depth": depths,
        "transformer_depth_output": output_depths,
        "channel_mult": [level.channels // config.model_channels for level in config.levels],
        "transformer_depth_middle": config.middle_depth or -1,
        "use_linear_in_transformer": True,
        "context_dim": config.context_width,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
        "use_temporal_resblock": True,
        "use_temporal_attention": True,
        "disable_temporal_crossattention": False,
    }


def empty_video_unet(
    config: VideoUNetConfig, weight_dtype: torch.dtype, parameters: int, device: Device = None
) -> SVD_img2vid:
    """The host's SVD model without weights; `parameters` lets the host choose type and device as for a file.

    `device`, where given, is where the weights are made; otherwise the host decides.
    """
    model_config = comfy.supported_models.SVD_img2vid(host_unet_config(config))
    model_config.unet_config["num_head_channels"] = config.head_width
    dtype = choose_dtype(model_config, weight_dtype, parameters)
    try:
        model = model_config.get_model({}, "", device=device or mm.unet_inital_load_device(parameters, dtype))
    except RuntimeError as error:
        if not mm.force_channels_last():
            raise
        raise SettingsError(
            "ComfyUI was started with --force-channels-last, a memory format that its own SVD model cannot have; start "
            "it without that flag"
        ) from error
    # fps, motion bucket and augmentation share the vector equally; 256 each at full size.
    model.embedder = Timestep(config.vector_width // 3)
    return model


def build_video_unet(tensors: Mapping[str, Tensor], config: VideoUNetConfig) -> ModelPatcher:
    """MODEL: the host's SVD model under its patcher, loaded strictly. `tensors` are keyed without the UNet prefix."""
    model = empty_video_unet(config, stored_dtype(tensors), parameter_count(tensors))
    return load_model(model, tensors, "the video UNet")


class SplitAutoencoder(AutoencodingEngine):
    """SVD's two autoencoders as one: images in through the conditioning encoder, frames out by the temporal decoder.

    `encode` returns the posterior mean, not scaled (reference: streamingsvd, section 7).
    """

    def __init__(self, encoder: VaeConfig, decoder: VaeConfig):
        decoder_target = (
            "comfy.ldm.modules.temporal_ae.VideoDecoder"
            if decoder.temporal
            else "comfy.ldm.modules.diffusionmodules.model.Decoder"
        )
        temporal = {"video_kernel_size": [3, 1, 1], "alpha": 0.0} if decoder.temporal else {}
        super().__init__(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={
                "target": "comfy.ldm.modules.diffusionmodules.model.Encoder",
                "params": autoencoder_params(encoder),
            },
            decoder_config={"target": decoder_target, "params": {**autoencoder_params(decoder), **temporal}},
        )
        width = 2 * encoder.latent_channels
        self.quant_conv = comfy.ops.disable_weight_init.Conv2d(width, width, 1)

    def encode(
        self, x: Tensor, return_reg_log: bool = False, unregularized: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        moments = self.quant_conv(self.encoder(x))
        if unregularized:
            return moments, {}
        latent, log = self.regularization(moments)
        return (latent, log) if return_reg_log else latent


def build_vae(tensors: Mapping[str, Tensor], encoder: VaeConfig, decoder: VaeConfig) -> VAE:
    """VAE: the host's object around a `SplitAutoencoder`; `tensors` hold `encoder.*`, `quant_conv.*`, `decoder.*`."""
    # The host's constructor makes only full-size networks, so it gets a small stand-in, and then the real one.
    small = {**autoencoder_params(encoder), "ch": 32, "ch_mult": [1] * len(encoder.channel_multipliers)}
    params = {"ddconfig": {**small, "num_res_blocks": 1}, "embed_dim": encoder.latent_channels}
    vae = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params})
    network = SplitAutoencoder(encoder, decoder).eval()
    load_strict(network, tensors, "the VAE")
    vae.first_stage_model = network.to(vae.vae_dtype)
    if hasattr(mm, "archive_model_dtypes"):
        mm.archive_model_dtypes(network)
    vae.patcher = managed(network, vae.device, mm.vae_offload_device())
    vae.latent_channels = encoder.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(encoder.channel_multipliers) - 1)
    vae.size = None
    vae.model_size()
    return vae
