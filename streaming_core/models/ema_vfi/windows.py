"""Windows of a token map: which tokens meet in attention, where they lie, what hides them from each other.

Everything here depends on the size of the map alone and is kept between calls, keyed by the full geometry. (The
published code keys its masks by padded area only and reuses a wrong one after a change of shape; reference: ema-vfi,
section 3.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

HIDDEN = -100.0
KEPT_LAYOUTS = 16


@dataclass(frozen=True)
class WindowLayout:
    """Windows of one map of `height * width` tokens, `window * window` slots each.

    gather `[windows * slots]`: the token in each slot (0 where the slot holds padding). pad_slots: indices of the
    slots that hold padding, or None. window_of, slot_of `[tokens]`: where each token went. mask
    `[windows, 1, slots, slots]` to add to logits, or None. token_coordinates `[tokens, 2]`, slot_coordinates
    `[windows, 1, slots, 2]`: x and y in -1..1, 0 on padding.
    """

    num_windows: int
    num_slots: int
    gather: Tensor
    pad_slots: Tensor | None
    window_of: Tensor
    slot_of: Tensor
    mask: Tensor | None
    token_coordinates: Tensor
    slot_coordinates: Tensor


def _ranges(length: int, edges: tuple[int, ...]) -> Tensor:
    """Labels 0, 1, 2 of the positions before, between and after `edges`."""
    positions = torch.arange(length)
    return sum(((positions >= edge).long() for edge in edges), start=torch.zeros_like(positions))


def _cut(grid: Tensor, window: int) -> Tensor:
    """Cut a map `[rows, columns]` into windows `[windows, slots]`."""
    rows, columns = grid.shape
    grid = grid.reshape(rows // window, window, columns // window, window)
    return grid.transpose(1, 2).reshape(-1, window * window)


def _hidden_pairs(labels: Tensor, window: int) -> Tensor:
    """Slots of one window with different labels do not see each other: bool `[windows, slots, slots]`."""
    cut = _cut(labels, window)
    return cut[:, :, None] != cut[:, None, :]


def _build(height: int, width: int, window: int, shifted: bool, device: torch.device, dtype: torch.dtype):
    missing = ((-height) % window, (-width) % window)
    top, left = missing[0] // 2, missing[1] // 2
    rows, columns = height + missing[0], width + missing[1]
    bottom, right = missing[0] - top, missing[1] - left

    tokens = torch.arange(height * width).reshape(height, width)
    grid = functional.pad(tokens, (left, right, top, bottom), value=-1)
    hidden = None
    if any(missing):
        # A block with shifted windows still hides padding by its place before the shift: trained that way.
        labels = 3 * _ranges(rows, (top, top + height))[:, None] + _ranges(columns, (left, left + width))
        hidden = _hidden_pairs(labels, window)
    if shifted:
        shift = window // 2
        grid = grid.roll((-shift, -shift), (0, 1))
        labels = 3 * _ranges(rows, (rows - window, rows - shift))[:, None]
        labels = labels + _ranges(columns, (columns - window, columns - shift))
        across = _hidden_pairs(labels, window)
        hidden = across if hidden is None else hidden | across

    slots = _cut(grid, window)
    is_padding = slots < 0
    place = torch.empty(height * width, dtype=torch.long)
    flat = slots.flatten()
    place[flat[flat >= 0]] = torch.arange(flat.numel())[flat >= 0]
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
    coordinates = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).reshape(-1, 2)
    slot_coordinates = coordinates[slots.clamp(min=0)] * ~is_padding[..., None]
    num_slots = window * window
    return WindowLayout(
        num_windows=slots.shape[0],
        num_slots=num_slots,
        gather=flat.clamp(min=0).to(device),
        pad_slots=is_padding.flatten().nonzero().flatten().to(device) if any(missing) else None,
        window_of=(place // num_slots).to(device),
        slot_of=(place % num_slots).to(device),
        mask=None if hidden is None else (hidden[:, None] * HIDDEN).to(device, dtype),
        token_coordinates=coordinates.to(device, dtype),
        slot_coordinates=slot_coordinates[:, None].to(device, dtype),
    )


@lru_cache(maxsize=KEPT_LAYOUTS)
def window_layout(
    height: int, width: int, window: int, shifted: bool, device: torch.device, dtype: torch.dtype
) -> WindowLayout:
    """The windows of a map of `height` x `width` tokens, shifted by half a window or not; kept for the next call."""
    with torch.inference_mode(False):  # kept tensors must be usable whatever mode the next caller is in
        return _build(height, width, window, shifted, device, dtype)
