"""Backward warping by a flow in pixels (reference: ema-vfi, section 4)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

KEPT_GRIDS = 16


@lru_cache(maxsize=KEPT_GRIDS)
def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sampling positions of an unmoved image, `[1, H, W, 2]`, -1..1 from first to last pixel, and pixels per unit."""
    with torch.inference_mode(False):  # kept for callers in any mode
        x = torch.linspace(-1, 1, width, device=device).expand(height, width)
        y = torch.linspace(-1, 1, height, device=device)[:, None].expand(height, width)
        # One pixel wide maps exist (a 16 pixel frame at 1/16); every position is the same pixel there.
        reach = torch.tensor((max(width - 1, 1) / 2, max(height - 1, 1) / 2), device=device)
        return torch.stack((x, y), dim=-1)[None], reach


def sampling_grid(flow: Tensor) -> Tensor:
    """Where each pixel looks: `flow` `[B, 2, H, W]` in pixels (x, y) -> `[B, H, W, 2]` in -1..1, float32.

    Always float32: a half has 11 bits, half a pixel of a 1000 pixel row.
    """
    grid, reach = _grid(*flow.shape[-2:], flow.device)
    return grid + flow.float().permute(0, 2, 3, 1) / reach


def sample(x: Tensor, grid: Tensor) -> Tensor:
    """`x` `[B, C, H, W]` read at `grid`: bilinear, border repeated; type of `x`."""
    warped = functional.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return warped.to(x.dtype)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Each pixel of the result is `x` at (column + flow x, row + flow y)."""
    return sample(x, sampling_grid(flow))
