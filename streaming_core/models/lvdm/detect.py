"""From keys and shapes of a file to the configurations of its networks.

Keys are those without prefix (`weights.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import CheckpointError
from ..registry import Architecture, IncompleteCheckpointError, Shapes, WrongCheckpointError, count_indices, dimension
from .config import LvdmConfig, VideoAutoencoderConfig

ARCHITECTURE = Architecture(
    name="LVDM",
    required={
        "input_blocks.0.0.": "the first convolution",
        "middle_block.": "the middle",
        "output_blocks.": "the way up",
        "time_embed.": "the noise level",
        "out.2.": "the last convolution",
    },
    looks_like=(
        (("encoder.conv_blocks.", "decoder.conv_blocks."), "LVDM's autoencoder: choose it as autoencoder file"),
        (("decoder.conv_blocks.",), "a part of LVDM's autoencoder"),
        (("fps_embedding.", "patch_embed."), "DropletVideo: use its loader"),
        (("transformer_in.", "down_blocks."), "ModelScope text-to-video: use its loader"),
        (("fps_embedding.", "down_blocks."), "I2VGen-XL: use the enhancer's loader"),
        (("down_blocks.", "up_blocks."), "a UNet in the diffusers layout"),
        (("encoder.down.", "decoder.up."), "a VAE in the layout of Stable Diffusion"),
        (("text_model.",), "a CLIP text encoder"),
        (("lora_",), "a LoRA"),
        (("input_blocks.",), "a part of a UNet, or a damaged file: use a whole one"),
        (("blocks.", "patch_embedding."), "a Wan transformer, which ComfyUI loads itself"),
    ),
)

AUTOENCODER = Architecture(
    name="LVDM autoencoder",
    required={
        "encoder.conv_blocks.": "the encoder over frames",
        "decoder.conv_blocks.": "the decoder over frames",
        "quant_conv.": "the convolution after the encoder",
        "post_quant_conv.": "the convolution before the decoder",
    },
    looks_like=(
        (("input_blocks.", "output_blocks."), "a UNet without an autoencoder"),
        (("encoder.down.", "decoder.up."), "a VAE in the layout of Stable Diffusion"),
        (("encoder.down_blocks.", "decoder.up_blocks."), "another model's VAE"),
        (("decoder.conv_blocks.",), "a decoder without its encoder: use a whole file"),
        (("encoder.conv_blocks.",), "an encoder without its decoder: use a whole file"),
    ),
)


@dataclass(frozen=True)
class _Level:
    width: int
    blocks: int
    attends: bool


def detect(shapes: Shapes, source: str = "the file", heads: int | None = None) -> LvdmConfig:
    """The UNet with these keys and shapes.

    Args:
        shapes: of every tensor of the UNet.
        source: names the file in errors.
        heads: of attentions, for a UNet without relative positions, whose shapes do not tell; default the official 4,
            or 8 with text.

    Raises:
        WrongCheckpointError: another network, by its name.
        IncompleteCheckpointError: a part of the network is missing.
        CheckpointError: sizes that contradict each other.
    """
    ARCHITECTURE.check(shapes, source)
    first = tuple(dimension(shapes, "input_blocks.0.0.weight", axis) for axis in range(_rank(shapes)))
    if first[2:] != (1, 3, 3):
        raise WrongCheckpointError(
            f"{source} is not an LVDM checkpoint: its first convolution covers {' x '.join(map(str, first[2:]))} and "
            f"not 1 x 3 x 3 latents; this looks like {_other_unet(shapes)}"
        )
    width, levels = first[0], _levels(shapes, source)
    text = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    tables = [(key, shape) for key, shape in shapes.items() if key.endswith("relative_position_k.embeddings_table")]
    try:
        residual = "input_blocks.1.0."
        return LvdmConfig(
            width=width,
            multipliers=tuple(_divided(level.width, width, source) for level in levels),
            blocks_per_level=levels[0].blocks,
            attention=tuple(level.attends for level in levels),
            heads=_heads(shapes, tables, source) or heads or (8 if text in shapes else LvdmConfig.heads),
            in_channels=first[1],
            out_channels=shapes["out.2.weight"][0],
            temporal_length=(tables[0][1][0] - 1) // 2 if tables else None,
            scale_shift=shapes[f"{residual}emb_layers.1.weight"][0] == 2 * shapes[f"{residual}in_layers.2.weight"][0],
            context_width=shapes[text][1] if text in shapes else None,
            depth=max(1, count_indices(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")),
            labels=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        )
    except KeyError as missing:
        raise IncompleteCheckpointError(f"{source} looks like LVDM but lacks {missing}; use a whole file") from None


def _rank(shapes: Shapes) -> int:
    return len(shapes.get("input_blocks.0.0.weight", ()))


def _other_unet(shapes: Shapes) -> str:
    keys = list(shapes)
    if any("temopral_conv" in key for key in keys):
        return "ModelScope's UNet in its original layout: use its loader"
    if any("time_stack" in key for key in keys):
        return "Stable Video Diffusion, which ComfyUI loads itself"
    return "a UNet for images, such as Stable Diffusion's" if _rank(shapes) == 4 else "another model's UNet"


def _levels(shapes: Shapes, source: str) -> list[_Level]:
    """Sizes of every level on the way down, read block by block until the first that is not there."""
    levels: list[_Level] = []
    blocks, width, attends = 0, 0, False
    for number in range(1, 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks."))):
        stem = f"input_blocks.{number}."
        if f"{stem}0.op.weight" in shapes:
            levels.append(_Level(width, blocks, attends))
            blocks = 0
            continue
        width = dimension(shapes, f"{stem}0.in_layers.2.weight", 0)
        attends = any(key.startswith(f"{stem}1.") for key in shapes)
        blocks += 1
    levels.append(_Level(width, blocks, attends))
    if len({level.blocks for level in levels}) > 1 or not levels[0].blocks:
        counts = ", ".join(str(level.blocks) for level in levels)
        raise IncompleteCheckpointError(
            f"{source} has levels of {counts} residual blocks, not all alike; use a whole file"
        )
    return levels


def _heads(shapes: Shapes, tables: list[tuple[str, Sequence[int]]], source: str) -> int | None:
    """Heads of the attentions, of which the relative positions have the width; None where there are none."""
    found = set()
    for key, (_, head_width) in tables:
        stem = key.partition("relative_position_k")[0]
        text = f"{stem}to_q.weight"
        channels = shapes[text][1] if text in shapes else dimension(shapes, f"{stem}proj_out_t.weight", 0)
        found.add(_divided(channels, head_width, source))
    if len(found) > 1:
        raise CheckpointError(
            f"{source} has attentions of {', '.join(map(str, sorted(found)))} heads, and LVDM's are all alike; use an "
            "unmodified file"
        )
    return found.pop() if found else None


def _divided(width: int, by: int, source: str) -> int:
    if not by or width % by:
        raise CheckpointError(f"{source} has a layer {width} wide, which {by} does not divide; use an unmodified file")
    return width // by


def detect_autoencoder(
    shapes: Shapes, source: str = "the file", scales: tuple[int, int, int] | None = None
) -> VideoAutoencoderConfig:
    """The 3-D autoencoder with these keys and shapes; errors are those of `detect`.

    scales: frames, rows and columns per latent, of which shapes tell the largest only. Default as published: time is
        halved at all levels but the last (at the only one where there is one).
    """
    AUTOENCODER.check(shapes, source)
    levels = count_indices(shapes, r"decoder\.conv_blocks\.(\d+)\.")
    space = 2**levels
    config = VideoAutoencoderConfig(
        base_channels=dimension(shapes, "encoder.conv_first.conv.weight", 0),
        hidden_channels=dimension(shapes, "post_quant_conv.conv.weight", 0),
        latent_channels=dimension(shapes, "post_quant_conv.conv.weight", 1),
        scales=scales or (2 ** max(1, levels - 1), space, space),
    )
    if max(config.scales) != space:
        raise CheckpointError(
            f"{source} has {levels} levels and makes 1 latent of {space} pixels, not of {max(config.scales)}"
        )
    return config
