"""Drawings of a chunk: where each lies, and how one ends when the chunk behind it continues another.

A chunk that is drawn anew gets a file of its own (`chunk_00003.r1.safetensors`); the older ones may be kept. Every
record says which file its chunk continues. Where that is not the drawing before it in the video, the frames at the end
of that drawing pass over into those of the file that is continued, when they are read: no file is changed for a seam.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .frames import StoredChunk
from .manifest import ChunkRecord, RunManifest


def free_revision(folder: Path, manifest: RunManifest, index: int) -> tuple[int, str]:
    """The next revision of a chunk and its file's name, which no drawing that is kept has."""
    drawings = manifest.drawings(index)
    if not drawings:
        return 0, f"chunk_{index:05d}.safetensors"
    revision = drawings[-1].revision + 1
    while (folder / f"chunk_{index:05d}.r{revision}.safetensors").exists():
        revision += 1
    return revision, f"chunk_{index:05d}.r{revision}.safetensors"


def keeping_seam(manifest: RunManifest, old: ChunkRecord | None) -> RunManifest:
    """The manifest before `old` is replaced: the chunk behind it says that it continues `old`."""
    following = None if old is None else manifest.chunk(old.index + 1)
    if following is None or following.continues:
        return manifest
    return manifest.with_chunk(replace(following, continues=old.file))


def stored_chunk(folder: Path, manifest: RunManifest, record: ChunkRecord) -> StoredChunk:
    """Where the frames of a chunk are, and those of the older drawing that it must end like."""

    def part(each: ChunkRecord, **seam: Any) -> StoredChunk:
        return StoredChunk(each.file_in(folder), each.num_frames, each.skip_frames, "frames" in each.contents, **seam)

    following = manifest.chunk(record.index + 1)
    if following is None or following.continues in ("", record.file):
        return part(record)
    continued = next((each for each in manifest.older if each.file == following.continues), None)
    if continued is None or continued.num_frames != record.num_frames:
        return part(record)
    return part(record, ends_like=part(continued), seam_frames=min(record.seam_frames, record.num_frames))
