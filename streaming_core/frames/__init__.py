"""Films that need not be in memory: sources that are read, and sinks that are written, in slices."""

from __future__ import annotations

from .audio import AudioTrack
from .run_source import DecodeGroup, GroupDecoder, LatentDecoder, RunFolderFrames, consecutive_groups
from .stream import FrameStream, JoinedFrames, TensorFrames, TrimmedFrames, as_rate, to_rgb
from .video_write import CODECS, VideoInfo, VideoWriter, write_video

__all__ = [
    "CODECS",
    "AudioTrack",
    "DecodeGroup",
    "FrameStream",
    "GroupDecoder",
    "JoinedFrames",
    "LatentDecoder",
    "RunFolderFrames",
    "TensorFrames",
    "TrimmedFrames",
    "VideoInfo",
    "VideoWriter",
    "as_rate",
    "consecutive_groups",
    "to_rgb",
    "write_video",
]
