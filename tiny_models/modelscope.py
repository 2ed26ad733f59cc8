"""Tiny files of the StreamingModelscope family: official key layouts, random weights.

`write_tiny_modelscope` makes a `streaming_t2v` file, `write_tiny_base` the base text-to-video UNet and
`write_tiny_vid2vid` the refiner's. What they make is noise that follows its inputs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from streaming_core.models.modelscope.config import StreamingModelscopeConfig, UNet3DConfig
from streaming_core.models.modelscope.shapes import official_shapes
from streaming_core.models.modelscope.unet import VideoUNet
from streaming_core.models.registry import shapes_of
from training.configs import DEMO_MODELSCOPE, DEMO_TEXT_TO_VIDEO

from .streamingsvd import random_weights, write

BASE = replace(DEMO_TEXT_TO_VIDEO, attention=(True, False))
UNET = replace(BASE, mixers=DEMO_MODELSCOPE.unet.mixers)
TINY = replace(
    DEMO_MODELSCOPE,
    unet=UNET,
    cam=replace(DEMO_MODELSCOPE.cam, unet=BASE, pixel_channels=(8, 12, 16, 24)),
    image_projector=replace(DEMO_MODELSCOPE.image_projector, inner_width=80),
    vae=replace(DEMO_MODELSCOPE.vae, base_channels=32),
    clip_vision=replace(DEMO_MODELSCOPE.clip_vision, patch_px=56),
)
"""The demo's networks with less inside, and with attention at the full resolution."""


def tiny_weights(
    seed: int = 0, config: StreamingModelscopeConfig = TINY, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """A whole `streaming_t2v` file; mixers are open, so anchors change what is made."""
    weights = random_weights(official_shapes(config), seed, dtype)
    return {key: torch.ones_like(value) if key.endswith(".alpha") else value for key, value in weights.items()}


def base_weights(seed: int = 1, config: UNet3DConfig = BASE, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The base text-to-video UNet in the diffusers layout."""
    return random_weights(shapes_of(VideoUNet(config, device="meta").state_dict()), seed, dtype)


def vid2vid_names(config: UNet3DConfig) -> dict[str, str]:
    """Stem in the diffusers layout -> stem in MS-Vid2Vid's, for every layer of a UNet of `config`."""
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "transformer_in": "input_blocks.0.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.temp_convs.0": "middle_block.0.temopral_conv",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.temp_attentions.0": "middle_block.2",
        "mid_block.resnets.1": "middle_block.3",
        "mid_block.temp_convs.1": "middle_block.3.temopral_conv",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    def layer(block: str, number: int, entry: str) -> None:
        names[f"{block}.resnets.{number}"] = f"{entry}.0"
        names[f"{block}.temp_convs.{number}"] = f"{entry}.0.temopral_conv"
        names[f"{block}.attentions.{number}"] = f"{entry}.1"
        names[f"{block}.temp_attentions.{number}"] = f"{entry}.2"

    levels, entry = len(config.channels), 1
    for level in range(levels):
        for number in range(config.layers_per_block):
            layer(f"down_blocks.{level}", number, f"input_blocks.{entry}")
            entry += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{entry}.op"
            entry += 1
    entry = 0
    for level, attention in enumerate(reversed(config.attention)):
        for number in range(config.layers_per_block + 1):
            layer(f"up_blocks.{level}", number, f"output_blocks.{entry}")
            entry += 1
        if level < levels - 1:
            names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{entry - 1}.{3 if attention else 1}"
    return names


RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def vid2vid_key(key: str, names: dict[str, str]) -> str:
    """`key` of the diffusers layout in MS-Vid2Vid's."""
    stem = max((stem for stem in names if key.startswith(stem + ".")), key=len)
    rest = key[len(stem) + 1 :]
    if ".resnets." in stem:
        own = next(name for name in RESNET_NAMES if rest.startswith(name + "."))
        rest = RESNET_NAMES[own] + rest[len(own) :]
    return f"{names[stem]}.{rest}"


def vid2vid_weights(
    seed: int = 2, config: UNet3DConfig = BASE, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """MS-Vid2Vid's UNet under its official names; temporal projections are 1x1 convolutions there."""
    names, weights = vid2vid_names(config), {}
    for key, value in base_weights(seed, config, dtype).items():
        new = vid2vid_key(key, names)
        temporal = key.startswith("transformer_in.") or ".temp_attentions." in key
        if temporal and key.endswith(("proj_in.weight", "proj_out.weight")):
            value = value.unsqueeze(-1)
        weights[new] = value
    return weights


def write_tiny_vid2vid(path: Path, seed: int = 2) -> Path:
    """As the release: a pickle with the weights under `state_dict`, or safetensors by the ending."""
    weights = vid2vid_weights(seed)
    return write(path, weights, {"state_dict": weights})


def write_tiny_modelscope(path: Path, seed: int = 0) -> Path:
    """The tiny `streaming_t2v` file, as safetensors or, by its ending, as the pickle that the release is."""
    weights = tiny_weights(seed)
    return write(path, weights, {"state_dict": weights, "epoch": 0, "pytorch-lightning_version": "2.0.9"})


def write_tiny_base(path: Path, seed: int = 1) -> Path:
    return write(path, base_weights(seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--base", type=Path, help="also write the base UNet here")
    arguments = parser.parse_args()
    print(write_tiny_modelscope(arguments.path))
    if arguments.base:
        print(write_tiny_base(arguments.base))
