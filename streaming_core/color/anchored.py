"""A finished video whose chunks keep the colors of its first one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fractions import Fraction

import torch

from ..frames.stream import DerivedFrames, FrameStream
from ..loop.chunk_layout import ChunkLayout
from .drift import (
    LEAST_LAB,
    Colors,
    Correction,
    Reference,
    find_correction,
    has_cut,
    lab_planes,
    measure,
    small_frames,
)

log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """What is known of the chunks that have been measured.

    Attributes:
        anchor: colors of the first.
        last: small copy `[1, 3, h, w]` of the last frame.
        cut: whether a scene cut has been found.
    """

    anchor: Reference | None = None
    last: torch.Tensor | None = None
    cut: bool = False


@dataclass(frozen=True)
class AnchoredFrames(DerivedFrames):
    """`source` with the colors of each chunk brought back to those of the first (see `drift`), up to a scene cut.

    A chunk is measured when it is read first, all chunks before it with it, since a cut among them ends the correction.

    Args:
        layout: chunks of the video; the first is the anchor and stays as it is.
        strength: 0 (nothing) to 1.
        cut_threshold: change that counts as a cut, see `scene_cuts`; 0: cuts are not looked for.
    """

    source: FrameStream
    layout: ChunkLayout
    strength: float = 1.0
    cut_threshold: float = 0.6
    _found: list[Correction | None] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: _Seen = field(default_factory=_Seen, init=False, repr=False, compare=False)

    @property
    def fps(self) -> Fraction:
        return self.source.fps

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        frames = self.source.read(start, stop)
        for number, chunk in enumerate(self.layout.chunks):
            first, last = max(start, chunk.start), min(stop, chunk.stop)
            if first >= last:
                continue
            correction = self.correction(number)
            if correction is not None:
                part = frames[first - start : last - start].movedim(-1, 1)
                fixed = correction.apply_to_frames(part, first - chunk.start, len(chunk))
                frames[first - start : last - start] = fixed.movedim(1, -1)
        return frames

    def correction(self, number: int) -> Correction | None:
        """What is done to a chunk; None for the first and for all from a cut on."""
        while len(self._found) <= number:
            self._found.append(self._find(len(self._found)))
        return self._found[number]

    def _find(self, number: int) -> Correction | None:
        if self._seen.cut:
            return None
        chunk = self.layout.chunks[number]
        grids, spreads, last = [], [], self._seen.last
        for images in self.source.slices(None, chunk.start, chunk.stop):
            small = small_frames(images.movedim(-1, 1))
            beside = small if last is None else torch.cat([last, small])
            if has_cut(beside, self.cut_threshold):
                log.info("scene cut in chunk %d: colors are left as they are from here on", number)
                self._seen.cut = True
                return None
            last = small[-1:]
            colors = measure(lab_planes(small))
            grids.append(colors.grids)
            spreads.append(colors.spreads)
        self._seen.last = last
        colors = Colors(torch.cat(grids), torch.cat(spreads))
        if self._seen.anchor is None:
            self._seen.anchor = Reference.of(colors, LEAST_LAB)
            return None
        return find_correction(colors, self._seen.anchor, number, self.strength)
