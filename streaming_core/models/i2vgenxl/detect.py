"""I2VGen-XL's configuration from the keys and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import CheckpointError
from ..registry import Architecture, Shapes, count_indices
from ..unet3d import UNet3DSizes

TRANSFORMER_IN_HEADS = 8
"""Heads of the first temporal transformer, at every size; the width of a head follows from its weights."""

ARCHITECTURE = Architecture(
    name="I2VGen-XL",
    required={
        "image_latents_temporal_encoder.": "the encoder of the conditioning image over time",
        "image_latents_context_embedding.": "the tokens of the conditioning image",
        "fps_embedding.": "the frame-rate condition",
        "transformer_in.": "the first temporal transformer",
        "down_blocks.": "the way down of the UNet",
        "up_blocks.": "the way up of the UNet",
    },
    looks_like=(
        (("input_blocks.", "temporal_conv."), "a video UNet in its original layout"),
        (("input_blocks.0.1.",), "the MS-Vid2Vid refiner, which this node does not load"),
        (("controlnet.", "model.diffusion_model."), "a StreamingSVD checkpoint: use Load StreamingSVD"),
        (("model.diffusion_model.",), "a complete checkpoint: the enhancer needs the UNet file alone"),
        (("base_model.", "resampler."), "a StreamingModelscope checkpoint"),
        (("input_blocks.", "output_blocks."), "a UNet in its original layout: the diffusers layout is needed"),
        (("transformer_in.", "down_blocks."), "a text-to-video UNet without image conditions (ModelScope, ZeroScope)"),
        (("down_blocks.", "up_blocks."), "a UNet for still images"),
        (("encoder.", "decoder."), "a VAE"),
        (("text_model.",), "a text encoder"),
    ),
)


@dataclass(frozen=True)
class I2VGenXLConfig:
    """Sizes of one network. Defaults are the released model's."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    head_width: int = 64
    norm_groups: int = 32
    latent_channels: int = 4

    @property
    def sizes(self) -> UNet3DSizes:
        """What the network shared with other families wants to know; latents of the image join the noisy ones."""
        return UNet3DSizes(
            in_channels=2 * self.latent_channels,
            out_channels=self.latent_channels,
            channels=self.block_out_channels,
            attention=self.attention_levels,
            layers_per_block=self.layers_per_block,
            context_width=self.cross_attention_dim,
            input_attention_width=TRANSFORMER_IN_HEADS * self.head_width,
            head_width=self.head_width,
            norm_groups=self.norm_groups,
        )


def detect(shapes: Shapes, source: str = "the file", norm_groups: int = 32) -> I2VGenXLConfig:
    """The configuration of the network with these keys and shapes.

    The number of groups of the normalizations leaves no trace in the weights: `norm_groups` says it.

    Raises `WrongCheckpointError` with what is missing when the keys are another network's, `CheckpointError` when the
    shapes contradict each other.
    """
    ARCHITECTURE.check(shapes, source)
    try:
        levels = count_indices(shapes, r"down_blocks\.(\d+)\.")
        channels = tuple(shapes[f"down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels))
        config = I2VGenXLConfig(
            block_out_channels=channels,
            attention_levels=tuple(
                any(key.startswith(f"down_blocks.{level}.attentions.") for key in shapes) for level in range(levels)
            ),
            layers_per_block=count_indices(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
            cross_attention_dim=shapes["context_embedding.0.weight"][1],
            head_width=shapes["transformer_in.proj_in.weight"][0] // TRANSFORMER_IN_HEADS,
            norm_groups=norm_groups,
            latent_channels=shapes["conv_out.weight"][0],
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{source} looks like I2VGen-XL but lacks {error}; use a complete file") from error
    odd = [width for width in channels if width % norm_groups or width % config.head_width]
    if odd or not config.head_width:
        raise CheckpointError(
            f"{source} has levels of {', '.join(map(str, channels))} channels, which {norm_groups} groups and heads "
            f"of {config.head_width} do not divide; use an unmodified file"
        )
    return config
