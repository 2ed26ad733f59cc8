"""Handovers: the frame inside each overlap at which the next window takes over, different at every denoising step.

A handover is counted as an offset into its overlap: offset `r` at boundary `k` means that window `k + 1` owns the video
from its own frame `r` on. Over the steps the handovers move, so no place in the video is always a seam (Henschel et
al., "StreamingT2V", arXiv:2403.14773, section 4.3; reference: enhancer, section 6).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import SettingsError
from .plan import Window, overlaps

Offsets = tuple[int, ...]
"""One offset per boundary between neighboring windows, so one fewer than windows."""


class Handovers(Protocol):
    """Where windows take over from each other at a step. Pure: the same step always gives the same offsets."""

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets: ...


def _uniform(seed: int, step: int, boundary: int, choices: int) -> int:
    """An integer in `[0, choices)`, the same on every machine and for every version of every library."""
    digest = hashlib.blake2b(f"{seed} {step} {boundary}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") * choices >> 64


@dataclass(frozen=True)
class SeededHandovers:
    """Offsets drawn uniformly from 0 to the whole overlap, a pure function of (seed, step, boundary).

    `seed`: any integer; the pack's nodes give 0 to 2^64 - 1. The official draw leaves out the whole overlap, which
    favors the later window by half a frame (reference: enhancer, section 10).
    """

    seed: int

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets:
        shared = overlaps(windows)
        return tuple(_uniform(self.seed, step, boundary, frames + 1) for boundary, frames in enumerate(shared))


@dataclass(frozen=True)
class RecordedHandovers:
    """Offsets given in advance, `table[step][boundary]`: replays a recorded run."""

    table: tuple[Offsets, ...]

    def offsets(self, windows: Sequence[Window], step: int) -> Offsets:
        if not 0 <= step < len(self.table):
            raise SettingsError(f"handovers are recorded for {len(self.table)} steps, step {step} was requested")
        return tuple(int(offset) for offset in self.table[step])


def official_handovers(windows: Sequence[Window], num_steps: int, seed: int) -> RecordedHandovers:
    """The official draw: Python's generator, step by step and within a step from left to right, never the last offset.

    Equal to seeding the global `random` and calling `randint(0, overlap - 1)`, but with a generator of its own
    (reference: enhancer, section 6).
    """
    generator = random.Random(seed)
    shared = overlaps(windows)
    draw = tuple(tuple(generator.randint(0, max(0, o - 1)) if o else 0 for o in shared) for _ in range(num_steps))
    return RecordedHandovers(draw)


def first_owned(handovers: Handovers, windows: Sequence[Window], step: int) -> Offsets:
    """For each window its own frame from which on it writes the video at `step`; 0 for the first.

    Raises:
        SettingsError: `handovers` gave the wrong number of offsets, or one outside its overlap. Frames would then keep
            what the previous model call left there.
    """
    offsets, shared = handovers.offsets(windows, step), overlaps(windows)
    if len(offsets) != len(shared):
        raise SettingsError(f"{len(windows)} windows have {len(shared)} boundaries, got {len(offsets)} handovers")
    for boundary, (offset, frames) in enumerate(zip(offsets, shared, strict=True)):
        if not 0 <= offset <= frames:
            raise SettingsError(f"handover {offset} at boundary {boundary} lies outside its overlap of {frames} frames")
    return (0, *offsets)
