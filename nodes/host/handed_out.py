"""Files that nodes handed out, so that the host runs a node again when one of its files changed under it.

The host keeps a node's output as long as the node's inputs stay the same. An output may be a handle to files, and these
can be deleted, moved or replaced all the same. Nothing is kept across a restart, since the host's outputs are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

Stamp = tuple[int, int] | None
"""Size and time of the last change of a file; None where there is none."""


@dataclass
class _Watched:
    files: dict[str, Stamp] = field(default_factory=dict)
    changes: int = 0


_watched: dict[str, dict[str, _Watched]] = {}


def hand_out_files(owner: str, name: str, paths: Iterable[str | os.PathLike[str]]) -> None:
    """Note that nodes called `owner` handed out these files, as they are now, under a name of their own choice."""
    _entry(owner, name).files.update({os.fspath(path): _stamp(path) for path in paths})


def changed(owner: str, name: str) -> None:
    """Note that what `owner` handed out under `name` is no longer what it was."""
    entry = _entry(owner, name)
    entry.changes += 1
    entry.files.clear()


def file_changes(owner: str, name: str | None = None) -> int:
    """How often files that `owner` handed out under `name` changed since; under any name where it is empty or None."""
    names = [name] if name else list(_watched.get(owner, ()))
    for each in names:
        if any(_stamp(path) != stamp for path, stamp in _entry(owner, each).files.items()):
            changed(owner, each)
    return sum(_entry(owner, each).changes for each in names)


def _entry(owner: str, name: str) -> _Watched:
    return _watched.setdefault(owner, {}).setdefault(name, _Watched())


def _stamp(path: str | os.PathLike[str]) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
