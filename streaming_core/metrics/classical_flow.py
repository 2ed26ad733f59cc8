"""Optical flow without weights: a search on small images, then Lucas-Kanade from coarse to fine.

Good enough to follow motion, to compensate it and to see where it breaks. It is not RAFT: MAWE is not defined on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The search runs where the shorter side has about this many pixels, and looks a quarter of that side each way.
SEARCH_LEVEL_PX = 32
SEARCH_PX = 8
WINDOW_PX = 9
ITERATIONS = 3
# Gradients below about two gray levels per pixel say nothing: there the flow of the coarser level stays.
DAMPING = (2 / 255) ** 2
LARGEST_STEP_PX = 1.0
# What a step away from zero must save, in squared gray levels of 0..1 per pixel of length, so that flat areas stay put.
SEARCH_COST = 1e-5


def smooth(images: Tensor) -> Tensor:
    """Blur of `[P, C, H, W]` with [1 2 1] / 4 each way, edges repeated."""
    images = F.pad(images, (1, 1, 1, 1), mode="replicate")
    for dim in (-1, -1, -2, -2):
        images = window_sum(images, 2, dim)
    return images / 16


def window_sum(images: Tensor, size: int, dim: int) -> Tensor:
    """Sums of `size` neighbors along `dim`, which becomes `size - 1` shorter.

    Sums of 2, 4, 8 ... neighbors are put together: a few additions, several times faster on a CPU than pooling,
    convolution or running sums.
    """
    length, offset, span = images.shape[dim] - size + 1, 0, 1
    total: Tensor | None = None
    while size:
        if size & 1:
            part = images.narrow(dim, offset, length)
            total, offset = part if total is None else total + part, offset + span
        size >>= 1
        if size:
            longer = images.shape[dim] - span
            images = images.narrow(dim, 0, longer) + images.narrow(dim, span, longer)
            span *= 2
    if total is None:
        raise ValueError("a window holds at least one value")
    return total


def box(images: Tensor, size: int = WINDOW_PX) -> Tensor:
    """Mean over the `size` x `size` window around every pixel of `[P, C, H, W]`, edges repeated; `size` is odd."""
    half = size // 2
    images = F.pad(images, (half, half, half, half), mode="replicate")
    return window_sum(window_sum(images, size, -1), size, -2) / size**2


def lands_inside(flow: Tensor) -> Tensor:
    """Which pixels the flow `[P, 2, H, W]` keeps inside the image; `[P, 1, H, W]`, bool."""
    height, width = flow.shape[-2:]
    y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[:, 1]
    x = torch.arange(width, device=flow.device, dtype=torch.float32)[None, :] + flow[:, 0]
    return ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))[:, None]


def sample(images: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """`images` `[P, C, H, W]` read at position + flow `[P, 2, H, W]` (pixels, x first); edges repeated outside."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=images.device, dtype=torch.float32)[None, :]
    place = torch.stack(((x + flow[:, 0] + 0.5) * (2 / width) - 1, (y + flow[:, 1] + 0.5) * (2 / height) - 1), -1)
    return F.grid_sample(images, place, mode=mode, padding_mode="border", align_corners=False)


def gray(frames: Tensor) -> Tensor:
    """Luma (BT.601) of `[P, 3, H, W]`."""
    return (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def pyramid(images: Tensor) -> list[Tensor]:
    """The images and their halves, coarsest first."""
    levels = [images]
    while 2 * min(levels[-1].shape[-2:]) >= 3 * SEARCH_LEVEL_PX:
        even = levels[-1][..., : levels[-1].shape[-2] // 2 * 2, : levels[-1].shape[-1] // 2 * 2]
        rows = even[..., ::2, :] + even[..., 1::2, :]
        levels.append(smooth((rows[..., ::2] + rows[..., 1::2]) / 4))
    return levels[::-1]


def without_light(images: Tensor) -> Tensor:
    """Local contrast only, so that a change of brightness is not taken for motion."""
    return images - box(images, 2 * WINDOW_PX + 1)


def search(left: Tensor, right: Tensor) -> Tensor:
    """The whole-pixel displacement whose window differs least, within `SEARCH_PX` each way; `[P, 1, H, W]` each."""
    height, width = left.shape[-2:]
    reach = min(SEARCH_PX, height // 4, width // 4)
    steps = torch.arange(-reach, reach + 1, device=left.device, dtype=torch.float32)
    padded, inside = F.pad(right, (reach,) * 4), F.pad(torch.ones_like(right[:1]), (reach,) * 4)
    best = torch.full_like(left, torch.inf)
    flow = left.new_zeros(len(left), 2, height, width)
    for row, dy in enumerate(steps):
        # All displacements along x at once, as channels: [P, 2 * reach + 1, H, W].
        there, seen = (
            image[..., row : row + height, :].unfold(-1, width, 1)[:, 0].transpose(1, 2) for image in (padded, inside)
        )
        share = box(seen)
        difference = (there - left) * seen
        # The variance of the difference, not its square: a change of light is the same everywhere in a window.
        cost = box(difference.square()) / share.clamp(min=0.2) - (box(difference) / share.clamp(min=0.2)).square()
        cost = cost + SEARCH_COST * (steps.square() + dy * dy).sqrt().view(1, -1, 1, 1)
        cost, column = torch.where(share > 0.2, cost, torch.inf).min(1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        flow = torch.where(better, torch.cat((steps[column], dy.expand_as(cost)), 1), flow)
    return flow


def refine(left: Tensor, right: Tensor, flow: Tensor) -> Tensor:
    """Lucas-Kanade steps on one level; `left`, `right` `[P, 1, H, W]`, flow in pixels of this level."""
    padded = F.pad(left, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, xy, yy = box(torch.cat((gx * gx, gx * gy, gy * gy), 1)).unbind(1)
    xx, yy = xx + DAMPING, yy + DAMPING
    determinant = xx * yy - xy * xy
    for _ in range(ITERATIONS):
        # What has left the image has nothing to be compared with; it follows its neighbors.
        change = (sample(right, flow) - left) * lands_inside(flow)
        bx, by = box(torch.cat((gx * change, gy * change), 1)).unbind(1)
        step = torch.stack((xy * by - yy * bx, xy * bx - xx * by), 1) / determinant[:, None]
        flow = smooth(flow + step.clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX))
    return flow


def lucas_kanade(left: Tensor, right: Tensor) -> Tensor:
    """Flow from `left` to `right`: the pixel at p of the left frame is found at p + flow in the right one.

    Args:
        left, right: `[P, 3, H, W]`, float in 0..1.

    Returns:
        `[P, 2, H, W]` in pixels, x first; 0 for frames without structure.

    Source: Lucas and Kanade 1981 with the pyramid of Bouguet 2001, dense, damped and smoothed, started by a search.
    """
    levels = pyramid(gray(torch.cat((left, right)).float()))
    first, second = levels[0].chunk(2)
    flow = search(first, second)
    for number, level in enumerate(levels):
        if number:
            flow = 2 * F.interpolate(flow, level.shape[-2:], mode="bilinear", align_corners=False)
        first, second = without_light(level).chunk(2)
        flow = refine(first, second, flow)
    return flow
