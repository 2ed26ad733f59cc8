"""Keys and shapes of an EMA-VFI weight file -> `EmaVfiConfig` (reference: ema-vfi, section 1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import SettingsError
from ..registry import Architecture, IncompleteCheckpointError, Shapes, WrongCheckpointError, count_indices, shapes_of
from .config import HEAD_WIDTH, WINDOW, EmaVfiConfig

ARCHITECTURE = Architecture(
    name="EMA-VFI",
    required={
        "feature_bone.patch_embed4.layers.": "cross-scale embedding",
        "feature_bone.block4.0.attn.cor_embed.": "motion attention",
        "block.0.conv.": "flow heads",
        "unet.down0.": "refinement",
    },
    looks_like=(
        (("extract.extract_sublevels.",), "FILM, for the host's own frame interpolation loader"),
        (("block0.", "block1."), "RIFE, for the host's own frame interpolation loader"),
        (("flownet.block0.",), "RIFE, for the host's own frame interpolation loader"),
    ),
)
PREFIX = "module."
RUN_TIME_BUFFERS = ("attn_mask", "HW")


def official_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file under the names of the network: without `module.` in front, without run-time buffers.

    Safe copies of published files often lack the prefix, so both forms are taken.
    """
    named = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return {key: tensor for key, tensor in named.items() if not any(word in key for word in RUN_TIME_BUFFERS)}


def detect(shapes: Shapes, num_heads: tuple[int, int] | None = None, window: int = WINDOW) -> EmaVfiConfig:
    """Read the configuration off `shapes` (official names, see `official_tensors`).

    Head counts leave no trace in the shapes: without `num_heads` heads are 32 channels wide, as in every published
    file. Raises `WrongCheckpointError` for other networks, `IncompleteCheckpointError` where a key is missing.
    """
    ARCHITECTURE.check(shapes, "this file")
    bone, heads_are_given = "feature_bone.", num_heads is not None
    try:
        channels = (
            shapes[f"{bone}block1.conv.0.weight"][0],
            shapes[f"{bone}patch_embed2.0.weight"][0],
            shapes[f"{bone}patch_embed3.0.weight"][0],
            shapes[f"{bone}patch_embed4.proj.weight"][0],
            shapes[f"{bone}patch_embed5.proj.weight"][0],
        )
        conv_depths = [count_indices(shapes, rf"feature_bone\.block{stage}\.conv\.(\d+)\.") // 2 for stage in (1, 2, 3)]
        block_depths = [count_indices(shapes, rf"feature_bone\.block{stage}\.(\d+)\.") for stage in (4, 5)]
        empty = [stage for stage, depth in enumerate((*conv_depths, *block_depths), start=1) if not depth]
        if empty:
            raise IncompleteCheckpointError(f"stage {empty[0]} of this EMA-VFI file has no layers; use a complete file")
        if num_heads is None:
            if any(width % HEAD_WIDTH for width in channels[3:]):
                raise WrongCheckpointError(
                    f"stages of {channels[3]} and {channels[4]} channels cannot be cut into heads of {HEAD_WIDTH}; "
                    "this is not one of the published EMA-VFI variants"
                )
            num_heads = (channels[3] // HEAD_WIDTH, channels[4] // HEAD_WIDTH)
        return EmaVfiConfig(
            channels=channels,
            depths=(conv_depths[0], conv_depths[1], conv_depths[2], block_depths[0], block_depths[1]),
            num_heads=num_heads,
            motion_channels=(
                shapes[f"{bone}block4.0.attn.cor_embed.weight"][0],
                shapes[f"{bone}block5.0.attn.cor_embed.weight"][0],
            ),
            mlp_channels=(shapes[f"{bone}block4.0.mlp.fc1.weight"][0], shapes[f"{bone}block5.0.mlp.fc1.weight"][0]),
            flow_channels=(shapes["block.0.conv.0.0.weight"][0], shapes["block.1.conv.0.0.weight"][0]),
            refine_channels=shapes["unet.conv.weight"][1],
            window=window,
        )
    except SettingsError as error:
        if heads_are_given:
            raise
        raise IncompleteCheckpointError(f"the weights contradict each other ({error}); use a complete file") from error
    except KeyError as missing:
        raise IncompleteCheckpointError(f"this EMA-VFI file lacks {missing.args[0]}; use a complete file") from None


def detect_tensors(tensors: Mapping[str, Tensor]) -> tuple[EmaVfiConfig, dict[str, Tensor]]:
    """Configuration and renamed weights of a loaded file."""
    named = official_tensors(tensors)
    return detect(shapes_of(named)), named
