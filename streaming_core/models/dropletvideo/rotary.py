"""Rotary positions in time, rows and columns (Su et al., arXiv:2104.09864; reference: dropletvideo, section 4)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE_ROWS, BASE_COLUMNS = 30, 45
"""The grid of patches of 480x720 pixels, to which the positions of every other size are scaled."""
THETA = 10000.0

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines `[tokens, head_width]` float32, every frequency on two neighboring lanes."""


@lru_cache(maxsize=8)
def rotary_table(frames: int, rows: int, columns: int, head_width: int = 64) -> Rotary:
    """The table of a video of `frames` latents and `rows` x `columns` patches, tokens ordered frame, row, column.

    A quarter of the lanes turns with time, three eighths with the row and three eighths with the column. Treat the
    result as constant: it is kept for the next call.
    """
    time_width, side_width = head_width // 4, head_width // 8 * 3
    # Kept tensors must serve callers inside and outside of inference mode.
    with torch.inference_mode(False):
        (top, bottom), (left, right) = fitted_spans(rows, columns)
        times = _angles(torch.arange(frames, dtype=torch.float32), time_width)
        heights = _angles(positions(top, bottom, rows), side_width)
        widths = _angles(positions(left, right, columns), side_width)
        angles = torch.cat(
            [
                times[:, None, None].expand(-1, rows, columns, -1),
                heights[None, :, None].expand(frames, -1, columns, -1),
                widths[None, None].expand(frames, rows, -1, -1),
            ],
            dim=-1,
        ).flatten(0, 2)
        return tuple(table.repeat_interleave(2, dim=1) for table in (angles.cos(), angles.sin()))  # type: ignore[return-value]


def fitted_spans(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """`((top, bottom), (left, right))`: where a grid of patches lies in the base grid, fitted with its aspect kept."""
    if rows / columns > BASE_ROWS / BASE_COLUMNS:
        height, width = BASE_ROWS, round(BASE_ROWS / rows * columns)
    else:
        height, width = round(BASE_COLUMNS / columns * rows), BASE_COLUMNS
    top, left = round((BASE_ROWS - height) / 2), round((BASE_COLUMNS - width) / 2)
    return (top, top + height), (left, left + width)


def positions(start: int, stop: int, count: int) -> Tensor:
    """Positions `[count]` float32 from `start` on. They end at `stop` times (n - 1)/n, also where `start` is not 0."""
    return torch.linspace(start, stop * (count - 1) / count, count, dtype=torch.float32)


def _angles(places: Tensor, width: int) -> Tensor:
    """Angles `[n, width / 2]` of positions `[n]`."""
    frequencies = 1.0 / THETA ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.outer(places, frequencies)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """`x` `[batch, tokens, heads, head_width]` with neighboring lanes turned as pairs; computed in float32."""
    cos, sin = (table[:, None] for table in rotary)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)
