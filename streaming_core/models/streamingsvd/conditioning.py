"""What the model is conditioned on: anchor preprocessing, augmentation noise, per-frame guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...errors import SettingsError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

AugmentationNoise = Literal["gaussian", "uniform"]


def clip_pixels(
    images: Tensor,
    size_px: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Official preprocessing in front of the OpenCLIP image tower (reference: streamingsvd, section 7).

    `images` `[n, 3, H, W]` in [-1, 1]. They are resized straight to `size_px` squared, ignoring the aspect ratio:
    Gaussian blur on axes that shrink, then bicubic with aligned corners; then CLIP's mean and standard deviation.
    `[n, 3, size_px, size_px]`.
    """
    # kornia's resize is the official one; imported here, since it takes 0.2 s and only these two families need it.
    from kornia.geometry.transform import resize

    # Its blur reflects one pixel at each border even along an axis that does not shrink: a single row has no other.
    blurred = min(images.shape[-2:]) > 1
    size = (size_px, size_px)
    x = resize(images, size, interpolation="bicubic", align_corners=True, antialias=blurred)
    means, deviations = (torch.tensor(tuple(values)).to(x).view(1, 3, 1, 1) for values in (mean, std))
    return ((x + 1) / 2 - means) / deviations


def augment(images: Tensor, level: float, noise: Tensor) -> Tensor:
    """Image conditioning with noise added: `images + level * noise`, all `[n, 3, H, W]`, images in [-1, 1]."""
    return images + level * noise


def augmentation_noise(shape: tuple[int, ...], kind: AugmentationNoise, generator: torch.Generator) -> Tensor:
    """Noise for `augment`. "gaussian" is what SVD was trained with; "uniform" in [0, 1) is what StreamingSVD draws.

    The uniform kind brightens the image by half the level and is kept for parity (reference: streamingsvd, section 11).
    """
    if kind == "gaussian":
        return torch.randn(shape, generator=generator)
    if kind == "uniform":
        return torch.rand(shape, generator=generator)
    raise SettingsError(f"augmentation noise is 'gaussian' or 'uniform', got {kind!r}")


def linear_guidance(minimum: float, maximum: float, num_frames: int) -> Tensor:
    """Guidance scale per frame, `[num_frames]` float32, rising linearly from `minimum` to `maximum`."""
    return torch.linspace(minimum, maximum, num_frames)


def guide(uncond: Tensor, cond: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance per frame: `u + g_k (c - u)`; `uncond`, `cond` `[frames, ...]`, `scale` `[frames]`."""
    scale = scale.to(cond).view(-1, *([1] * (cond.ndim - 1)))
    return uncond + scale * (cond - uncond)
