"""Video files, written frame by frame in constant memory, complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from io import RawIOBase
from numbers import Rational
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.container import OutputContainer

from ..atomic import atomic_write
from ..errors import FrameMismatchError, SettingsError, StreamingError, VideoWriteError
from .audio import AudioFeed, AudioTrack
from .codecs import CONTAINERS, LARGE_PIXELS, audio_encoder, check_size, choose_encoder, encoder_options, size_options
from .pixels import BT709, LIMITED_RANGE, format_bits, pad_to, quantize, size_steps, to_video_frame
from .sinks import read_ahead, watched
from .slices import MOST_FRAMES, frames_per_slice
from .stream import FrameStream, as_rate, size_text

AHEAD_FRAMES = 4
"""Frames per slice where slices are read ahead, at most: a few of them lie in memory at the same time."""
QUEUE_FRAMES = 8
"""Frames that wait for the encoder, at most."""


@dataclass(frozen=True)
class VideoInfo:
    """What was written. `height` and `width` are those in the file, padding included."""

    path: Path
    num_frames: int
    height: int
    width: int
    fps: Fraction

    @property
    def seconds(self) -> Fraction:
        """Exact length."""
        return self.num_frames / self.fps


class _CheckedFile:
    """The file as the muxer sees it; remembers a failed write, which the muxer's last flush would swallow."""

    def __init__(self, raw: RawIOBase) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            rest = memoryview(data)
            while rest:  # a disk that is nearly full takes a part first and fails with the next one
                rest = rest[self._raw.write(rest) :]
            return len(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


class VideoWriter:
    """Writes frames to a video file while they are being made.

        with VideoWriter("out.mp4", fps=24) as writer:
            for frames in chunks:
                writer.write(frames)
        print(writer.info)

    The file has a temporary name until the block ends without an exception; then it is synced and renamed. After any
    exception, Cancel included, neither name exists (a file of an earlier run stays as it was). Encoding happens in a
    thread of its own behind a queue of `queue_frames` images, so that it overlaps with the making of the next ones;
    an error in there is raised by the next `write` or at the end of the block.

    Sizes: where the pixel format halves its chroma (yuv420p: both, yuv422p: width), odd sizes are padded to even ones
    by repeating the last row and column. YUV is written as BT.709, limited range, and tagged so.

    Args:
        path: final name; the suffix chooses the container (.mp4, .mov, .mkv, .webm).
        fps: frames per second, kept exactly (see `as_rate`).
        codec: "h264", "h265", "av1" or "ffv1" (lossless; in .mkv).
        crf: constant quality, 0 (best) to 51, or 63 for av1; default 18, 20, 24. Not together with `bitrate`.
        bitrate: bits per second instead of constant quality.
        pixel_format: default yuv420p; ffv1: bgr0, which keeps 8-bit RGB exactly.
        preset: speed preset of the encoder.
        audio: audio; it ends with the video, cut or padded with silence.
        metadata: texts for the container; other values are stored as JSON.
        check_cancel: called for every slice; raises whatever means Cancel.

    Raises:
        SettingsError: codec, container, quality or pixel format do not go together, or the audio holds NaN.
        FrameMismatchError: frames of another size than the first.
        FrameError: frames that are no images, or hold NaN.
        VideoWriteError: the disk is full, the folder not writable, the encoder fails, or no frame was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Rational,
        *,
        codec: str = "h264",
        crf: float | None = None,
        bitrate: int | None = None,
        pixel_format: str | None = None,
        preset: str | None = None,
        audio: AudioTrack | None = None,
        metadata: Mapping[str, Any] | None = None,
        check_cancel: Callable[[], None] | None = None,
        queue_frames: int = QUEUE_FRAMES,
    ) -> None:
        self.path = Path(path)
        self.fps = as_rate(fps)
        self.info: VideoInfo | None = None
        self.num_frames = 0
        self._codec = codec
        self._encoder, self._pixel_format = choose_encoder(codec, self.path.suffix.lower(), pixel_format)
        self._options = encoder_options(codec, self._encoder, crf, bitrate, preset)
        self._bitrate = bitrate
        self._tag = "hvc1" if codec == "h265" and self.path.suffix.lower() in (".mp4", ".mov") else None
        self._format = CONTAINERS[self.path.suffix.lower()]
        if audio is not None and audio.waveform is not None and not audio.waveform.sum(dtype=torch.float64).isfinite():
            raise SettingsError(
                "the audio holds values that are not numbers (NaN or infinity); what made it overflowed, make it again "
                "in float32"
            )
        self._audio = audio
        self._audio_encoder = audio_encoder(codec, self._format)
        self._metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
        self._check_cancel = check_cancel or (lambda: None)
        self._bits = format_bits(self._pixel_format)
        self._size: tuple[int, int] | None = None
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=max(1, queue_frames))
        self._aborted = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> VideoWriter:
        if self._stack is not None:
            raise VideoWriteError(f"the writer of {self.path} was used already; make a new one")
        self._stack = contextlib.ExitStack()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._stack.enter_context(atomic_write(self.path))
            self._file = self._stack.enter_context(open(temporary, "wb", buffering=0))
        except OSError as error:
            self._stack.close()
            raise VideoWriteError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._encode_all, name=f"encode {self.path.name}", daemon=True)
        self._thread.start()
        return self

    def write(self, frames: torch.Tensor) -> None:
        """Append frames `[F, H, W, C]` or `[F, H, W]`, float 0..1 or uint8; all of the size of the first."""
        if self._thread is None:
            raise self._not_open()
        for part in torch.split(frames, 4):
            self._check_cancel()
            images = quantize(part, self._bits, self.num_frames)
            size = images.shape[1:3]
            if self._size is None:
                if 0 in size:
                    raise FrameMismatchError(f"frames of {size_text(*size)} have no pixels")
                check_size(self._codec, *size)
                self._size = size
            elif size != self._size:
                raise FrameMismatchError(
                    f"frame {self.num_frames} is {size_text(*size)}, the video started with {size_text(*self._size)}; "
                    "resize it first"
                )
            for image in images:
                self._put(image)
                self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, contextlib.ExitStack()
        thread, self._thread = self._thread, None
        if stack is None or thread is None:
            raise self._not_open()
        size = None
        with stack:  # whatever is raised in here removes the temporary file; the final name is not touched
            try:
                if kind is None:
                    size = self._await(thread)
            finally:
                self._aborted.set()
                thread.join()
            if size is None:
                stack.__exit__(kind, error, trace)
            else:
                self._finish(stack, size)

    def _not_open(self) -> VideoWriteError:
        return VideoWriteError(f"the writer of {self.path} is not open; use it in a with block")

    def _await(self, thread: threading.Thread) -> tuple[int, int]:
        """Wait until everything is encoded, with an eye on Cancel; the size of the frames."""
        if self.num_frames == 0 or self._size is None:
            raise VideoWriteError(f"{self.path.name} would have no frames; nothing was written")
        self._put(None)
        while thread.is_alive():
            thread.join(timeout=0.1)
            self._check_cancel()
        self._raise_failure()
        return self._size

    def _finish(self, stack: contextlib.ExitStack, size: tuple[int, int]) -> None:
        """Close, sync and rename; only then is the video there."""
        try:
            stack.close()
        except OSError as error:
            raise VideoWriteError(f"{self.path} cannot be completed: {error.strerror or error}") from error
        height, width = _padded(size, self._pixel_format)
        self.info = VideoInfo(self.path, self.num_frames, height, width, self.fps)

    def _put(self, image: np.ndarray | None) -> None:
        while True:
            self._raise_failure()
            try:
                return self._queue.put(image, timeout=0.1)
            except queue.Full:
                self._check_cancel()

    def _raise_failure(self) -> None:
        error = self._error
        if error is None:
            return
        if isinstance(error, StreamingError):
            raise error
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoWriteError(f"writing {self.path.name} failed after {self.num_frames} frames: {reason}") from error

    # What follows runs in the encoding thread.

    def _images(self) -> Iterable[np.ndarray]:
        while not self._aborted.is_set():
            try:
                image = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if image is None:
                return
            yield image

    def _encode_all(self) -> None:
        try:
            sink = _CheckedFile(self._file)
            movflags = {"movflags": "use_metadata_tags"} if self._format in ("mp4", "mov") else {}
            container = av.open(sink, "w", format=self._format, options=movflags)
            try:
                self._encode(container)
            except BaseException:
                with contextlib.suppress(av.FFmpegError, OSError):
                    container.close()
                raise
            container.close()
            if sink.error is not None:
                raise sink.error
        except BaseException as error:  # handed to the writing thread, which raises it
            self._error = error

    def _encode(self, container: OutputContainer) -> None:
        container.metadata.update(self._metadata)
        video: av.VideoStream | None = None
        audio: AudioFeed | None = None
        try:
            for number, image in enumerate(self._images()):
                if video is None:
                    height, width = _padded(image.shape[:2], self._pixel_format)
                    video = self._add_video(container, height, width)
                    if self._audio is not None:
                        audio = AudioFeed(self._audio, container, self._audio_encoder)
                frame = to_video_frame(pad_to(image, height, width), self._pixel_format)
                frame.pts, frame.time_base = number, 1 / self.fps
                self._mux(container, video, frame)
                if audio is not None:
                    audio.advance((number + 1) / self.fps)
            if video is not None and not self._aborted.is_set():
                self._mux(container, video, None)
                if audio is not None:
                    audio.finish()
        finally:
            if audio is not None:
                audio.close()

    def _add_video(self, container: OutputContainer, height: int, width: int) -> av.VideoStream:
        options = self._options | size_options(self._encoder, height, width)
        stream = container.add_stream(self._encoder, rate=self.fps, options=options)
        if not isinstance(stream, av.VideoStream):
            raise VideoWriteError(f"{self._encoder} is no video encoder")
        stream.height, stream.width, stream.pix_fmt = height, width, self._pixel_format
        context = stream.codec_context
        context.time_base = 1 / self.fps
        if self._bitrate is not None:
            context.bit_rate = int(self._bitrate)
        if self._tag is not None:
            context.codec_tag = self._tag
        if not av.VideoFormat(self._pixel_format).is_rgb:
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = LIMITED_RANGE
        return stream

    def _mux(self, container: OutputContainer, stream: av.VideoStream, frame: av.VideoFrame | None) -> None:
        for packet in stream.codec_context.encode_lazy(frame):
            if self._aborted.is_set():  # one packet at a time: what a slow encoder still holds must not outlast Cancel
                return
            packet.stream = stream
            if not packet.duration:  # else a video of one frame has no length
                packet.duration = round(1 / (self.fps * packet.time_base))
            if frame is None and self._encoder == "libx265" and self.num_frames <= 2:
                packet.dts = packet.pts  # x265 sets it with the third frame and leaves it undefined before
            container.mux(packet)


def write_video(
    frames: FrameStream | Iterable[torch.Tensor],
    path: str | os.PathLike[str],
    fps: float | Rational | None = None,
    *,
    slice_frames: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    check_cancel: Callable[[], None] | None = None,
    **options: Any,
) -> VideoInfo:
    """Write a stream, or any iterator of tensors `[F, H, W, C]`, to a video file in constant memory.

    Args:
        frames: what to write; a stream is read as it is stored, in slices.
        slice_frames: frames per slice; default by their size.
        path, options: as for `VideoWriter`.
        fps: default the stream's own rate; required for an iterator.
        progress: called with (frames done, frames in all or None) after every slice.
        check_cancel: called before every slice and while waiting; raises whatever means Cancel.

    Raises:
        As `VideoWriter`. Nothing is left behind, neither under `path` nor under a temporary name.
    """
    total: int | None = None
    if isinstance(frames, FrameStream):
        fps = frames.fps if fps is None else fps
        total = len(frames)
        height, width = frames.height, frames.width
        ahead = frames.decodes and height * width <= LARGE_PIXELS
        options.setdefault("queue_frames", frames_per_slice(height, width, QUEUE_FRAMES))
        most = frames_per_slice(height, width, AHEAD_FRAMES if ahead else MOST_FRAMES)
        frames = frames.slices(slice_frames or most, stored=True)
        frames = read_ahead(frames, depth=1) if ahead else frames
    elif fps is None:
        raise SettingsError("a frame rate is needed to write frames that come without one")
    with VideoWriter(path, fps, check_cancel=check_cancel, **options) as writer, _closed(iter(frames)) as iterator:
        for part in watched(iterator, check_cancel):
            writer.write(part)
            if progress is not None:
                progress(writer.num_frames, total)
    if writer.info is None:
        raise VideoWriteError(f"{writer.path} was not completed")
    return writer.info


@contextlib.contextmanager
def _closed(iterator: Iterator[torch.Tensor]) -> Iterator[Iterator[torch.Tensor]]:
    """A generator ends with the block, threads and files of its own included; other iterators have nothing to end."""
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _padded(size: tuple[int, int], pixel_format: str) -> tuple[int, int]:
    rows, columns = size_steps(pixel_format)
    return -(-size[0] // rows) * rows, -(-size[1] // columns) * columns
