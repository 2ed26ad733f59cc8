"""A tiny StreamingSVD file: every key family of the official one, a few million random weights.

The demo and the host tests use it where the real weights are not at hand. What it makes is noise that follows its
inputs; sizes, key names, types and code paths are those of the real file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.config import CamConfig, Level, StreamingSVDConfig, VideoUNetConfig
from streaming_core.models.streamingsvd.detect import (
    CLIP_VISION_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER_PREFIX,
    UNET_PREFIX,
)
from streaming_core.models.streamingsvd.network import CamNetwork
from streaming_core.models.towers import ClipVisionConfig, VaeConfig

from .host.inprocess import import_host, import_pack

TINY = StreamingSVDConfig(
    cam=CamConfig(
        unet=VideoUNetConfig(
            in_channels=8,
            out_channels=4,
            model_channels=64,
            levels=(Level(64, (1,), downsample=True), Level(64, (0,), downsample=False)),
            middle_depth=1,
            context_width=64,
            vector_width=768,
        ),
        pixel_channels=(8, 12, 16, 24),
    ),
    image_encoder=VaeConfig(32, (1, 1, 1, 1), 1, 4, temporal=False),
    first_stage=VaeConfig(32, (1, 1, 1, 1), 1, 4, temporal=True),
    clip_vision=ClipVisionConfig(64, 2, 1, 128, 56, 224, 64),
)


def official_shapes(config: StreamingSVDConfig) -> dict[str, tuple[int, ...]]:
    """Every key and shape of a file of this configuration, the unused parts of the official one included."""
    import_host()
    import_pack()
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfyui_streamingt2v.nodes.host import vae as host_vae
    from comfyui_streamingt2v.nodes.host.svd import build

    unet = build.empty_video_unet(config.cam.unet, torch.float32, 1, device="meta").diffusion_model
    shapes = {UNET_PREFIX + key: shape for key, shape in shapes_of(unet.state_dict()).items()}
    cam = shapes_of(CamNetwork(config.cam, device="meta").state_dict())
    shapes.update({key if key.startswith("controlnet.") else UNET_PREFIX + key: shape for key, shape in cam.items()})
    params = host_vae.autoencoder_params(config.image_encoder)
    with torch.device("meta"):
        image = AutoencoderKL(ddconfig=params, embed_dim=config.image_encoder.latent_channels)
        first = build.SplitAutoencoder(config.first_stage, config.first_stage)
    shapes.update({IMAGE_ENCODER_PREFIX + key: shape for key, shape in shapes_of(image.state_dict()).items()})
    own = {key: shape for key, shape in shapes_of(first.state_dict()).items() if not key.startswith("quant_conv")}
    shapes.update({FIRST_STAGE_PREFIX + key: shape for key, shape in own.items()})
    shapes.update({CLIP_VISION_PREFIX + key: shape for key, shape in openclip_shapes(config.clip_vision).items()})
    text = CLIP_VISION_PREFIX.removesuffix("visual.")
    width = config.clip_vision.projection_width
    shapes.update({text + "text_projection": (width, width), text + "logit_scale": ()})
    return shapes


def openclip_shapes(config: ClipVisionConfig) -> dict[str, tuple[int, ...]]:
    """Keys of an OpenCLIP image tower."""
    width, hidden = config.width, config.mlp_width
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((config.image_px // config.patch_px) ** 2 + 1, width),
        "proj": (width, config.projection_width),
        "conv1.weight": (width, 3, config.patch_px, config.patch_px),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes.update({f"{norm}.weight": (width,), f"{norm}.bias": (width,)})
    layers = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (width, hidden),
        "mlp.c_proj.bias": (width,),
    }
    for index in range(config.layers):
        shapes.update({f"transformer.resblocks.{index}.{key}": shape for key, shape in layers.items()})
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype=torch.float16) -> dict[str, Tensor]:
    """Weights of unit gain, so that activations neither vanish nor explode; norms are near 1, mixes at one half."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        if key.endswith("mix_factor"):
            weights[key] = torch.zeros(shape)
        elif len(shape) < 2:
            weights[key] = 0.02 * values + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = values / torch.Size(shape[1:]).numel() ** 0.5
    return {key: value.to(dtype) for key, value in weights.items()}


def write_tiny_streamingsvd(path: Path, seed: int = 0) -> Path:
    """Write the tiny file; a few seconds, about 25 MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(official_shapes(TINY), seed), path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    print(write_tiny_streamingsvd(parser.parse_args().path))
