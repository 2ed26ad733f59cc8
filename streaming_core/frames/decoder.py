"""Open video files: any stored frame by its number, and a few files kept open for the next read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from ..errors import VideoReadError
from .deinterlace import FRAMES_BEFORE, deinterlaced
from .look import Look
from .media import decoded, open_media, video_stream
from .video_index import VideoIndex, file_identity

_MAX_IDLE = 4
_END = 1 << 62

Identity = tuple[int, int]
"""Size and time of change of a file."""


@dataclass(frozen=True)
class Source:
    """Which file is decoded how. `frames` may be shown only if nothing is wrong with them; see `trusts_all`.

    Attributes:
        path, identity: the file, and what tells that it was not changed.
        opens: what opens it: `FileDecoder`, or the reader of a format that FFmpeg does not know.
        deinterlaced: whether interlaced frames lose their combs.
        trusts_all: whether frames that the decoder marks as damaged are shown too: where it marks the first one, it
            marks them all.
    """

    path: str
    identity: Identity
    opens: Callable[[Source], Decoder]
    deinterlaced: bool = False
    trusts_all: bool = False


class Decoder(Protocol):
    """An open file at some frame. Used by one thread at a time."""

    source: Source
    damaged: set[int]

    @property
    def position(self) -> int:
        """The stored frame that comes next."""

    def images(self, numbers: Sequence[int], index: VideoIndex, look: Look) -> Iterator[torch.Tensor]:
        """The stored frames with these ascending numbers as images, as `Look.image` gives them.

        For a frame that cannot be decoded, the last one before it that can; its number is added to `damaged`.
        """

    def close(self) -> None:
        """Close the file."""


class FileDecoder:
    """A video file that FFmpeg decodes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.damaged: set[int] = set()
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        if file_identity(self.source.path) != self.source.identity:
            raise VideoReadError(f"{self.source.path} was changed while it was in use; load it again")
        self._container = open_media(self.source.path)
        self._stream = video_stream(self._container, self.source.path)
        self._stream.thread_type = "AUTO"
        self._begin(at_start=True)

    def _begin(self, at_start: bool) -> None:
        """Decode from where the file stands."""
        self._frames = self._good_frames(at_start)
        self._at_start = at_start
        self._count = 0
        self._last: tuple[int, av.VideoFrame] | None = None
        self._ahead: tuple[int, av.VideoFrame | None] | None = None

    def close(self) -> None:
        self._frames = iter(())
        self._container.close()

    @property
    def position(self) -> int:
        """The stored frame that comes next."""
        return 0 if self._last is None else self._last[0] + 1

    def images(self, numbers: Sequence[int], index: VideoIndex, look: Look) -> Iterator[torch.Tensor]:
        for number in numbers:
            yield look.image(self._frame(number, index), self._reformatter)

    def _good_frames(self, at_start: bool) -> Iterator[av.VideoFrame]:
        everything = decoded(self._container, self._stream)
        frames = (frame for frame in everything if self.source.trusts_all or not frame.is_corrupt)
        if not self.source.deinterlaced:
            return frames
        combed = deinterlaced(frames, self._stream)
        if not at_start:
            for _ in range(FRAMES_BEFORE):
                next(combed, None)  # made without the fields before it
        return combed

    def _frame(self, wanted: int, index: VideoIndex) -> av.VideoFrame:
        self._go_to(wanted, index)
        retreats = 0
        while self._last is None or self._last[0] != wanted:
            if self._ahead is None:
                self._take(wanted, index)
            elif self._ahead[0] <= wanted and self._ahead[1] is not None:
                self._last, self._ahead = (self._ahead[0], self._ahead[1]), None
            elif self._last is not None:  # decoding began before it and has passed it
                self.damaged.add(wanted)
                return self._last[1]
            elif not self._at_start:
                retreats += 1
                self._retreat(wanted, retreats, index)
            elif self._ahead[1] is not None:
                self.damaged.add(wanted)
                return self._ahead[1]
            else:
                raise VideoReadError(f"{self.source.path} has no frame that decodes; it is cut off or damaged")
        return self._last[1]

    def _take(self, wanted: int, index: VideoIndex) -> None:
        """Decode one frame more: it becomes the last one, or lies ahead where it is behind the wanted one."""
        frame = next(self._frames, None)
        if frame is None:
            self._ahead = (_END, None)
            return
        number = self._number(frame, index)
        if number is None:
            return
        if number <= wanted:
            self._last = (number, frame)
        else:
            self._ahead = (number, frame)

    def _number(self, frame: av.VideoFrame, index: VideoIndex) -> int | None:
        """Which stored frame this is; None for one that is not counted (before the start, or marked as not shown)."""
        if index.sequential:
            self._count += 1
            return self._count - 1
        if frame.pts is None:
            return None
        number = int(np.searchsorted(index.pts, frame.pts))
        return number if number < index.num_frames and index.pts[number] == frame.pts else None

    def _go_to(self, wanted: int, index: VideoIndex) -> None:
        """Seek, unless the frame comes sooner by decoding on."""
        passed = self._last is not None and wanted < self._last[0]
        if index.sequential:
            if passed:
                self._reopen()
            return
        key = self._key_before(wanted, index)
        begun = self._last is not None or self._at_start
        if passed or not begun or key > self.position:
            self._seek(key, index)

    def _key_before(self, wanted: int, index: VideoIndex) -> int:
        """The keyframe at which decoding has to begin for a frame."""
        needed = max(0, wanted - FRAMES_BEFORE) if self.source.deinterlaced else wanted
        return int(index.keys[max(0, int(np.searchsorted(index.keys, needed, side="right")) - 1)])

    def _retreat(self, wanted: int, times: int, index: VideoIndex) -> None:
        """Begin earlier: one keyframe back, then two, four ...; from the very start at last."""
        at = int(np.searchsorted(index.keys, self._key_before(wanted, index)))
        back = at - 2 ** (times - 1)
        if back > 0:
            self._seek(int(index.keys[back]), index)
        else:
            self._reopen()

    def _seek(self, number: int, index: VideoIndex) -> None:
        if number == 0:
            return self._reopen()
        self._container.seek(int(index.pts[number]), stream=self._stream, backward=True)
        self._begin(at_start=False)

    def _reopen(self) -> None:
        if self._last is None and self._ahead is None and self._at_start:
            return
        self.close()
        self._open()


_idle: list[Decoder] = []
_idle_guard = threading.Lock()


def borrow(source: Source, number: int) -> Decoder:
    """An idle decoder of this file, the one that stands best for frame `number` if there is one; else a new one."""
    with _idle_guard:
        fitting = [decoder for decoder in _idle if decoder.source == source]
        if fitting:
            best = min(fitting, key=lambda decoder: (decoder.position > number, abs(number - decoder.position)))
            _idle.remove(best)
            return best
    return source.opens(source)


def give_back(decoder: Decoder) -> None:
    """Keep a decoder open for the next read."""
    with _idle_guard:
        _idle.append(decoder)
        dropped = _idle.pop(0) if len(_idle) > _MAX_IDLE else None
    if dropped is not None:
        dropped.close()


def close_idle_decoders() -> None:
    """Close all video files that are kept open for the next read."""
    with _idle_guard:
        dropped, _idle[:] = list(_idle), []
    for decoder in dropped:
        decoder.close()
