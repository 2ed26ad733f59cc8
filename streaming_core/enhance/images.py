"""Condition images of I2VGen-XL, prepared as its official program does (reference: enhancer, section 2).

Condition images are 8-bit Pillow images, because the official program rounds and filters them as such.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.streamingsvd.conditioning import CLIP_MEAN, CLIP_STD
from .size import Size


def to_image(frame: Tensor) -> Image.Image:
    """One frame `[3, H, W]` in 0..1 as an 8-bit image."""
    return Image.fromarray((frame.float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy(), "RGB")


def to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """An 8-bit image as `[3, H, W]` float32 in 0..1."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def cover_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to cover `size`, with its middle cut out.

    Sides are floor-divided by the scale and box-filtered, as the official code does.
    """
    scale = min(image.width / size.width_px, image.height / size.height_px)
    # Float floor division may fall one short of the side that fits exactly; the crop needs at least the whole size.
    width, height = (
        max(target, math.floor(side // scale))
        for side, target in ((image.width, size.width_px), (image.height, size.height_px))
    )
    image = image.resize((width, height), Image.Resampling.BOX, reducing_gap=None)
    left, top = (width - size.width_px) // 2, (height - size.height_px) // 2
    return image.crop((left, top, left + size.width_px, top + size.height_px))


def clip_square(image: Image.Image, size: Size, clip_px: int) -> Image.Image:
    """What CLIP vision sees: a square as wide as the video, resized bilinearly to `clip_px` pixels a side."""
    square = cover_and_crop(image, Size(size.width_px, size.width_px))
    return square.resize((clip_px, clip_px), Image.Resampling.BILINEAR)


def clip_pixel_values(image: Image.Image) -> Tensor:
    """The image as `[1, 3, H, W]`, normalized with CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((to_pixels(image) - mean) / std).unsqueeze(0)
