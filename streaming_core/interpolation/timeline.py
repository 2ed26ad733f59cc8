"""When each frame of an interpolated video is seen, in frames of its source. Exact arithmetic, no images.

Position 2.25 is a quarter of the way from source frame 2 to source frame 3. Frames are spread evenly from the first to
the last source frame, and both are kept; the only timeline that repeats a frame is StreamingSVD's own (`official`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from numbers import Rational

from ..errors import SettingsError
from ..frames.stream import as_rate

SNAP = Fraction(1, 64)
"""Closer than this to a source frame, in frames, is that frame: the difference cannot be seen, the work can."""


@dataclass(frozen=True)
class Span:
    """Consecutive frames of the video between source frames `left` and `left + 1`.

    times: 0 <= time < 1, in order, one per frame; 0 is the source frame itself.
    """

    left: int
    times: tuple[Fraction, ...]


@dataclass(frozen=True)
class Timeline:
    """`num_frames` frames at `fps`, spread evenly over source frames 0 to `last`; then `repeats` copies of `last`."""

    last: int
    num_frames: int
    fps: Fraction
    repeats: int = 0

    def __post_init__(self) -> None:
        if self.last < 0 or self.num_frames < 1 or self.repeats < 0:
            raise SettingsError(
                f"a timeline needs a source frame and a frame of its own, got {self.last + 1} and {self.num_frames}"
            )

    def __len__(self) -> int:
        return self.num_frames + self.repeats

    @property
    def step(self) -> Fraction:
        """Source frames from one frame to the next."""
        return Fraction(self.last, self.num_frames - 1) if self.num_frames > 1 else Fraction(0)

    def position(self, index: int) -> Fraction:
        """Where frame `index` lies, exact, in source frames."""
        if not 0 <= index < len(self):
            raise SettingsError(f"frame {index} was requested, the timeline has frames 0 to {len(self) - 1}")
        return min(index, self.num_frames - 1) * self.step

    def snapped(self, index: int) -> Fraction:
        """`position`, moved onto a source frame that lies closer than `SNAP`, or than a quarter step."""
        exact = self.position(index)
        nearest = floor(exact + Fraction(1, 2))
        return Fraction(nearest) if abs(exact - nearest) < min(SNAP, self.step / 4) else exact

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Frames `start` to `stop` (not included) as spans, in order."""
        left = 0
        times: list[Fraction] = []
        for index in range(start, stop):
            position = self.snapped(index)
            whole = floor(position)
            if times and whole != left:
                yield Span(left, tuple(times))
                times = []
            left = whole
            times.append(position - whole)
        if times:
            yield Span(left, tuple(times))

    def last_needed(self, stop: int) -> int:
        """The last source frame that frames before `stop` depend on."""
        return ceil(self.snapped(stop - 1))


def multiplied(num_source: int, fps: Rational, factor: int, output_fps: Rational | float | None = None) -> Timeline:
    """`factor - 1` frames between any two neighbors: `(num_source - 1) * factor + 1` in all.

    output_fps: default `factor` times `fps`, the same speed.
    """
    _need_source(num_source)
    if factor < 1:
        raise SettingsError(f"a multiplier of {factor} leaves no frames; use 1 or more")
    rate = as_rate(output_fps) if output_fps else as_rate(fps) * factor
    return Timeline(num_source - 1, (num_source - 1) * factor + 1, rate)


def with_count(num_source: int, fps: Rational, num_frames: int, output_fps: Rational | float | None = None) -> Timeline:
    """Exactly `num_frames` frames. One frame alone is the first; more frames than one source frame repeat it.

    output_fps: default the rate that keeps the speed.
    """
    _need_source(num_source)
    if num_frames < 1:
        raise SettingsError(f"{num_frames} frames were requested; request 1 or more")
    last = num_source - 1 if num_frames > 1 else 0
    rate = as_rate(fps)
    if output_fps:
        rate = as_rate(output_fps)
    elif last:
        rate = as_rate(rate * (num_frames - 1) / last)
    return Timeline(last, num_frames, rate)


def at_rate(num_source: int, fps: Rational, output_fps: Rational | float) -> Timeline:
    """The same video at `output_fps`: as many frames as bring the last one nearest to its old time.

    First and last source frame are kept, so times stretch by less than half a frame over the whole video.
    """
    _need_source(num_source)
    rate = as_rate(output_fps)
    steps = floor((num_source - 1) * rate / as_rate(fps) + Fraction(1, 2))
    return Timeline(num_source - 1, max(steps, min(1, num_source - 1)) + 1, rate)


def official(num_source: int, num_frames: int, output_fps: Rational | float) -> Timeline:
    """StreamingSVD's doubling for a requested length (reference: ema-vfi, section 7).

    Keeps the first `num_frames // 2 + 1` source frames, puts one between any two and shows the last twice where
    `num_frames` is even. As published, this meets an odd length from half as many source frames on, an even one with
    exactly half as many; it is two frames longer with more, and shorter with fewer.
    """
    _need_source(num_source)
    if num_frames < 1:
        raise SettingsError(f"{num_frames} frames were requested; request 1 or more")
    kept = min(num_source, num_frames // 2 + 1)
    return Timeline(kept - 1, 2 * kept - 1, as_rate(output_fps), repeats=int(num_frames % 2 == 0))


def _need_source(num_source: int) -> None:
    if num_source < 1:
        raise SettingsError("a video without frames cannot be interpolated; give at least one frame")
