"""Video files in the host's output folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ....streaming_core.file_names import with_dates
from ....streaming_core.frames import FrameStream, write_png_folder, write_video
from ..progress import check_cancel, frames_bar


def output_file(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """A new name below the output folder, by the host's rules for `prefix`, and its subfolder for the page.

    suffix: empty for a folder.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        with_dates(prefix, time.localtime()), folder_paths.get_output_directory(), width, height
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def workflow_metadata(prompt: Mapping[str, Any] | None, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """What goes into a file so that it can be dragged back into the page; nothing where the host forbids metadata."""
    if args.disable_metadata:
        return {}
    metadata = dict(extra_pnginfo or {})
    if prompt is not None:
        metadata["prompt"] = prompt
    return metadata


def encode(stream: FrameStream, path: Path, codec: str, metadata: dict[str, Any], **options: Any) -> None:
    """Encode a stream slice by slice with a progress bar; a canceled or failed run leaves no file.

    options: `crf`, `bitrate`, `pixel_format`, `audio` of `VideoWriter`.
    """
    write_video(
        stream,
        path,
        codec=codec,
        metadata=metadata,
        check_cancel=check_cancel,
        progress=frames_bar(stream),
        **options,
    )


def save_images(stream: FrameStream, folder: Path, compress_level: int, metadata: dict[str, Any]) -> list[str]:
    """Write a stream as PNG files into a new folder; their names in order. A canceled or failed run leaves none."""
    write_png_folder(
        stream,
        folder,
        digits=max(5, len(str(len(stream) - 1))),  # names sort like the frames, however many there are
        compress_level=compress_level,
        metadata=metadata,
        check_cancel=check_cancel,
        progress=frames_bar(stream),
    )
    return sorted(path.name for path in folder.iterdir())
