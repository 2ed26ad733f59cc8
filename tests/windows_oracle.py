"""Who owns which frame, written out independently of the pack, and the pack's own join over all windows of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streaming_core.windows.blending import write_window
from streaming_core.windows.plan import Window, Windows


def ownership(windows: Sequence[Window], offsets: Sequence[int]) -> Windows:
    """The frames each window owns; together they are every frame once, in order.

    Where more than two windows meet, the rightmost handover wins, so a window between two others may own nothing (then
    `start == stop`).
    """
    starts = [0] + [window.start + offset for window, offset in zip(windows[1:], offsets, strict=True)]
    owned: list[Window] = []
    stop = windows[-1].stop
    for start in reversed(starts):
        owned.append(Window(min(start, stop), stop))
        stop = min(start, stop)
    return tuple(reversed(owned))


def joined(parts: Sequence[Tensor], windows: Sequence[Window], offsets: Sequence[int], dim: int) -> Tensor:
    """All windows of a step joined by the pack's `write_window`, as its context handler does."""
    shape = list(parts[0].shape)
    shape[dim] = windows[-1].stop
    video = torch.full(shape, torch.nan)
    for part, window, offset in zip(parts, windows, (0, *offsets), strict=True):
        write_window(video, part, range(window.start, window.stop), offset, dim)
    return video
