"""FRAME_STREAM from and to what the host has: IMAGE, VIDEO, AUDIO."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import comfy.model_management as mm
import folder_paths
import torch
from torch import Tensor

from ....streaming_core.atomic import atomic_write
from ....streaming_core.errors import FrameError, SettingsError
from ....streaming_core.frames import (
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

log = logging.getLogger(__name__)

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
    video: Input.Video, fps: Fraction | float, deinterlace: bool = False
) -> tuple[FrameStream, FileAudio | Mapping[str, Any] | None]:
    """A VIDEO at a constant rate, `fps` or (0) its own, and its AUDIO or None; files are read in slices.

    A file whose frames are spaced unevenly gets its usual rate: for each time the frame that is shown then.

    deinterlace: whether frames that are marked as interlaced lose their combs.
    """
    file = video_file(video, deinterlace)
    if file is None:
        components = video.get_components()
        stream = TensorFrames(components.images, components.frame_rate)
        return (ResampledFrames(stream, as_rate(fps)) if fps else stream), components.audio
    file = _evenly_spaced(file, fps)
    first, _ = _part(file, video)
    start, seconds = trim_window(video)
    # From where the first frame is, not from where the cut was made: it may lie between two frames.
    begin = first / file.fps
    track = file.audio(begin, max(Fraction(0), Fraction(start + seconds) - begin) if seconds else None)
    return trimmed_file(file, video), None if track is None else FileAudio(track)


def _evenly_spaced(file: VideoFrames, fps: Fraction | float) -> VideoFrames:
    return file.at_rate(fps or file.fps) if fps or file.variable_rate else file


def video_file(video: Input.Video, deinterlace: bool = False) -> VideoFrames | None:
    """The file behind a VIDEO; None where there is none, or where the host would show another part of its images.

    What is shown otherwise than it is stored is said in the log.
    """
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if isinstance(source, io.BytesIO):
        source = _spooled(source)
    if not isinstance(source, str):
        return None
    file = VideoFrames.open(source, deinterlace=deinterlace, watch=check_cancel)
    if _is_cropped(video, file):
        return None
    for note in file.notes:
        log.warning("%s: %s", os.path.basename(source), note)
    return file


def _is_cropped(video: Input.Video, file: VideoFrames) -> bool:
    """Whether the host would show a part of the images, which newer ones can."""
    try:
        size = video.get_dimensions()
    except (av.FFmpegError, ValueError):
        return False  # a format that is read here and not there
    # The host's size knows neither of rotation nor of pixels that are not square.
    return sorted(size) != sorted((file.look.stored_height, file.look.stored_width))


def _spooled(memory: io.BytesIO) -> str:
    """A file that lies in memory as one in the host's temporary folder, named by its content, to be read in slices."""
    content = memory.getbuffer()
    path = Path(folder_paths.get_temp_directory()) / f"streamingt2v_{hashlib.sha256(content).hexdigest()[:32]}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return str(path)


def trim_window(video: Input.Video) -> tuple[float, float]:
    """Start and length in seconds of the part that a VIDEO of newer hosts is trimmed to; length 0: up to the end."""
    return video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)


def trimmed_file(stream: VideoFrames, video: Input.Video) -> FrameStream:
    """The part of a file that a VIDEO is trimmed to."""
    first, stop = _part(stream, video)
    return stream.trimmed(first, stop) if first or stop is not None else stream


def _part(stream: VideoFrames, video: Input.Video) -> tuple[int, int | None]:
    """First frame of the part that a VIDEO is trimmed to, and the one after its last; None: up to the end."""
    start, seconds = trim_window(video)
    return stream.number_at(start) if start else 0, stream.number_at(start + seconds) if seconds else None


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
