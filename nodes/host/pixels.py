"""The one border between the host's IMAGE layout and the core's frames."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def images_to_core(images: Tensor) -> Tensor:
    """IMAGE `[F, H, W, C]` to core frames `[F, C, H, W]`."""
    return rearrange(images, "f h w c -> f c h w")


def core_to_images(frames: Tensor) -> Tensor:
    """Core frames `[F, C, H, W]` to IMAGE `[F, H, W, C]`."""
    return rearrange(frames, "f c h w -> f h w c")
