"""What run nodes handed out, so that the host runs them again when their run changed under them.

The host keeps a node's output as long as its inputs stay the same. A run can change all the same: chunks are rerolled,
another take is chosen, the folder is deleted. Nothing is kept across a restart, since the host's outputs are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ....streaming_core.errors import StreamingError
from ....streaming_core.runs.folder import RunFolder
from .paths import runs_root

Files = tuple[str, ...]


@dataclass
class _Watched:
    runs: dict[str, Files] = field(default_factory=dict)
    changes: int = 0


_watched: dict[str, _Watched] = {}


def hand_out(node: str, run_name: str, num_chunks: int) -> None:
    """Note that `node` handed out the first chunks of a run as they are now."""
    _watched.setdefault(node, _Watched()).runs[run_name] = _files(run_name)[:num_chunks]


def run_changes(node: str, run_name: str | None = None) -> int:
    """How often a run changed since `node` handed it out; any of its runs where the name is empty or comes by link."""
    watched = _watched.setdefault(node, _Watched())
    names = [run_name.strip()] if run_name and run_name.strip() else list(watched.runs)
    for name in names:
        kept = watched.runs.get(name)
        if kept is not None and _files(name)[: len(kept)] != kept:
            watched.changes += 1
            del watched.runs[name]
    return watched.changes


def _files(run_name: str) -> Files:
    """The files of a run's chunks, "" for one that is not there; none where there is no run."""
    try:
        run = RunFolder.open(runs_root(), run_name)
    except StreamingError:
        return ()
    return tuple(record.file if (run.path / record.file).is_file() else "" for record in run.chunks)
