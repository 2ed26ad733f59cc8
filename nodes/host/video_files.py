"""Video files in the host's output folder."""

from __future__ import annotations

from pathlib import Path

import comfy.utils
import folder_paths
from comfy.cli_args import args

from ...streaming_core.frames import FrameStream, write_video
from .progress import check_cancel


def output_file(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """A new file below the output folder, named by the host's rules for `prefix`, and its subfolder for the page."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def workflow_metadata(prompt, extra_pnginfo) -> dict:
    """What goes into a file so that it can be dragged back into the page; nothing where the host forbids metadata."""
    if args.disable_metadata:
        return {}
    metadata = dict(extra_pnginfo or {})
    if prompt is not None:
        metadata["prompt"] = prompt
    return metadata


def encode(stream: FrameStream, path: Path, codec: str, crf: float, metadata: dict) -> None:
    """Encode a stream slice by slice with a progress bar; a cancelled or failed run leaves no file."""
    bar = comfy.utils.ProgressBar(len(stream))
    write_video(
        stream,
        path,
        codec=codec,
        crf=crf,
        metadata=metadata,
        check_cancel=check_cancel,
        progress=lambda done, total: bar.update_absolute(done, total),
    )
