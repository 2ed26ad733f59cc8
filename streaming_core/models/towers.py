"""What several families carry: KL autoencoders, OpenCLIP image towers, encoders of control frames."""

from __future__ import annotations

from dataclasses import dataclass

from .registry import Shapes, count_indices, dimension


@dataclass(frozen=True)
class VaeConfig:
    """A KL autoencoder of the Stable Diffusion kind; `temporal`: its decoder mixes frames."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    temporal: bool


@dataclass(frozen=True)
class ClipVisionConfig:
    """An OpenCLIP image tower."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_px: int
    image_px: int
    projection_width: int


def detect_vae(shapes: Shapes, prefix: str) -> VaeConfig:
    """Configuration of a KL autoencoder from its decoder's keys; 8x compression has four levels."""
    keys = [key[len(prefix) :] for key in shapes if key.startswith(prefix)]
    level_count = count_indices(keys, r"decoder\.up\.(\d+)\.")
    base = dimension(shapes, f"{prefix}decoder.norm_out.weight", 0)
    widths = [dimension(shapes, f"{prefix}decoder.up.{level}.block.0.norm2.weight", 0) for level in range(level_count)]
    # The first level's width is base * multiplier; multipliers start at 1 in every Stable Diffusion autoencoder.
    return VaeConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=count_indices(keys, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        latent_channels=dimension(shapes, f"{prefix}decoder.conv_in.weight", 1),
        temporal=f"{prefix}decoder.mid.block_1.mix_factor" in shapes,
    )


def detect_vae_encoder(shapes: Shapes, prefix: str) -> VaeConfig:
    """Configuration of a KL autoencoder of which only the encoder is read; a decoder need not be there."""
    keys = [key[len(prefix) :] for key in shapes if key.startswith(prefix)]
    level_count = count_indices(keys, r"encoder\.down\.(\d+)\.")
    base = dimension(shapes, f"{prefix}encoder.conv_in.weight", 0)
    widths = [
        dimension(shapes, f"{prefix}encoder.down.{level}.block.0.norm2.weight", 0) for level in range(level_count)
    ]
    return VaeConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=count_indices(keys, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=dimension(shapes, f"{prefix}encoder.conv_out.weight", 0) // 2,
        temporal=False,
    )


_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Head widths of the OpenCLIP towers whose heads are not 64 wide: ViT-H, ViT-g, ViT-bigG."""


def detect_clip_vision(shapes: Shapes, prefix: str) -> ClipVisionConfig:
    """Configuration of an OpenCLIP image tower; ViT-H-14 is 1280 wide, 32 layers, 16 heads."""
    keys = [key[len(prefix) :] for key in shapes if key.startswith(prefix)]
    width, patch = (dimension(shapes, f"{prefix}conv1.weight", axis) for axis in (0, 2))
    tokens = dimension(shapes, f"{prefix}positional_embedding", 0)
    return ClipVisionConfig(
        width=width,
        layers=count_indices(keys, r"transformer\.resblocks\.(\d+)\."),
        heads=max(1, width // _HEAD_WIDTHS.get(width, 64)),
        mlp_width=dimension(shapes, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 0),
        patch_px=patch,
        image_px=patch * round((tokens - 1) ** 0.5),
        projection_width=dimension(shapes, f"{prefix}proj", 1),
    )


def detect_pixel_channels(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    """Channels of a `PixelEncoder` between its strides; the official encoders have 32, 96, 256, 512."""
    keys = [key[len(prefix) :] for key in shapes if key.startswith(prefix)]
    strided = range(1, count_indices(keys, r"blocks\.(\d+)\."), 2)
    first = dimension(shapes, f"{prefix}conv_in.weight", 0)
    return (first, *(dimension(shapes, f"{prefix}blocks.{index}.weight", 0) for index in strided))
