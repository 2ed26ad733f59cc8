"""What the model is told besides noise: anchor preprocessing, augmentation noise, per-frame guidance."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import SettingsError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

AugmentationNoise = Literal["gaussian", "uniform"]


def _gaussian_kernel(length: int, sigma: float) -> Tensor:
    offsets = torch.arange(length, dtype=torch.float32) - length // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()


def _blur_axis(images: Tensor, axis: int, shrink: float) -> Tensor:
    """Gaussian blur along `axis` (2 or 3) before shrinking by `shrink`; reflect border."""
    sigma = max((shrink - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1
    # Reflection cannot reach past the far border, so very small images keep as much of the kernel as fits.
    length = min(length, 2 * images.shape[axis] - 1)
    kernel = _gaussian_kernel(length, sigma).to(images)
    channels, half = images.shape[1], length // 2
    if axis == 2:
        weight, padding = kernel.view(1, 1, -1, 1), (0, 0, half, half)
    else:
        weight, padding = kernel.view(1, 1, 1, -1), (half, half, 0, 0)
    weight = weight.expand(channels, -1, -1, -1)
    return F.conv2d(F.pad(images, padding, mode="reflect"), weight, groups=channels)


def clip_pixels(images: Tensor, size_px: int = 224, mean=CLIP_MEAN, std=CLIP_STD) -> Tensor:
    """Official preprocessing in front of the OpenCLIP image tower (reference: streamingsvd, section 7).

    `images` `[n, 3, H, W]` in [-1, 1]. They are resized straight to `size_px` squared, ignoring the aspect ratio:
    Gaussian blur on axes that shrink, then bicubic with aligned corners; then CLIP's mean and standard deviation.
    `[n, 3, size_px, size_px]`.
    """
    x = images
    for axis in (2, 3):
        shrink = x.shape[axis] / size_px
        if shrink > 1:
            x = _blur_axis(x, axis, shrink)
    x = F.interpolate(x, size=(size_px, size_px), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(values).to(x).view(1, 3, 1, 1) for values in (mean, std))
    return ((x + 1) / 2 - mean) / std


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
