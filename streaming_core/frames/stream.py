"""The FRAME_STREAM protocol: handles to frames that need not be in memory.

A stream knows its length, size and rate, and reads any range of frames as a float32 tensor `[F, H, W, 3]` in 0..1.
Handles are immutable and cheap; reading has no effect that another reader could see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from numbers import Rational
from typing import TYPE_CHECKING

import torch

from ..errors import FrameError, FrameMismatchError, FrameRangeError, SettingsError
from .slices import checked, frames_per_slice

LOWEST_RATE, HIGHEST_RATE = Fraction(1, 1000), 1000
"""Frames per second that a video may have."""


def as_rate(fps: float | Rational | str) -> Fraction:
    """A frame rate as an exact fraction.

    Fractions and integers stay as they are; floats become the usual rate that was meant (23.976 is 24000/1001), else
    the nearest fraction with a denominator up to 1001; strings may be "24", "23.976" or "24000/1001", and are exact.

    Raises:
        SettingsError: not a number, or outside 1/1000 .. 1000 frames per second.
    """
    try:
        rate = Fraction(fps)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise SettingsError(
            f"frame rate {fps!r} is not a number; give frames per second such as 24 or 24000/1001"
        ) from None
    if isinstance(fps, float):
        rate = usual_rate(rate.limit_denominator(1001))
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise SettingsError(f"frame rate {fps} is outside 0.001 .. 1000 frames per second")
    return rate


def usual_rate(rate: Fraction) -> Fraction:
    """The whole or NTSC rate that was meant where a rate was rounded: by people, or by containers (Matroska)."""
    for usual in (Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001)):
        if abs(usual - rate) < rate / 100_000:
            return usual
    return rate


def nearest_tolerance(rate: Fraction, fps: Fraction) -> Fraction:
    """How much later than a frame of a constant rate `fps`, in seconds, a stored frame may begin and still be shown
    by it: half a frame of whichever rate is higher. Frames of `rate` are then shown at the time that is nearest.
    """
    return 1 / (2 * max(rate, fps))


def size_text(height: int, width: int) -> str:
    """An image size as people write it, width first."""
    return f"{width}x{height}"


def to_rgb(images: torch.Tensor, background: float | None = None, first: int = 0) -> torch.Tensor:
    """Frames `[F, H, W, C]` or `[F, H, W]` of any type as float32 `[F, H, W, 3]` in 0..1, always a new tensor.

    One channel (or none) is gray and is repeated; of two (gray, alpha) and four (color, alpha) the alpha is dropped
    and the colors stay as stored, or it is laid over a gray `background` of 0..1 when one is given. Of more than four
    channels the first three are taken. Integers are scaled by the largest value of uint8; floats are clamped.
    `first` is the number of the first frame, for the error.

    Raises:
        FrameError: another number of dimensions, or a type that holds no images.
        NotNumbersError: NaN or infinity.
    """
    if images.ndim == 3:
        images = images.unsqueeze(-1)
    if images.ndim != 4:
        raise FrameError(f"frames must be [F, H, W, C], got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 255
    elif images.is_floating_point():
        images = checked(images.to(torch.float32), first).clamp(0, 1)
    else:
        raise FrameError(f"frames must be float in 0..1 or uint8 in 0..255, got {images.dtype}")
    channels = images.shape[-1]
    if channels == 3:
        return images
    colors = images[..., :1].expand(*images.shape[:-1], 3) if channels <= 2 else images[..., :3]
    if background is not None and channels in (2, 4):
        alpha = images[..., -1:]
        return colors * alpha + background * (1 - alpha)
    return colors.contiguous()


class FrameStream(ABC):
    """Frames that are read in slices.

    Attributes:
        height, width: pixels.
        fps: exact frames per second.
        decodes: whether reading takes its time without running a model, so that it is worth doing in a thread ahead of
            the work on the frames.
        bits: bits per value of the file that the frames come from; 8 for computed ones.

    Subclasses are frozen dataclasses with these attributes, `__len__` and `_read`.
    """

    if TYPE_CHECKING:
        # Some streams store these and others compute them. They are only read; to say so with properties that exist
        # would make each of them the default value of a subclass's field.
        @property
        @abstractmethod
        def height(self) -> int: ...

        @property
        @abstractmethod
        def width(self) -> int: ...

        @property
        @abstractmethod
        def fps(self) -> Fraction: ...

    @property
    def decodes(self) -> bool:
        return False

    @property
    def bits(self) -> int:
        return 8

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames."""

    @abstractmethod
    def _read(self, start: int, stop: int) -> torch.Tensor:
        """Frames start..stop, `0 <= start < stop <= len`, as a new float32 tensor `[F, H, W, 3]` in 0..1."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Frames `start` up to, not including, `stop` as float32 `[F, H, W, 3]` in 0..1; the caller may change them.

        Raises:
            FrameRangeError: unless `0 <= start <= stop <= len(stream)`.
        """
        self._check_range(start, stop)
        if start == stop:
            return torch.zeros(0, self.height, self.width, 3)
        return self._read(start, stop)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise FrameRangeError(f"frames {start} to {stop} were requested, the stream has frames 0 to {len(self)}")

    def picked(self, numbers: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """The frames with these numbers, each once and ascending, and which of them each number is; no others."""
        distinct = sorted(set(numbers))
        if distinct[-1] - distinct[0] + 1 == len(distinct):
            frames = self.read(distinct[0], distinct[-1] + 1)
        else:
            frames = torch.cat([self.read(number, number + 1) for number in distinct])
        return frames, [distinct.index(number) for number in numbers]

    def stored(self, start: int, stop: int) -> torch.Tensor:
        """Frames as they are stored: uint8 `[F, H, W, 3]` where the source has 8 bits, else as `read`.

        For what writes frames as bytes again, which saves the way through float. Errors as of `read`.
        """
        return self.read(start, stop)

    def slices(
        self, size: int | None = None, start: int = 0, stop: int | None = None, *, stored: bool = False
    ) -> Generator[torch.Tensor, None, None]:
        """Consecutive slices of at most `size` frames from `start` to `stop` (default: the end).

        Args:
            size: default as many as `frames_per_slice` allows.
            stored: give them as `stored` does.

        Raises:
            NotNumbersError: NaN or infinity in a frame.
        """
        size = frames_per_slice(self.height, self.width) if size is None else size
        if size < 1:
            raise SettingsError(f"slices need at least one frame, got {size}")
        stop = len(self) if stop is None else stop
        read = self.stored if stored else self.read
        for first in range(start, stop, size):
            yield checked(read(first, min(first + size, stop)), first)

    @property
    def seconds(self) -> Fraction:
        """Length in seconds, exact."""
        return len(self) / self.fps

    def trimmed(self, start: int, stop: int | None = None) -> FrameStream:
        """Frames `start` to `stop` as a stream of their own; see `TrimmedFrames`."""
        return TrimmedFrames(self, start, len(self) if stop is None else stop)


@dataclass(frozen=True, eq=False)
class TensorFrames(FrameStream):
    """An IMAGE tensor as a stream.

    Args:
        images: `[F, H, W, C]` or `[F, H, W]`, float in 0..1 or uint8. Not copied: slices are converted when read.
        fps: frames per second.
        background: gray (0..1) that alpha is laid over; None drops alpha and keeps the colors as stored.
    """

    images: torch.Tensor = field(repr=False)
    fps: Fraction
    background: float | None = None

    def __post_init__(self) -> None:
        if self.images.ndim not in (3, 4) or 0 in self.images.shape:
            raise FrameError(f"frames must be [F, H, W, C] with nothing empty, got shape {tuple(self.images.shape)}")
        to_rgb(self.images[:1, :1, :1])  # refuse a wrong type now, not at the first read
        object.__setattr__(self, "fps", as_rate(self.fps))

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def width(self) -> int:
        return self.images.shape[2]

    def __len__(self) -> int:
        return self.images.shape[0]

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return to_rgb(self.images[start:stop], self.background, start)


class DerivedFrames(FrameStream):
    """Frames made of another stream's, of the same size; dataclasses with a field `source`."""

    source: FrameStream

    @property
    def decodes(self) -> bool:
        return self.source.decodes

    @property
    def bits(self) -> int:
        return self.source.bits

    @property
    def height(self) -> int:
        return self.source.height

    @property
    def width(self) -> int:
        return self.source.width


@dataclass(frozen=True)
class TrimmedFrames(DerivedFrames):
    """Frames `start` to `stop` (not included) of another stream; at least one frame."""

    source: FrameStream
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.source):
            raise FrameRangeError(
                f"cannot trim to frames {self.start} to {self.stop}: the stream has frames 0 to {len(self.source)}, "
                "and at least one must remain"
            )
        if isinstance(self.source, TrimmedFrames):  # flatten, so that chains of trims cost nothing
            inner = self.source
            object.__setattr__(self, "source", inner.source)
            object.__setattr__(self, "start", inner.start + self.start)
            object.__setattr__(self, "stop", inner.start + self.stop)

    @property
    def fps(self) -> Fraction:
        return self.source.fps

    def __len__(self) -> int:
        return self.stop - self.start

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return self.source.read(self.start + start, self.start + stop)

    def stored(self, start: int, stop: int) -> torch.Tensor:
        self._check_range(start, stop)
        return self.source.stored(self.start + start, self.start + stop)


@dataclass(frozen=True)
class ResampledFrames(DerivedFrames):
    """Another stream at another constant rate: frames are repeated or left out, the length in seconds stays.

    Video files do this by themselves, from the times they store: see `VideoFrames.at_rate`.
    """

    source: FrameStream
    fps: Fraction

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", as_rate(self.fps))

    def __len__(self) -> int:
        return max(1, round(self.source.seconds * self.fps))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        rate, last = self.source.fps, len(self.source) - 1
        tolerance = nearest_tolerance(rate, self.fps)
        wanted = [min(ceil((number / self.fps + tolerance) * rate) - 1, last) for number in range(start, stop)]
        frames, places = self.source.picked(wanted)
        return frames[places]


@dataclass(frozen=True)
class JoinedFrames(FrameStream):
    """Streams one after the other; all of one size and one rate.

    Raises:
        FrameMismatchError: sizes or rates differ; the message names both.
        FrameError: no stream at all.
    """

    parts: tuple[FrameStream, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise FrameError("nothing to join: give at least one stream")
        first = self.parts[0]
        for number, part in enumerate(self.parts[1:], start=2):
            if (part.height, part.width, part.fps) != (first.height, first.width, first.fps):
                raise FrameMismatchError(
                    f"cannot join: stream 1 is {size_text(first.height, first.width)} at {first.fps} fps, "
                    f"stream {number} is {size_text(part.height, part.width)} at {part.fps} fps; "
                    "resize or change the rate of one first"
                )
        flat: list[FrameStream] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, JoinedFrames) else (part,))
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def decodes(self) -> bool:
        return all(part.decodes for part in self.parts)

    @property
    def bits(self) -> int:
        return max(part.bits for part in self.parts)

    @property
    def height(self) -> int:
        return self.parts[0].height

    @property
    def width(self) -> int:
        return self.parts[0].width

    @property
    def fps(self) -> Fraction:
        return self.parts[0].fps

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return _joined([part.read(first, last) for part, first, last in self._pieces(start, stop)])

    def stored(self, start: int, stop: int) -> torch.Tensor:
        self._check_range(start, stop)
        pieces = [part.stored(first, last) for part, first, last in self._pieces(start, stop)]
        if len({piece.dtype for piece in pieces}) == 1:
            return _joined(pieces)
        return self.read(start, stop)  # of several depths, or of no frames

    def _pieces(self, start: int, stop: int) -> list[tuple[FrameStream, int, int]]:
        """The parts that frames `start` to `stop` lie in, each with its own first frame and the one after its last."""
        pieces, offset = [], 0
        for part in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, len(part))
            if first < last:
                pieces.append((part, first, last))
            offset += len(part)
        return pieces


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
