"""Forward warping by whole pixels: every source pixel is thrown to where the flow says it goes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FrameError


def forward_splat(frames: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Throw every pixel of `frames` along `flow` onto the nearest pixel of the next frame.

    The target is `round(position + flow)`, half to even, rounded as a sum. Of several pixels that land on one target
    the last in row-major order stays; where none lands the result is 0 and unknown.

    Args:
        frames: `[P, C, H, W]`, any type.
        flow: `[P, 2, H, W]` in pixels, channel 0 along x.

    Returns:
        The thrown frames `[P, C, H, W]`, and `[P, H, W]`, true where nothing is known.

    Raises:
        FrameError: the shapes do not belong together.

    Source: StreamingT2V (Henschel et al. 2024), warp error of MAWE; reference: streamingmodelscope, section 8.
    """
    pairs, channels, height, width = frames.shape
    if flow.shape != (pairs, 2, height, width):
        raise FrameError(
            f"frames {list(frames.shape)} need flow [{pairs}, 2, {height}, {width}], got {list(flow.shape)}"
        )
    flow = flow.float()
    rows = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=torch.float32)[None, :]
    x, y = (columns + flow[:, 0]).round(), (rows + flow[:, 1]).round()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Sources outside all go to one spare target after the last pixel, so that shapes stay fixed.
    area = height * width
    x, y = (torch.where(inside, axis, 0).long() for axis in (x, y))
    target = torch.where(inside, y * width + x, area).flatten(1)
    source = torch.arange(area, device=flow.device).expand(pairs, area)
    # The largest index is the last in row-major order; unlike an indexed write this is the same on every device.
    last = torch.full((pairs, area + 1), -1, device=flow.device, dtype=torch.long)
    last = last.scatter_reduce(1, target, source, "amax")[:, :area]
    unknown = last < 0
    thrown = frames.flatten(2).gather(2, last.clamp(min=0)[:, None].expand(-1, channels, -1))
    thrown = thrown.masked_fill(unknown[:, None], 0)
    return thrown.view_as(frames), unknown.view(pairs, height, width)
