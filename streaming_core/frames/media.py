"""The streams of a media file, and its packets and frames, read on past places that are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.frame import Frame
from av.packet import Packet
from av.stream import Disposition, Stream

from ..errors import VideoReadError

_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails
_MOST_FAILURES = 64
_CLOCKED_CONTAINERS = {"mpegts", "mpegtsraw", "mpeg"}
_BACKWARD, _FORWARD = Fraction(1, 2), Fraction(10)

Watch = Callable[[], None]


def open_media(path: str) -> InputContainer:
    """A file to read from; its texts need not be UTF-8.

    Raises:
        OSError, av.FFmpegError: missing, or of an unknown format.
    """
    return av.open(path, metadata_errors="replace")


def video_stream(container: InputContainer, path: str) -> av.VideoStream:
    """The video: the default one where there are several, and not the cover image of a song or a download.

    Raises:
        VideoReadError: there is none, or this FFmpeg cannot decode it.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    if not videos:
        kind = "a cover image" if container.streams.video else "audio"
        raise VideoReadError(f"{path} has no video stream; it holds only {kind}, or is cut off")
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        raise VideoReadError(f"{path} has a video stream of a kind that cannot be decoded, or is cut off")
    return max(known, key=lambda stream: bool(stream.disposition & Disposition.default))  # the first of several


def audio_stream(container: InputContainer) -> av.AudioStream | None:
    """The first audio that this FFmpeg can decode; phones add spatial audio that it cannot, which has no codec."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def time_base(of: Stream | Frame) -> Fraction:
    """Seconds per tick of the times of a stream or frame.

    Raises:
        VideoReadError: it has none, so that its times mean nothing.
    """
    if of.time_base is None:
        raise VideoReadError("the file does not say in which unit its times are; it is damaged")
    return of.time_base


def format_names(container: InputContainer) -> set[str]:
    """The names of a container's format; FFmpeg joins those of alike formats."""
    return set(container.format.name.split(","))


def packets(container: InputContainer, stream: Stream) -> Iterator[Packet[Any]]:
    """The packets of a stream that hold something, in the order of the file."""
    failures = 0
    demuxed = container.demux(stream)
    while failures < _MOST_FAILURES:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except IndexError:  # a packet of a stream that began later on, which PyAV does not know
            demuxed = container.demux(stream)
            continue
        except av.FFmpegError as error:  # the next packets may be whole
            _raise_unless_damage(error)
            failures += 1
            demuxed = container.demux(stream)
            continue
        failures = 0
        if packet.size:
            yield packet


def decoded(
    container: InputContainer, stream: Any, watch: Watch = lambda: None, context: Any | None = None
) -> Iterator[Any]:
    """The frames of a stream in the order of their showing; those that cannot be decoded are left out.

    watch: called for every packet; raises whatever means Cancel. context: decodes instead of the stream's own.
    """
    context = stream.codec_context if context is None else context
    for packet in packets(container, stream):
        watch()
        try:
            yield from context.decode(packet)
        except av.FFmpegError as error:
            _raise_unless_damage(error)
    try:
        yield from context.decode(None)
    except av.FFmpegError as error:
        _raise_unless_damage(error)


def _raise_unless_damage(error: av.FFmpegError) -> None:
    """A disk that fails, or no memory, is something else than content that FFmpeg cannot make sense of."""
    if isinstance(error, (OSError, MemoryError)):
        raise error


class RecordingClock:
    """The times of a recording as one line where its clock starts anew: broadcasts, files joined byte by byte.

    Only formats made for broadcast do this; elsewhere a jump is a pause. `jumps` are the seconds to add from each
    new start on.
    """

    def __init__(self, container: InputContainer, tick: Fraction, jumps: tuple[Fraction, ...] | None = None) -> None:
        self.jumps: list[Fraction] = []
        self._given = jumps
        self._follows = bool(format_names(container) & _CLOCKED_CONTAINERS)
        self._tick = tick
        self._last: Fraction | None = None
        self._step = Fraction(0)

    def seconds(self, time: int) -> Fraction:
        """The time of the next packet or frame of the file, in seconds."""
        raw = time * self._tick
        now = raw + (self.jumps[-1] if self.jumps else 0)
        if self._last is None or not self._follows:
            self._last = now
            return now
        if not -_BACKWARD < now - self._last < _FORWARD:
            jump = self._last + self._step - raw
            if self._given is not None:  # the video has told where its parts begin
                jump = self._given[min(len(self.jumps), len(self._given) - 1)] if self._given else jump
            self.jumps.append(jump)
            now = raw + jump
        elif now > self._last:
            self._step = now - self._last
        self._last = max(self._last, now)
        return now
