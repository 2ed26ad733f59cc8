"""Synthetic videos whose motion, cuts, seams and colors are known, for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming_core.frames import TensorFrames


def texture(height: int, width: int, seed: int, finest: float = 0.1) -> Tensor:
    """A smooth random color image `[3, H, W]` in 0..1 with nothing finer than `finest` cycles per pixel."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    radius = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2).sqrt()
    shape = torch.exp(-((radius / finest) ** 2)) / (radius + 0.01)
    image = torch.fft.irfft2(torch.fft.rfft2(noise) * shape, s=(height, width))
    image = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True)
    return (0.5 + 0.15 * image).clamp(0.02, 0.98)


def view(image: Tensor, x: float, y: float, height: int, width: int) -> Tensor:
    """The `height` x `width` part of an image `[3, H, W]` whose corner is at (x, y), which need not be whole."""
    rows, columns = torch.arange(height) + y + 0.5, torch.arange(width) + x + 0.5
    place = torch.stack(torch.meshgrid(rows / image.shape[1], columns / image.shape[2], indexing="ij")[::-1], -1)
    part = F.grid_sample(image[None], place[None] * 2 - 1, mode="bicubic", padding_mode="border", align_corners=False)
    return part[0].clamp(0, 1)


def pan(
    num_frames: int,
    step: tuple[float, float] = (1.5, 0.5),
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
    position: Callable[[int], tuple[float, float]] | None = None,
) -> Tensor:
    """A camera that glides over a texture: everything moves by -`step` (x, y) pixels per frame. `[F, H, W, 3]`."""
    place = position or (lambda frame: (step[0] * frame, step[1] * frame))
    places = [place(frame) for frame in range(num_frames)]
    left, top = (min(point[axis] for point in places) for axis in (0, 1))
    room = [int(max(point[axis] for point in places) - low) + 8 for axis, low in ((0, left), (1, top))]
    image = texture(size[0] + room[1], size[1] + room[0], seed)
    frames = [view(image, x - left + 2, y - top + 2, *size) for x, y in places]
    return torch.stack(frames).movedim(1, -1)


def stream(frames: Tensor, fps: int = 24) -> TensorFrames:
    return TensorFrames(frames, Fraction(fps))
