"""The official layout of a StreamingModelscope file from its configuration, the way back from `detect.py`."""

from __future__ import annotations

import torch

from ..registry import shapes_of
from ..shapes import KeyShapes, openclip_shapes
from ..towers import VaeConfig
from .apm import ImageProjector
from .cam import ModelscopeCam
from .config import StreamingModelscopeConfig, TextEncoderConfig
from .detect import APM_PREFIX, CLIP_VISION_PREFIX, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from .unet import VideoUNet


def clip_text_shapes(config: TextEncoderConfig) -> KeyShapes:
    """Keys of a CLIP text tower in the transformers layout."""
    width, stem = config.width, "text_model."
    shapes: KeyShapes = {
        stem + "embeddings.token_embedding.weight": (config.vocabulary, width),
        stem + "embeddings.position_embedding.weight": (config.max_tokens, width),
    }
    layers = {f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")}
    layers |= {"mlp.fc1": (config.mlp_width, width), "mlp.fc2": (width, config.mlp_width)}
    norms = ["final_layer_norm"]
    for index in range(config.layers):
        for name, shape in layers.items():
            shapes[f"{stem}encoder.layers.{index}.{name}.weight"] = shape
            shapes[f"{stem}encoder.layers.{index}.{name}.bias"] = shape[:1]
        norms += [f"encoder.layers.{index}.layer_norm{number}" for number in (1, 2)]
    return shapes | {f"{stem}{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def diffusers_vae_shapes(config: VaeConfig) -> KeyShapes:
    """Keys of a KL autoencoder in the diffusers layout."""
    from diffusers import AutoencoderKL

    levels = len(config.channel_multipliers)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=tuple(config.base_channels * factor for factor in config.channel_multipliers),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_channels,
        )
    return shapes_of(vae.state_dict())


def official_shapes(config: StreamingModelscopeConfig) -> KeyShapes:
    """Every key and shape of a `streaming_t2v` file of this configuration, those that nothing reads included."""
    unet = shapes_of(VideoUNet(config.unet, device="meta").state_dict())
    cam = shapes_of(ModelscopeCam(config.cam, device="meta").state_dict())
    shapes = {UNET_PREFIX + key: shape for key, shape in unet.items()}
    shapes |= {key if key.startswith("unet.") else UNET_PREFIX + key: shape for key, shape in cam.items()}
    projector = shapes_of(ImageProjector(config.image_projector, device="meta").state_dict())
    shapes |= {APM_PREFIX + key: shape for key, shape in projector.items()}
    shapes |= {TEXT_PREFIX + key: shape for key, shape in clip_text_shapes(config.text_encoder).items()}
    shapes |= {VAE_PREFIX + key: shape for key, shape in diffusers_vae_shapes(config.vae).items()}
    shapes |= {CLIP_VISION_PREFIX + key: shape for key, shape in openclip_shapes(config.clip_vision).items()}
    left_over, width = CLIP_VISION_PREFIX.removesuffix("visual."), config.clip_vision.projection_width
    return shapes | {left_over + "text_projection": (width, width), left_over + "logit_scale": ()}
