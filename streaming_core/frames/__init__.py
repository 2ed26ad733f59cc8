"""Films that need not be in memory: sources that are read, and sinks that are written, in slices."""

from __future__ import annotations

from .audio import AudioTrack
from .stream import FrameStream, JoinedFrames, TensorFrames, TrimmedFrames, as_rate, to_rgb
from .video_write import CODECS, VideoInfo, VideoWriter, write_video

__all__ = [
    "CODECS",
    "AudioTrack",
    "FrameStream",
    "JoinedFrames",
    "TensorFrames",
    "TrimmedFrames",
    "VideoInfo",
    "VideoWriter",
    "as_rate",
    "to_rgb",
    "write_video",
]
