"""What run nodes handed out, so that the host runs them again when their run changed under them.

A run changes when its files are deleted or replaced, and also when other takes of its chunks are the current ones:
because they were rerolled, or chosen in Run Inspector.
"""

from __future__ import annotations

import os

from ....streaming_core.errors import StreamingError
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.runs.frames import RunFolderFrames, StoredChunk
from ..handed_out import changed, file_changes, hand_out_files
from .paths import runs_root

Takes = tuple[tuple[str, ...], ...]
"""The files of every chunk of a video."""

_shown: dict[str, dict[str, Takes]] = {}
"""By node and run: what the node handed out last."""


def hand_out(node: str, stream: RunFolderFrames, num_chunks: int) -> None:
    """Note that `node` handed out the first chunks of a run as they are now."""
    takes = tuple(map(_files, stream.chunks[:num_chunks]))
    hand_out_files(node, stream.run_name, [path for files in takes for path in files])
    _shown.setdefault(node, {})[stream.run_name] = takes


def hand_out_encoded(run_name: str, path: str) -> None:
    """Note that the video of a run lies encoded at `path`, for every node that handed the run out."""
    for node, runs in _shown.items():
        if run_name in runs:
            hand_out_files(node, run_name, [path])


def run_changes(node: str, run_name: str | None = None) -> int:
    """How often a run changed since `node` handed it out; any of its runs where the name is empty or comes by link."""
    name = (run_name or "").strip()
    shown = _shown.setdefault(node, {})
    for run in [name] if name else list(shown):
        takes = shown.get(run)
        if takes is not None and _takes_of(run)[: len(takes)] != takes:
            changed(node, run)
            del shown[run]
    return file_changes(node, name)


def _takes_of(run_name: str) -> Takes:
    """The files of a run's chunks; none where there is no run or nothing finished."""
    try:
        return tuple(map(_files, RunFolder.open(runs_root(), run_name).frames_stream().chunks))
    except StreamingError:
        return ()


def _files(chunk: StoredChunk | None) -> tuple[str, ...]:
    """The files that a chunk's frames come from: its own, and that of the take it passes over into."""
    return () if chunk is None else (os.fspath(chunk.file.path), *_files(chunk.ends_like))
