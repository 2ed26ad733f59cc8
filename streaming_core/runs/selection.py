"""Which takes a video with given settings shows, and which of its chunks must still be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import RunDamagedError
from .manifest import RunManifest
from .record import ChunkRecord


def selected(folder: Path, manifest: RunManifest, wanted: Sequence[str]) -> RunManifest:
    """The manifest of a video whose chunks have the settings hashes `wanted`. Writes nothing.

    A chunk shows, of the intact takes that fit: the one it showed last with this hash (also one chosen by hand), else
    the current one, else the latest. Takes that fit no more stay stored as older ones. Chunks after the last wanted one
    stay in the video as long as all chunks before them are wanted unchanged, so a shorter request loses no longer one.

    Raises:
        RunDamagedError: a current take that would be used again is missing, cut off or altered.
    """
    same = manifest.wanted[: len(wanted)] == tuple(wanted)
    result = replace(manifest, wanted=(*wanted, *(manifest.wanted[len(wanted) :] if same else ())))
    for index, each in enumerate(wanted):
        take = _take_for(folder, manifest, index, each)
        if take != manifest.choice(index, each):
            result = result.choosing(index, each, take)
    return result


def _take_for(folder: Path, manifest: RunManifest, index: int, wanted: str) -> ChunkRecord | None:
    current = manifest.chunk(index)
    for record in _fitting(manifest, index, wanted):
        try:
            record.file_in(folder).check()
        except RunDamagedError:
            # What the video shows now must not give way to something else without a word; any other take may.
            if record == current:
                raise
            continue
        return record
    return None


def _fitting(manifest: RunManifest, index: int, wanted: str) -> Iterator[ChunkRecord]:
    """Takes that fit, the best first."""
    chosen, current = manifest.choice(index, wanted), manifest.chunk(index)
    if chosen is not None:
        yield chosen
    if current is not None and current != chosen and current.accepts(wanted):
        yield current
    for record in reversed(manifest.takes(index)):
        if record not in (chosen, current) and record.accepts(wanted):
            yield record
