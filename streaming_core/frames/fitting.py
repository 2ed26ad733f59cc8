"""Bringing images of any size to the size a model works in."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..errors import FrameError, SettingsError

Fit = Literal["crop", "pad", "stretch"]
FITS = ("crop", "pad", "stretch")
SMALLEST_PX = 16


def check_source(height_px: int, width_px: int) -> None:
    """Raise `FrameError` for images too small to hold anything."""
    if min(height_px, width_px) < SMALLEST_PX:
        raise FrameError(
            f"the image is {width_px}x{height_px} pixels, too small to make a video from; "
            f"use one of at least {SMALLEST_PX}x{SMALLEST_PX}"
        )


def fit(frames: Tensor, height: int, width: int, how: Fit = "crop") -> Tensor:
    """`[F, C, H, W]` in [0, 1] brought to `height` x `width` pixels, bicubic with antialiasing.

    "crop" fills the size and cuts what stands out, centered; "pad" shows everything and repeats the border pixels
    around it; "stretch" ignores the aspect ratio. Raises `FrameError` for images that `check_source` refuses.
    """
    if how not in FITS:
        raise SettingsError(f"fit must be one of {', '.join(FITS)}, got {how!r}")
    rows, columns = frames.shape[-2:]
    check_source(rows, columns)
    if (rows, columns) == (height, width):
        return frames
    if how == "stretch":
        return _resize(frames, height, width)
    scales = height / rows, width / columns
    scale = max(scales) if how == "crop" else min(scales)
    inner_height, inner_width = max(1, round(rows * scale)), max(1, round(columns * scale))
    resized = _resize(frames, inner_height, inner_width)
    if how == "crop":
        top, left = (inner_height - height) // 2, (inner_width - width) // 2
        return resized[..., top : top + height, left : left + width]
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    border = (left, width - inner_width - left, top, height - inner_height - top)
    return F.pad(resized, border, mode="replicate")


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    resized = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
