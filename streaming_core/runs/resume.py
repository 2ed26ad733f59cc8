"""How far a run has come: which chunks may be used again, and which runs there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunDamagedError, StreamingError
from .manifest import MANIFEST, RunManifest


@dataclass(frozen=True)
class ResumePlan:
    """Which chunks of a run may be used again: 0 to `next_index`, not included. `reason` says it in a sentence."""

    next_index: int
    num_chunks: int
    reason: str

    @property
    def reused(self) -> range:
        """Indices of the chunks that need not be made."""
        return range(self.next_index)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to make."""
        return self.next_index == self.num_chunks


def plan_resume(folder: Path, manifest: RunManifest, hashes: Sequence[str], rerun_damaged: bool = False) -> ResumePlan:
    """See `RunFolder.completed_prefix`."""
    total = len(hashes)
    for index, wanted in enumerate(hashes):
        record = manifest.chunk(index)
        reused = f"{index} of {total} chunks are reused"
        if record is None:
            return ResumePlan(index, total, f"{reused}, chunk {index} is not finished")
        if not record.accepts(wanted):
            return ResumePlan(index, total, f"{reused}, the settings of chunk {index} changed")
        try:
            record.file_in(folder).check()
        except RunDamagedError as error:
            if not rerun_damaged:
                raise
            return ResumePlan(index, total, f"{reused}, chunk {index} is damaged: {error}")
    return ResumePlan(total, total, f"all {total} chunks are reused")


def missing_chunks(folder: Path, manifest: RunManifest, hashes: Sequence[str]) -> tuple[int, ...]:
    """Chunks that must be made: not finished, or made with other settings.

    Chunks behind a gap count as made if their hash fits, since it holds those of all chunks before.

    Raises:
        RunDamagedError: a chunk that would be used again is missing, cut off or altered.
    """
    missing = []
    for index, wanted in enumerate(hashes):
        record = manifest.chunk(index)
        if record is None or not record.accepts(wanted):
            missing.append(index)
            continue
        record.file_in(folder).check()
    return tuple(missing)


def drawn_anew(manifest: RunManifest, missing: Sequence[int] = ()) -> str:
    """Which chunks but the missing ones stand for others, in words; "" for none."""
    found = [
        f"{each.index} (seed {each.seed})"
        for each in manifest.chunks
        if each.index not in missing and each.stands_for not in ("", each.settings_hash)
    ]
    return f"drawn anew and kept so: chunk {', '.join(found)}" if found else ""


def list_runs(root: str | os.PathLike[str]) -> list[RunManifest | StreamingError]:
    """All runs below `root`, by name: their manifests, or the error that says why one cannot be read."""
    runs: list[RunManifest | StreamingError] = []
    for path in sorted(Path(root).glob(f"*/{MANIFEST}")):
        try:
            runs.append(RunManifest.load(path.parent))
        except StreamingError as error:
            runs.append(error)
    return runs
