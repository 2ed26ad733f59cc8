"""The streams of a media file, and what PyAV may not know of them."""

from __future__ import annotations

from fractions import Fraction

import av
from av.container import InputContainer
from av.frame import Frame
from av.stream import Stream

from ..errors import VideoReadError


def video_stream(container: InputContainer, path: str) -> av.VideoStream:
    """The first video.

    Raises:
        VideoReadError: there is none.
    """
    if not container.streams.video:
        raise VideoReadError(f"{path} has no video stream; it holds only audio, or is cut off")
    return container.streams.video[0]


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
