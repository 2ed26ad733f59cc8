"""Decoding latents in overlapping tiles with linear blending (reference: dropletvideo, section 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .config import SPATIAL_SCALE

Decode = Callable[[Tensor], Tensor]
"""Latents `[B, C, n, h, w]` to frames `[B, 3, N, 8h, 8w]`."""


def decode_in_tiles(decode: Decode, latents: Tensor, rows: int, columns: int) -> Tensor:
    """Frames of `latents`, decoded in tiles of `rows` x `columns` latents, at least 2 each.

    Tiles begin every 5/6 of their height and 4/5 of their width. Officially only sizes that this divides evenly give a
    video of the right size. Here the step is a whole number of latents and the overlap is what the step leaves, which
    is the same for those sizes. Where four tiles meet they are blended downward and then across, as officially; a pixel
    there can jump by a quarter of what the tiles differ by.
    """
    height, width = latents.shape[-2:]
    down, right = rows * 5 // 6, columns * 4 // 5
    frames: Tensor | None = None
    above: list[Tensor] = []
    for top in range(0, height, down):
        below: list[Tensor] = []
        beside: Tensor | None = None
        for index, left in enumerate(range(0, width, right)):
            tile = decode(latents[..., top : top + rows, left : left + columns]).clone()
            if top:
                blend_from(tile, above[index], -2)
            if beside is not None:
                blend_from(tile, beside, -1)
            # What later tiles begin with is taken after blending; this decides how corners look.
            below.append(tile[..., down * SPATIAL_SCALE :, :].clone())
            beside = tile[..., right * SPATIAL_SCALE :].clone()
            kept = tile[..., : down * SPATIAL_SCALE, : right * SPATIAL_SCALE]
            if frames is None:
                frames = kept.new_empty(*kept.shape[:3], height * SPATIAL_SCALE, width * SPATIAL_SCALE)
            y, x = top * SPATIAL_SCALE, left * SPATIAL_SCALE
            frames[..., y : y + kept.shape[-2], x : x + kept.shape[-1]] = kept
        above = below
    assert frames is not None
    return frames


def blend_from(tile: Tensor, strip: Tensor, axis: int) -> None:
    """Let the first pixels of `tile` along `axis` begin as `strip`, the same place in the tile before; in place."""
    extent = strip.shape[axis]
    ramp = torch.arange(extent, dtype=torch.float32, device=tile.device) / extent
    ramp = ramp.to(tile.dtype).reshape(-1, *(1,) * (-1 - axis))
    start = tile.narrow(axis, 0, extent)
    start.copy_(strip * (1 - ramp) + start * ramp)
