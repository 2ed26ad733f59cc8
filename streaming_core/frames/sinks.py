"""Where a stream can end besides a video file: a tensor, a folder of PNG files; and reading ahead of the work."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, PngImagePlugin

from ..atomic import flush_to_disk, temporary_name
from ..errors import FrameError, VideoWriteError
from .pixels import quantize
from .stream import FrameStream

Progress = Callable[[int, "int | None"], None]
Item = TypeVar("Item")


def to_tensor(
    stream: FrameStream,
    *,
    slice_frames: int | None = None,
    progress: Progress | None = None,
    check_cancel: Callable[[], None] | None = None,
) -> torch.Tensor:
    """The whole video as an IMAGE, float32 `[F, H, W, 3]` in 0..1 on the CPU. The one sink whose memory grows."""
    images = torch.empty(len(stream), stream.height, stream.width, 3)
    done = 0
    for part in watched(stream.slices(slice_frames), check_cancel):
        images[done : done + len(part)] = part
        done += len(part)
        if progress is not None:
            progress(done, len(stream))
    return images


def write_png_folder(
    frames: FrameStream | Iterable[torch.Tensor],
    folder: str | os.PathLike[str],
    *,
    prefix: str = "frame_",
    digits: int = 5,
    compress_level: int = 4,
    metadata: Mapping[str, Any] | None = None,
    slice_frames: int | None = None,
    progress: Progress | None = None,
    check_cancel: Callable[[], None] | None = None,
) -> int:
    """Write every frame as an 8-bit RGB PNG, `frame_00000.png` and so on; returns how many.

    The folder appears under its name when all frames are in it; after Cancel or an error there is none.

    Args:
        frames: a stream, or an iterator of tensors `[F, H, W, C]`.
        folder: must not exist, or be empty.
        digits: at least so many digits in each name.
        compress_level: 0 (fast) to 9 (small).
        metadata: texts for the first image; other values are stored as JSON.
        progress, check_cancel: as for `write_video`.

    Raises:
        VideoWriteError: the folder holds something, cannot be written, or the disk is full.
        FrameError: no frames, or values that are not numbers.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VideoWriteError(f"{folder} exists and is not empty; choose another folder")
    total = len(frames) if isinstance(frames, FrameStream) else None
    slices = frames.slices(slice_frames, stored=True) if isinstance(frames, FrameStream) else frames
    temporary = temporary_name(folder)
    done = 0
    try:
        temporary.mkdir(parents=True)
        for part in watched(slices, check_cancel):
            for image in quantize(part, first=done):
                path = temporary / f"{prefix}{done:0{digits}d}.png"
                texts = _png_texts(metadata) if done == 0 else None
                Image.fromarray(image).save(path, compress_level=compress_level, pnginfo=texts)
                flush_to_disk(path)
                done += 1
            if progress is not None:
                progress(done, total)
        if done == 0:
            raise FrameError(f"{folder.name} would have no frames; nothing was written")
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
        flush_to_disk(folder.parent)
    except OSError as error:
        raise VideoWriteError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def read_ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items, made in a thread of their own up to `depth` ahead: reading overlaps with the work on them.

    For sources that only read and decode; a source that runs a model belongs into the caller's thread. An exception of
    the source is raised here in its turn. The thread ends when the iterator is exhausted or closed.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=max(1, depth))
    closed = threading.Event()

    def offer(item: tuple[bool, Any]) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                offer((True, item))
                if closed.is_set():
                    return
            offer((False, None))
        except BaseException as error:  # raised again in the reader's thread
            offer((False, error))

    thread = threading.Thread(target=fill, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        closed.set()
        thread.join()


def watched(parts: Iterable[torch.Tensor], check_cancel: Callable[[], None] | None) -> Iterator[torch.Tensor]:
    """The same parts, with a look at Cancel before each."""
    slices = iter(parts)
    while True:
        if check_cancel is not None:
            check_cancel()
        part = next(slices, None)
        if part is None:
            return
        yield part


def _png_texts(metadata: Mapping[str, Any] | None) -> PngImagePlugin.PngInfo | None:
    if not metadata:
        return None
    texts = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        texts.add_text(key, value if isinstance(value, str) else json.dumps(value))
    return texts
