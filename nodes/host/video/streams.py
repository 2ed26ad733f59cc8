"""FRAME_STREAM from and to what the host has: IMAGE, VIDEO, AUDIO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ....streaming_core.errors import FrameError, SettingsError
from ....streaming_core.frames import (
    AudioTrack,
    FrameStream,
    ResampledFrames,
    TensorFrames,
    VideoFrames,
    as_rate,
    to_tensor,
)
from ..compat import Input, InputImpl
from ..progress import check_cancel
from .audio import FileAudio

IMAGE_SHARE = 0.9
"""How much of the free memory an IMAGE may take."""


def as_stream(video: Any, fps: Fraction | float) -> FrameStream:
    """FRAME_STREAM, VIDEO or IMAGE as a stream; files are read in slices. `fps` is the rate of an IMAGE.

    A file whose frames are spaced unevenly is as in `stream_and_audio`.
    """
    if isinstance(video, FrameStream):
        return video
    if isinstance(video, Tensor):
        return TensorFrames(video, as_rate(fps))
    if not hasattr(video, "get_components"):
        raise FrameError(f"frames must be a frame stream, a video or images, got {type(video).__name__}")
    file = video_file(video)
    if file is not None:
        return trimmed_file(_evenly_spaced(file, 0), video)
    components = video.get_components()
    return TensorFrames(components.images, components.frame_rate)


def stream_and_audio(
    video: Input.Video, fps: Fraction | float
) -> tuple[FrameStream, FileAudio | Mapping[str, Any] | None]:
    """A VIDEO at a constant rate, `fps` or (0) its own, and its AUDIO or None; files are read in slices.

    A file whose frames are spaced unevenly gets its average rate: for each time the frame that is shown then.
    """
    file = video_file(video)
    if file is None:
        components = video.get_components()
        stream = TensorFrames(components.images, components.frame_rate)
        return (ResampledFrames(stream, as_rate(fps)) if fps else stream), components.audio
    file = _evenly_spaced(file, fps)
    start, seconds = trim_window(video)
    audio = FileAudio(AudioTrack.from_file(file.path, start, seconds or None)) if file.has_audio else None
    return trimmed_file(file, video), audio


def _evenly_spaced(file: VideoFrames, fps: Fraction | float) -> VideoFrames:
    return file.at_rate(fps or file.fps) if fps or file.variable_rate else file


def video_file(video: Input.Video) -> VideoFrames | None:
    """The file behind a VIDEO; None where there is none, or where the host would show another part of its images."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if not isinstance(source, str):
        return None
    file = VideoFrames.open(source)
    # Cropped by a host that can; sorted, since the host's size does not know of rotation.
    return file if sorted(video.get_dimensions()) == sorted((file.width, file.height)) else None


def trim_window(video: Input.Video) -> tuple[float, float]:
    """Start and length in seconds of the part that a VIDEO of newer hosts is trimmed to; length 0: up to the end."""
    return video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)


def trimmed_file(stream: VideoFrames, video: Input.Video) -> FrameStream:
    """The part of a file that a VIDEO is trimmed to."""
    start, seconds = trim_window(video)
    if not start and not seconds:
        return stream
    return stream.trimmed(stream.number_at(start), stream.number_at(start + seconds) if seconds else None)


def video_images(
    stream: FrameStream, way_out: str, progress: Callable[[int, int | None], None] | None = None
) -> Tensor:
    """All frames as one IMAGE; refused in a sentence that ends in `way_out` when free memory cannot hold them.

    progress: called with (frames done, frames in all), `frames_bar` for nodes without a bar of their own.
    """
    wanted = len(stream) * stream.height * stream.width * 3 * 4
    free = mm.get_free_memory(torch.device("cpu"))
    if wanted > IMAGE_SHARE * free:
        raise SettingsError(
            f"{len(stream)} frames as IMAGE need {wanted / 2**30:.1f} GiB but {free / 2**30:.1f} GiB are free; "
            f"{way_out}"
        )
    return to_tensor(stream, check_cancel=check_cancel, progress=progress)
