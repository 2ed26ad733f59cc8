"""Video files as streams: read in slices, any frame by its number, in constant memory."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Rational

import av
import numpy as np
import torch

from ..errors import VideoReadError
from .animated import WebpDecoder, find_webp, is_webp
from .audio import AudioTrack
from .decoder import FileDecoder, Source, borrow, give_back
from .look import Look, look_of, notes_of
from .media import Watch, audio_stream, decoded, open_media, video_stream
from .rates import shown_at
from .stream import FrameStream, as_rate
from .video_index import VideoIndex, file_identity, find_index

log = logging.getLogger(__name__)

_HEAD_FRAMES = 96
"""So many frames are tried for the first one that is whole: those before a recording's first keyframe are not."""
_REMEMBERED = 16


@dataclass(frozen=True, eq=False)
class VideoFrames(FrameStream):
    """A video file as a stream; a cheap handle that can be pickled. Make it with `VideoFrames.open`.

    Frames are shown as players show them: turned as the file says, in square pixels, in BT.709 colors and standard
    dynamic range, transparent parts over black; `notes` says what was done. Untagged files of the sizes of SDTV are
    read as BT.601, larger ones as BT.709. Frames that cannot be decoded show the last one that can, and are named in
    the log. Reading on where the last read ended continues in the same decoder; other reads begin at the keyframe
    before.

    Attributes:
        source: the file; it must not change while the handle is in use.
        look: how its images are shown.
        index: what is stored.
        resampled: whether frames are repeated and left out to give a constant `fps`, instead of each stored one once.
        has_audio: whether `audio` gives any.
        notes: what is shown otherwise than it is stored, and what is wrong with it, a sentence each.
    """

    source: Source
    height: int
    width: int
    fps: Fraction
    look: Look
    index: VideoIndex
    resampled: bool
    has_audio: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fps: float | Rational | None = None,
        *,
        deinterlace: bool = False,
        watch: Watch = lambda: None,
    ) -> VideoFrames:
        """Look through a file: counts its frames exactly and checks that the first one decodes.

        Args:
            path: any video that PyAV reads, or an animated WebP.
            fps: None gives the stored frames, each once, at their usual rate, however they are spaced. A rate gives a
                constant one: for each time the stored frame that is shown then, so that the length stays.
            deinterlace: whether frames that are marked as interlaced lose their combs.
            watch: called now and then while the file is looked through; raises whatever means Cancel.

        Raises:
            VideoReadError: missing, cut off, damaged, or without video.
            SettingsError: no sensible rate.
        """
        path = os.path.abspath(os.fspath(path))
        watch()
        try:
            file = _remembered(
                (path, file_identity(path), deinterlace), lambda: _look_through(path, deinterlace, watch)
            )
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(_unreadable(path, error)) from error
        return file if fps is None else file.at_rate(fps)

    @property
    def path(self) -> str:
        """The file."""
        return self.source.path

    decodes = True

    @property
    def bits(self) -> int:
        return self.look.bits

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
            number = int(np.searchsorted(self.index.times, ticks, side="left"))
        return min(max(number, 0), len(self))

    def audio(self, start: Fraction | float = 0, seconds: Fraction | float | None = None) -> AudioTrack | None:
        """The audio that goes with the frames from `start` seconds after the first one on; None where there is none.

        seconds: how much of it at most; default up to its end.

        Raises:
            VideoReadError: it cannot be read.
        """
        if not self.has_audio:
            return None
        track = AudioTrack.from_file(self.path, start, seconds)
        return replace(track, origin=self.index.start, jumps=self.index.jumps)

    def stored(self, start: int, stop: int) -> torch.Tensor:
        self._check_range(start, stop)
        return self._images(start, stop, torch.float32 if self.look.deep else torch.uint8)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        frames = self._images(start, stop, torch.float32)
        return frames if self.look.deep else frames.div_(255)

    def _images(self, start: int, stop: int, kind: torch.dtype) -> torch.Tensor:
        """Frames as they are stored, in a tensor of any type: large ones in between would tear holes into memory."""
        frames = torch.empty(stop - start, self.height, self.width, 3, dtype=kind)
        if start == stop:
            return frames
        wanted = self._stored_numbers(start, stop)
        distinct = sorted(set(wanted))
        position = 0
        decoder = None
        try:
            decoder = borrow(self.source, distinct[0])
            for number, image in zip(distinct, decoder.images(distinct, self.index, self.look), strict=True):
                while position < len(wanted) and wanted[position] == number:
                    frames[position] = image
                    position += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(_unreadable(self.path, error)) from error
        else:
            if stop < len(self):  # at its end a file is closed; an open one could not be replaced on some systems
                kept, decoder = decoder, None
                self._report(kept.damaged)
                give_back(kept)
            else:
                self._report(decoder.damaged)
        finally:
            if decoder is not None:
                decoder.close()
        return frames

    def _stored_numbers(self, start: int, stop: int) -> list[int]:
        """The stored frames that frames `start` to `stop` of this stream show."""
        if not self.resampled:
            return list(range(start, stop))
        index = self.index
        if index.variable:
            return shown_at(index.times, index.time_base, index.rate, self.fps, range(start, stop))
        grid = np.arange(index.num_frames)
        return shown_at(grid, 1 / index.rate, index.rate, self.fps, range(start, stop))

    def _report(self, damaged: set[int]) -> None:
        """Name the frames that could not be decoded, each once."""
        new = sorted(number for number in damaged if (self.source, number) not in _reported)
        damaged.clear()
        if new:
            _reported.update((self.source, number) for number in new)
            log.warning(
                "%s is damaged: of its frames, %s cannot be decoded; the last whole one is shown instead",
                self.path,
                _ranges(new),
            )


_reported: set[tuple[Source, int]] = set()
_known: OrderedDict[tuple[str, tuple[int, int], bool], VideoFrames] = OrderedDict()
_known_guard = threading.Lock()


def _remembered(key: tuple[str, tuple[int, int], bool], look_through: Callable[[], VideoFrames]) -> VideoFrames:
    """A file that was looked through lately is not looked through again, as long as it was not changed."""
    with _known_guard:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    file = look_through()
    with _known_guard:
        _known[key] = file
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    return file


def _look_through(path: str, deinterlace: bool, watch: Watch) -> VideoFrames:
    identity = file_identity(path)
    if is_webp(path):
        index, look = find_webp(path, watch)
        source = Source(path, identity, WebpDecoder)
        return VideoFrames(source, *look.shown_size, index.rate, look, index, False, False)
    with open_media(path) as container:
        first, all_alike = _first_frame(container, path)
        look = look_of(first, video_stream(container, path))
        notes = notes_of(look, first, deinterlace)
    with open_media(path) as container:
        index = find_index(container, video_stream(container, path), path, first.pts, watch)
        has_audio = audio_stream(container) is not None
    source = Source(path, identity, FileDecoder, deinterlace, all_alike)
    return VideoFrames(source, *look.shown_size, index.rate, look, index, False, has_audio, notes)


def _first_frame(container: av.container.InputContainer, path: str) -> tuple[av.VideoFrame, bool]:
    """The first frame that is whole; or the very first one, and that all are marked as damaged."""
    marked: av.VideoFrame | None = None
    frames = decoded(container, video_stream(container, path))
    for _, frame in zip(range(_HEAD_FRAMES), frames, strict=False):
        if not frame.is_corrupt:
            return frame, False
        marked = marked or frame
    if marked is None:
        raise VideoReadError(f"{path} has no frame that decodes; it is cut off or damaged")
    return marked, True


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers in words: "3, 7 to 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _unreadable(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path} cannot be read as a video ({reason}); it is missing, cut off or of an unknown format"
