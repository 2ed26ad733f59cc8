"""Videos that need not be in memory: sources that are read, and sinks that are written, in slices."""

from __future__ import annotations

from .audio import AudioTrack
from .codecs import AUTO_DEPTH, BIT_DEPTHS, CODECS, check_quality, pixel_format_of
from .decoder import close_idle_decoders
from .sinks import read_ahead, to_tensor, write_png_folder
from .stream import FrameStream, JoinedFrames, ResampledFrames, TensorFrames, TrimmedFrames, as_rate, to_rgb
from .video_read import VideoFrames
from .video_write import VideoInfo, VideoWriter, write_video

__all__ = [
    "AUTO_DEPTH",
    "BIT_DEPTHS",
    "CODECS",
    "AudioTrack",
    "FrameStream",
    "JoinedFrames",
    "ResampledFrames",
    "TensorFrames",
    "TrimmedFrames",
    "VideoFrames",
    "VideoInfo",
    "VideoWriter",
    "as_rate",
    "check_quality",
    "close_idle_decoders",
    "pixel_format_of",
    "read_ahead",
    "to_rgb",
    "to_tensor",
    "write_png_folder",
    "write_video",
]
