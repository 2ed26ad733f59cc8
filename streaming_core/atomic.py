"""Files that appear under their final name only when they are complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PART_SUFFIX = ".part"


def temporary_name(path: Path) -> Path:
    """A fresh hidden name next to `path`, ending in `.part`; the same folder, so that a rename stays on one disk."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}{PART_SUFFIX}")


def flush_to_disk(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, survive a power cut (folders: where the system can)."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; its renames are journaled
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse to sync folders; files must be synced
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; on a clean exit it is flushed, synced and renamed to `path`.

    On any exception (Cancel included) the temporary file is removed and whatever was at `path` stays as it was.
    With `overwrite=False` an existing `path` raises `FileExistsError`, before and after the writing.
    """
    path = Path(path)
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists already")
    temporary = temporary_name(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        if not overwrite and path.exists():
            raise FileExistsError(f"{path} exists already")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    flush_to_disk(path.parent)


def remove_parts(folder: Path) -> int:
    """Delete what killed writers left in `folder`, and count it; only call it while holding that folder's lock."""
    count = 0
    for part in folder.glob(f".*{PART_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
            count += 1
    return count
