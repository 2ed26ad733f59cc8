"""Randomized blending: a video of any length, denoised in short windows that agree without being averaged.

At every denoising step a cut is drawn inside each overlap of neighboring windows. Frames before the cut belong to the
earlier window, the rest to the later one. Over the steps the cuts move, so no place in the video is ever a seam
(Henschel et al., "StreamingT2V", arXiv:2403.14773, section 4.3; reference: enhancer, section 6).

Everything here is arithmetic on frame indices plus one copy, `blend`. Cuts are counted as offsets into an overlap:
offset `r` at boundary `k` means that window `k` owns from its frame `r` on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SettingsError


@dataclass(frozen=True)
class Window:
    """Frames `start` to `stop` (not included) of a video."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Windows = tuple[Window, ...]
Offsets = tuple[int, ...]
"""One per boundary, so one fewer than windows; offset `k - 1` belongs to window `k`."""


def check_window(window_frames: int, overlap_frames: int) -> None:
    """Raise `SettingsError` unless windows of this length and overlap can cover a video."""
    if window_frames < 1:
        raise SettingsError(f"a window needs at least 1 frame, got {window_frames}")
    if overlap_frames < 0:
        raise SettingsError(f"an overlap cannot be negative, got {overlap_frames} frames")
    if overlap_frames >= window_frames:
        raise SettingsError(
            f"an overlap of {overlap_frames} frames does not fit a window of {window_frames}: "
            f"choose an overlap of at most {window_frames - 1} or a longer window"
        )


def plan_windows(num_frames: int, window_frames: int, overlap_frames: int) -> Windows:
    """Windows of `window_frames` that cover `num_frames`, neighbors sharing at least `overlap_frames`.

    All have the same length. The last one moves back to end on the last frame, so its overlap may be larger than asked.
    A video no longer than one window is one window.
    """
    check_window(window_frames, overlap_frames)
    if num_frames < 1:
        raise SettingsError(f"there are no frames to cover: got {num_frames}, at least 1 is needed")
    if num_frames <= window_frames:
        return (Window(0, num_frames),)
    last = num_frames - window_frames
    starts = [*range(0, last, window_frames - overlap_frames), last]
    return tuple(Window(start, start + window_frames) for start in starts)


def plan_official_windows(num_frames: int, window_frames: int, overlap_frames: int) -> Windows:
    """The official layout: only whole strides, so up to a stride of frames at the end is dropped.

    Raises `SettingsError` for a video shorter than a window, where the official code fails (reference: enhancer,
    section 5).
    """
    check_window(window_frames, overlap_frames)
    if num_frames < window_frames:
        raise SettingsError(
            f"the official layout needs at least one window of {window_frames} frames, got {num_frames}: "
            "turn the official layout off, or give more frames"
        )
    starts = range(0, num_frames - window_frames + 1, window_frames - overlap_frames)
    return tuple(Window(start, start + window_frames) for start in starts)


def overlaps(windows: Sequence[Window]) -> tuple[int, ...]:
    """Frames that each window shares with the one before it, counted on the windows themselves."""
    pairs = zip(windows, windows[1:], strict=False)
    return tuple(before.stop - after.start for before, after in pairs)


def keyframes(windows: Sequence[Window]) -> tuple[int, ...]:
    """The frame that stands for each window: its first."""
    return tuple(window.start for window in windows)


class Cuts(Protocol):
    """Where windows are cut at a step. Holds settings only: the same step always gives the same offsets."""

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets: ...


def _uniform(seed: int, step: int, boundary: int, choices: int) -> int:
    """An integer in `[0, choices)`, the same on every machine and for every version of every library."""
    digest = hashlib.blake2b(f"{seed} {step} {boundary}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") * choices >> 64


@dataclass(frozen=True)
class SeededCuts:
    """Offsets drawn uniformly from 0 to the whole overlap, a pure function of (seed, step, boundary).

    `keep_last` leaves out the whole overlap, so the later window always owns some of it: the official choice, which
    favours the later window by half a frame (reference: enhancer, section 10).
    """

    seed: int
    keep_last: bool = False

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets:
        shared = overlaps(windows)
        choices = [max(1, frames) if self.keep_last else frames + 1 for frames in shared]
        return tuple(_uniform(self.seed, step, boundary, n) for boundary, n in enumerate(choices))


@dataclass(frozen=True)
class RecordedCuts:
    """Offsets given beforehand, `table[step][boundary]`: replays a recorded run."""

    table: tuple[Offsets, ...]

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets:
        if not 0 <= step < len(self.table):
            raise SettingsError(f"cuts are recorded for {len(self.table)} steps, step {step} was asked for")
        return tuple(int(offset) for offset in self.table[step])


def official_cuts(windows: Sequence[Window], num_steps: int, seed: int) -> RecordedCuts:
    """The official draw: Python's generator, step by step and within a step from left to right, never the last offset.

    Equal to seeding the global `random` and calling `randint(0, overlap - 1)`, from a generator of its own
    (reference: enhancer, section 6).
    """
    generator = random.Random(seed)
    shared = overlaps(windows)
    draw = tuple(tuple(generator.randint(0, max(0, o - 1)) if o else 0 for o in shared) for _ in range(num_steps))
    return RecordedCuts(draw)


def ownership(windows: Sequence[Window], offsets: Sequence[int]) -> Windows:
    """The frames each window owns; together they are every frame once, in order.

    Where more than two windows meet, the rightmost cut wins, so a window between two others may own nothing (then
    `start == stop`). Raises `SettingsError` when an offset lies outside its overlap.
    """
    shared = overlaps(windows)
    if len(offsets) != len(shared):
        raise SettingsError(f"{len(windows)} windows have {len(shared)} boundaries, got {len(offsets)} cuts")
    for boundary, (offset, frames) in enumerate(zip(offsets, shared, strict=True)):
        if not 0 <= offset <= frames:
            raise SettingsError(f"cut {offset} at boundary {boundary} lies outside its overlap of {frames} frames")
    starts = [0] + [window.start + offset for window, offset in zip(windows[1:], offsets, strict=True)]
    owned: list[Window] = []
    stop = windows[-1].stop
    for start in reversed(starts):
        owned.append(Window(min(start, stop), stop))
        stop = min(start, stop)
    return tuple(reversed(owned))


def blend(parts: Sequence[Tensor], windows: Sequence[Window], offsets: Sequence[int], dim: int) -> Tensor:
    """One video from the results of its windows: each frame copied from the window that owns it, never averaged.

    `parts[k]` holds the frames of `windows[k]` along `dim`; the result holds all frames along `dim`.
    """
    owned = ownership(windows, offsets)
    pieces = [
        part.narrow(dim, own.start - window.start, len(own))
        for part, window, own in zip(parts, windows, owned, strict=True)
    ]
    return torch.cat(pieces, dim)
