"""The host's CLIP and VAE of checkpoints that bring their own, and safetensors copies of such files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import folder_paths
import safetensors.torch
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.sd import CLIP, VAE
from comfy.sd1_clip import SD1Tokenizer
from comfy.text_encoders.sd2_clip import SD2Tokenizer
from torch import Tensor

from ....streaming_core.atomic import atomic_write
from ....streaming_core.errors import CheckpointError
from ....streaming_core.models.layers import Device
from ....streaming_core.models.modelscope.config import TextEncoderConfig
from ....streaming_core.models.modelscope.vae_names import rename_vae
from ....streaming_core.models.registry import compare_keys, shapes_of
from ....streaming_core.models.towers import VaeConfig
from ..patchers import parameter_count
from ..vae import autoencoder_params


def write_safetensors_copy(path: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Write `tensors` next to the checkpoint as safetensors unless a copy exists; returns the new file's path."""
    target = os.path.splitext(path)[0] + ".safetensors"
    if os.path.exists(target):
        return None
    with atomic_write(target) as temporary:
        # Tensors of a pickle may share memory, which the format refuses.
        safetensors.torch.save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, temporary)
    return target


def build_kl_vae(tensors: Mapping[str, Tensor], config: VaeConfig) -> VAE:
    """VAE from a KL autoencoder in the diffusers layout, loaded strictly."""
    return build_image_vae(rename_vae(tensors, len(config.channel_multipliers)), config)


def build_image_vae(tensors: Mapping[str, Tensor], config: VaeConfig) -> VAE:
    """VAE from a KL autoencoder in the layout of Stable Diffusion, loaded strictly."""
    params = {"ddconfig": autoencoder_params(config), "embed_dim": config.latent_channels}
    expected = AutoencoderKL(**params).state_dict()
    compare_keys(shapes_of(expected), shapes_of(tensors), "the VAE")
    vae = comfy.sd.VAE(sd=dict(tensors), config={"params": params})
    vae.latent_channels = config.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(config.channel_multipliers) - 1)
    return vae


def text_tower_class(config: TextEncoderConfig, openai: bool = False) -> type[comfy.sd1_clip.SD1ClipModel]:
    """The host's CLIP model class for `config`: last hidden state after the final norm.

    openai: OpenAI's tower, with its own activation and padded with the token of the end, instead of OpenCLIP's, padded
        with token 0.
    """
    described = {
        "hidden_act": "quick_gelu" if openai else "gelu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": config.max_tokens,
        "vocab_size": config.vocabulary,
        "layer_norm_eps": 1e-05,
        "eos_token_id": 49407,
    }

    class TextTower(comfy.sd1_clip.SDClipModel):
        def __init__(
            self,
            device: Device = "cpu",
            dtype: torch.dtype | None = None,
            model_options: dict[str, Any] | None = None,
        ) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=config.max_tokens,
                layer="last",
                textmodel_json_config=dict(described),
                special_tokens={"start": 49406, "end": 49407, "pad": 49407 if openai else 0},
                model_options=model_options or {},
            )

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(
            self,
            device: Device = "cpu",
            dtype: torch.dtype | None = None,
            model_options: dict[str, Any] | None = None,
        ) -> None:
            options = model_options or {}
            super().__init__(device, dtype, options, clip_name="l" if openai else "h", clip_model=TextTower)

    return TextModel


def build_text_encoder(tensors: Mapping[str, Tensor], config: TextEncoderConfig, openai: bool = False) -> CLIP:
    """CLIP from a text tower in the transformers layout, loaded strictly; `openai`: see `text_tower_class`.

    StreamingModelscope's is Stable Diffusion 2's tower without its last layer, whose output officially goes through
    the final norm: what the host does with all layers and "penultimate", this does with the layers that the file has.
    """
    tokenizer = SD1Tokenizer if openai else SD2Tokenizer
    target = comfy.supported_models_base.ClipTarget(tokenizer, text_tower_class(config, openai))
    parameters = parameter_count(tensors)
    clip = comfy.sd.CLIP(target, embedding_directory=folder_paths.get_folder_paths("embeddings"), parameters=parameters)
    tower = (clip.cond_stage_model.clip_l if openai else clip.cond_stage_model.clip_h).transformer
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}
    expected = {key: tensor for key, tensor in tower.state_dict().items() if not key.startswith("text_projection.")}
    compare_keys(shapes_of(expected), shapes_of(tensors), "the text encoder")
    # The projection of the pooled output is the host's addition; nothing here reads it, but it must not be garbage.
    identity = {"text_projection.weight": torch.eye(config.width)}
    missing, _ = clip.load_sd({**tensors, **identity})
    if missing:
        raise CheckpointError(f"the text encoder misses {len(missing)} keys (first {', '.join(missing[:3])})")
    return clip
