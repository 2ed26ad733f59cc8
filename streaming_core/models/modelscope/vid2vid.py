"""MS-Vid2Vid's UNet under the names of the ModelScope UNet (reference: streamingmodelscope, sections 6.2 and 10).

The refiner has the same layers in the original ModelScope naming; renamed, and with its own padding rules
(`UNet3DConfig.padded_rows`), the same network runs it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ...errors import CheckpointError, SettingsError
from ..registry import Architecture, WrongCheckpointError

log = logging.getLogger(__name__)

Role = Literal["MS-Vid2Vid", "ModelScope text-to-video"]
VELOCITY_MARK = "v_pred"
"""The key that ComfyUI saves with models that predict velocity, as MS-Vid2Vid does and text-to-video does not."""
_NAMES: Mapping[Role, re.Pattern[str]] = {
    "MS-Vid2Vid": re.compile(r"non_ema|vid(eo)?[-_ ]?(2|to)[-_ ]?vid(eo)?|v2v"),
    "ModelScope text-to-video": re.compile(r"te?xt[-_ ]?(2|to)[-_ ]?vid(eo)?|t2v|zeroscope|potat"),
}
_AN: Mapping[Role, str] = {
    "MS-Vid2Vid": "an MS-Vid2Vid",
    "ModelScope text-to-video": "a ModelScope text-to-video",
}
_READERS: Mapping[Role, str] = {"MS-Vid2Vid": "Load Enhancer", "ModelScope text-to-video": "Load ModelScope T2V"}

ARCHITECTURE = Architecture(
    name="MS-Vid2Vid",
    required={
        "time_embed.": "the timestep embedding",
        "input_blocks.0.1.proj_in.": "the temporal entry",
        "middle_block.2.": "the middle",
        "out.2.": "the exit",
    },
    looks_like=(
        (("transformer_in.", "down_blocks.0.temp_convs."), "a ModelScope text-to-video UNet in the diffusers layout"),
        (("down_blocks.", "image_latents_proj_in."), "an I2VGen-XL UNet"),
        (("controlnet.", "model.diffusion_model.", "conditioner."), "a StreamingSVD checkpoint"),
        (("model.diffusion_model.input_blocks.",), "a Stable Diffusion checkpoint"),
    ),
)

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.0.1": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.temp_attentions.0",
    "middle_block.3": "mid_block.resnets.1",
}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _entries(keys: set[str], side: str) -> dict[int, set[str]]:
    """The parts of every entry of `input_blocks` or `output_blocks`: index -> names of its first level."""
    found: dict[int, set[str]] = {}
    for key in keys:
        match = re.match(rf"{side}\.(\d+)\.(\w+)\.", key)
        if match:
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def _is_resnet(keys: set[str], stem: str) -> bool:
    return f"{stem}.in_layers.0.weight" in keys


def _stems(keys: set[str]) -> dict[str, str]:
    """Old stem -> new stem of every layer."""
    stems = dict(_TOP)
    level, layer = 0, 0
    for index in sorted(_entries(keys, "input_blocks"))[1:]:
        old = f"input_blocks.{index}"
        if f"{old}.op.weight" in keys:
            stems[f"{old}.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
            continue
        for number, kind in enumerate(("resnets", "attentions", "temp_attentions")):
            stems[f"{old}.{number}"] = f"down_blocks.{level}.{kind}.{layer}"
        layer += 1
    level, layer = 0, 0
    for index, parts in sorted(_entries(keys, "output_blocks").items()):
        old = f"output_blocks.{index}"
        upsampler: str | None = None
        for part in sorted(parts, key=int):
            if f"{old}.{part}.conv.weight" in keys:
                upsampler = part
        kinds = ("resnets", "attentions", "temp_attentions")
        for part, kind in zip(sorted(parts - {upsampler or ""}, key=int), kinds, strict=False):
            stems[f"{old}.{part}"] = f"up_blocks.{level}.{kind}.{layer}"
        layer += 1
        if upsampler is not None:
            stems[f"{old}.{upsampler}"] = f"up_blocks.{level}.upsamplers.0"
            level, layer = level + 1, 0
    return stems


def renamed_keys(keys: set[str]) -> dict[str, str]:
    """Every key of an MS-Vid2Vid UNet -> its name in the diffusers layout.

    Raises `CheckpointError` for a key that fits no rule.
    """
    stems = _stems(keys)
    ordered = sorted(stems, key=len, reverse=True)
    result = {}
    for key in keys:
        stem = next((stem for stem in ordered if key.startswith(stem + ".")), None)
        if stem is None:
            raise CheckpointError(f"key {key} belongs to no layer of MS-Vid2Vid; use the official UNet file")
        rest = key[len(stem) + 1 :]
        new = stems[stem]
        if _is_resnet(keys, stem):
            if rest.startswith("temopral_conv."):
                new, rest = new.replace(".resnets.", ".temp_convs."), rest.removeprefix("temopral_conv.")
            else:
                old = next((name for name in _RESNET if rest.startswith(name + ".")), None)
                if old is None:
                    raise CheckpointError(
                        f"key {key} belongs to no part of a residual block; use the official UNet file"
                    )
                rest = _RESNET[old] + rest[len(old) :]
        result[key] = f"{new}.{rest}"
    return result


def check_role(source: str, role: Role) -> None:
    """Say that the file `source`, in ModelScope's own layout, is taken as `role`.

    MS-Vid2Vid and ModelScope's text-to-video UNet (`text2video_pytorch_model.pth`, zeroscope's) have the same keys and
    shapes, but predict different things on different noise: the node decides, and the name of the file may contradict.
    Raises `WrongCheckpointError` when it is named as the other one.
    """
    other: Role = "ModelScope text-to-video" if role == "MS-Vid2Vid" else "MS-Vid2Vid"
    named = {role for role, pattern in _NAMES.items() if pattern.search(source.lower())}
    if named == {other}:
        raise WrongCheckpointError(
            f"{source} is by its name {_AN[other]} UNet, which {_READERS[other]} reads; if it is {_AN[role]} UNet "
            "(the layout is the same), give the file another name"
        )
    log.log(
        logging.INFO if named == {role} else logging.WARNING,
        "%s is read as %s UNet; %s one has the same layout and belongs in %s",
        source,
        _AN[role],
        _AN[other],
        _READERS[other],
    )


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An MS-Vid2Vid UNet's tensors in the diffusers layout: new names, and 1x1 Conv1d projections as linear ones."""
    names = renamed_keys(set(tensors))
    return {names[key]: _as_linear(names[key], tensor) for key, tensor in tensors.items()}


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    temporal = name.startswith("transformer_in.") or ".temp_attentions." in name
    projection = name.endswith((".proj_in.weight", ".proj_out.weight"))
    return tensor.squeeze(-1) if temporal and projection and tensor.ndim == 3 else tensor


def fit_refiner_size(
    height_px: int, width_px: int, box_height_px: int, box_width_px: int, factor: int
) -> tuple[int, int]:
    """Height and width of the largest image of about this shape inside the box that MS-Vid2Vid can work on.

    Widths are multiples of `8 * factor` pixels, heights `16 % (8 * factor)` more than such a multiple: with the
    official factor of 8 that is 64, and 16 more (720 fits). Raises `SettingsError` for a box that holds no such size.
    """
    step, extra = 8 * factor, 16 % (8 * factor)
    scale = min(box_height_px / height_px, box_width_px / width_px)
    height = (round(height_px * scale) - extra) // step * step + extra
    width = round(width_px * scale) // step * step
    if height < step or width < step:
        raise SettingsError(
            f"an image of {width_px}x{height_px} has no size inside {box_width_px}x{box_height_px} for MS-Vid2Vid; "
            f"its width is a multiple of {step} and its height {extra} more than one: use a larger box"
        )
    return height, width
