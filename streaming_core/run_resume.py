"""How far a run has come: which chunks may be used again, and which runs there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import RunDamagedError, StreamingError
from .run_manifest import MANIFEST, RunManifest


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
        if record.settings_hash != wanted:
            return ResumePlan(index, total, f"{reused}, the settings of chunk {index} changed")
        try:
            record.file_in(folder).check()
        except RunDamagedError as error:
            if not rerun_damaged:
                raise
            return ResumePlan(index, total, f"{reused}, chunk {index} is damaged: {error}")
    return ResumePlan(total, total, f"all {total} chunks are reused")


def list_runs(root: str | os.PathLike[str]) -> list[RunManifest | StreamingError]:
    """All runs below `root`, by name: their manifests, or the error that says why one cannot be read."""
    runs: list[RunManifest | StreamingError] = []
    for path in sorted(Path(root).glob(f"*/{MANIFEST}")):
        try:
            runs.append(RunManifest.load(path.parent))
        except StreamingError as error:
            runs.append(error)
    return runs
