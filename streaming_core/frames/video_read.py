"""Video files as streams: read in slices, any frame by its number, in constant memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Rational

import av
import numpy as np
import torch

from ..errors import VideoReadError
from .media import audio_stream, video_stream
from .pixels import Orientation, from_video_frame, orientation_of
from .stream import FrameStream, as_rate
from .video_index import VideoIndex, find_index, without_head

_MAX_IDLE_DECODERS = 4


@dataclass(frozen=True, eq=False)
class VideoFrames(FrameStream):
    """A video file as a stream; a cheap handle that can be pickled. Make it with `VideoFrames.open`.

    Rotation stored with the video is applied. Colors follow the matrix and range stored in the file; untagged files
    are read as BT.601 in limited range, which is what FFmpeg and the host do. Pixels are taken as square.
    Reading on where the last read ended continues in the same decoder; other reads begin at the keyframe before.

    Attributes:
        path: the file; it must not change while the handle is in use.
        index: what is stored.
        resampled: whether frames are repeated and left out to give a constant `fps`, instead of each stored one once.
        has_audio: whether `AudioTrack.from_file(path)` would find audio.
    """

    path: str
    height: int
    width: int
    fps: Fraction
    index: VideoIndex
    resampled: bool
    has_audio: bool
    orientation: Orientation
    identity: tuple[int, int]

    @classmethod
    def open(cls, path: str | os.PathLike[str], fps: float | Rational | None = None) -> VideoFrames:
        """Look through a file: counts its frames exactly and checks that the first and the last one decode.

        Args:
            path: any video that PyAV reads.
            fps: None gives the stored frames, each once, at their average rate, however they are spaced. A rate gives
                a constant one: for each time the stored frame that is shown then, so that the length stays.

        Raises:
            VideoReadError: missing, cut off, damaged, or without video.
            SettingsError: no sensible rate.
        """
        path = os.path.abspath(os.fspath(path))
        try:
            identity = _identity(path)
            with av.open(path) as container:
                stream = video_stream(container, path)
                index = find_index(container, stream, path)
                has_audio = audio_stream(container) is not None
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(_unreadable(path, error)) from error
        decoder = _Decoder(path, identity)
        try:
            first = decoder.first_frame()
            orientation = orientation_of(first)
            height, width = first.height, first.width
            if orientation.quarter_turns % 2:
                height, width = width, height
            # Leading frames may refer to a part which was cut away.
            if index.pts.size and first.pts is not None and first.pts > index.pts[0]:
                index = without_head(index, first.pts)
            for _ in decoder.frames([index.num_frames - 1], index):
                pass  # a file that is cut off fails here, not hours later
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(_unreadable(path, error)) from error
        finally:
            decoder.close()
        rate = index.rate if fps is None else as_rate(fps)
        return cls(path, height, width, rate, index, fps is not None, has_audio, orientation, identity)

    decodes = True

    def __len__(self) -> int:
        return max(1, round(self.index.seconds * self.fps)) if self.resampled else self.index.num_frames

    @property
    def variable_rate(self) -> bool:
        """Whether stored frames are unevenly spaced; then `open(path, fps)` is what keeps motion and audio right."""
        return self.index.variable

    def at_rate(self, fps: float | Rational) -> VideoFrames:
        """The same file at a constant rate, as `open` with `fps` gives it; the file is not looked through again."""
        return replace(self, fps=as_rate(fps), resampled=True)

    def number_at(self, seconds: float | Fraction) -> int:
        """The first frame of this stream that begins `seconds` after the first one, or later; at most `len`."""
        if self.resampled or not self.index.variable:
            number = math.ceil(seconds * self.fps - Fraction(1, 10**6))
        else:
            ticks = math.ceil(seconds / self.index.time_base - Fraction(1, 10**6))
            number = int(np.searchsorted(self.index.pts, self.index.pts[0] + ticks, side="left"))
        return min(max(number, 0), len(self))

    def _stored_number(self, number: int) -> int:
        """The stored frame that frame `number` of this stream shows."""
        if not self.resampled:
            return number
        if self.index.variable:
            ticks = math.ceil(number / self.fps / self.index.time_base)
            stored = int(np.searchsorted(self.index.pts, self.index.pts[0] + ticks, side="right")) - 1
        else:
            stored = math.floor(number * self.index.rate / self.fps)
        return min(stored, self.index.num_frames - 1)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        wanted = [self._stored_number(number) for number in range(start, stop)]
        distinct = sorted(set(wanted))
        frames = torch.empty(stop - start, self.height, self.width, 3)
        position = 0
        decoder = _borrow(self.path, self.identity, distinct[0])
        try:
            for stored, frame in zip(distinct, decoder.frames(distinct, self.index), strict=True):
                image = from_video_frame(frame, self.orientation)
                if image.shape != frames.shape[1:]:
                    raise VideoReadError(
                        f"{self.path} changes its size at frame {stored}, from {self.width}x{self.height} to "
                        f"{image.shape[1]}x{image.shape[0]}; convert it to one size first"
                    )
                while position < len(wanted) and wanted[position] == stored:
                    frames[position] = image
                    position += 1
        except (av.FFmpegError, OSError) as error:
            decoder.close()
            raise VideoReadError(_unreadable(self.path, error)) from error
        except BaseException:
            decoder.close()
            raise
        if stop == len(self):
            decoder.close()  # videos are read once; an open file could not be replaced on some systems
        else:
            _give_back(decoder)
        return frames


class _Decoder:
    """An open file at some frame. Used by one thread at a time."""

    def __init__(self, path: str, identity: tuple[int, int]) -> None:
        if _identity(path) != identity:
            raise VideoReadError(f"{path} was changed while it was in use; load it again")
        self.path = path
        self.identity = identity
        self.next = 0
        self._open()

    def _open(self) -> None:
        self._container = av.open(self.path)
        self._stream = video_stream(self._container, self.path)
        self._stream.thread_type = "AUTO"
        self._decoded: Iterator[av.VideoFrame] = self._container.decode(self._stream)
        self.next = 0

    def close(self) -> None:
        self._decoded = iter(())
        self._container.close()

    def first_frame(self) -> av.VideoFrame:
        frame = next(self._decoded, None)
        if frame is None:
            raise VideoReadError(f"{self.path} has no frame that decodes; it is cut off or damaged")
        self.next = 1
        return frame

    def frames(self, numbers: Sequence[int], index: VideoIndex) -> Iterator[av.VideoFrame]:
        """The frames with these ascending numbers."""
        self._go_to(numbers[0], index)
        held: av.VideoFrame | None = None
        for wanted in numbers:
            retreats = 0
            while held is None or self.next <= wanted:
                held = next(self._decoded, None)
                number = index.num_frames if held is None else self._number(held, index)
                if number is None:
                    continue
                if number > wanted:  # decoding began too late, or the frame cannot be decoded at all
                    retreats += 1
                    self._retreat(wanted, retreats, index)
                    held = None
                    continue
                self.next = number + 1
            yield held

    def _number(self, frame: av.VideoFrame, index: VideoIndex) -> int | None:
        """Which stored frame this is; None for one that is not counted (before the start, or marked as not shown)."""
        if not index.pts.size:
            return self.next
        if frame.pts is None:
            return None
        number = int(np.searchsorted(index.pts, frame.pts))
        return number if number < index.num_frames and index.pts[number] == frame.pts else None

    def _go_to(self, number: int, index: VideoIndex) -> None:
        if not index.pts.size:
            if number < self.next:
                self.close()
                self._open()
            return
        key = int(index.keys[max(0, int(np.searchsorted(index.keys, number, side="right")) - 1)])
        if not self.next <= number or key > self.next:
            self._seek(key, index)

    def _retreat(self, number: int, times: int, index: VideoIndex) -> None:
        """Begin earlier: one keyframe back, then two, four ...; from the very start at last."""
        at = int(np.searchsorted(index.keys, number, side="right")) - 1
        back = at - 2 ** (times - 1)
        if not index.pts.size or at - 2 ** (times - 2) <= 0 < times - 1:  # the last try began at the start already
            raise VideoReadError(
                f"{self.path}: frame {number} of {index.num_frames} cannot be decoded; the file is damaged"
            )
        if back > 0:
            self._seek(int(index.keys[back]), index)
        else:
            self.close()
            self._open()

    def _seek(self, number: int, index: VideoIndex) -> None:
        self._container.seek(int(index.pts[number]), stream=self._stream, backward=True)
        self._decoded = self._container.decode(self._stream)
        self.next = 0


_idle: list[_Decoder] = []
_idle_guard = threading.Lock()


def _borrow(path: str, identity: tuple[int, int], number: int) -> _Decoder:
    """An idle decoder of this file, the one that stands at `number` if there is one; else a new one."""
    with _idle_guard:
        fitting = [decoder for decoder in _idle if decoder.path == path and decoder.identity == identity]
        if fitting:
            best = min(fitting, key=lambda decoder: (decoder.next > number, abs(number - decoder.next)))
            _idle.remove(best)
            return best
    try:
        return _Decoder(path, identity)
    except (av.FFmpegError, OSError) as error:
        raise VideoReadError(_unreadable(path, error)) from error


def _give_back(decoder: _Decoder) -> None:
    with _idle_guard:
        _idle.append(decoder)
        dropped = _idle.pop(0) if len(_idle) > _MAX_IDLE_DECODERS else None
    if dropped is not None:
        dropped.close()


def close_idle_decoders() -> None:
    """Close all video files that are kept open for the next read."""
    with _idle_guard:
        dropped, _idle[:] = list(_idle), []
    for decoder in dropped:
        decoder.close()


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _unreadable(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path} cannot be read as a video ({reason}); it is missing, cut off or of an unknown format"
