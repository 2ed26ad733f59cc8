"""Looking after run folders: older takes chosen, damage set aside, manifests recovered, takes and runs deleted.

Deleting happens here and nowhere else, and only Run Inspector asks for it, once a user confirmed. Only files that
belong to a run by their names are ever touched, only in its own folder, and links are never followed.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from ..atomic import remove_parts
from ..errors import RunDamagedError, RunFolderError
from .folder import RunFolder
from .lock import LOCK, RunLock
from .manifest import MANIFEST, RunManifest
from .name import run_path
from .rebuild import rebuild
from .record import ChunkRecord
from .selection import selected

_OWN_FILE = re.compile(rf"(chunk_\d{{5,}}(\.t\d+)?\.safetensors|{re.escape(MANIFEST)})(\.damaged\d*)?")


def own_files(folder: Path) -> list[Path]:
    """The files of a run in its folder, its lock left out; no links, no folders, nothing of other names."""
    return sorted(
        path for path in folder.iterdir() if _OWN_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    )


def run_bytes(folder: Path) -> int:
    """Bytes of a run's files on the disk."""
    return sum(path.stat().st_size for path in own_files(folder))


def is_intact(run: RunFolder, record: ChunkRecord, content: bool = True) -> bool:
    """Whether a take's file is there, whole and (with `content`) unaltered."""
    with contextlib.suppress(RunDamagedError):
        record.file_in(run.path).check(content)
        return True
    return False


def recover(root: str | os.PathLike[str], name: str, *, owner: str = "") -> RunFolder:
    """Open a run whose manifest is lost or damaged: it is rebuilt from what the chunk files say.

    A damaged manifest is kept as `manifest.json.damaged`.

    Raises:
        RunFolderError: no such run, or its manifest is intact.
        RunDamagedError: there is not a whole chunk file.
        RunLockedError: another writer holds the folder.
    """
    path = run_path(root, name)
    if not path.is_dir():
        raise RunFolderError(f"there is no run {name!r} in {Path(root)}")
    lock = RunLock(path / LOCK, owner).acquire()
    try:
        with contextlib.suppress(RunDamagedError):
            RunManifest.load(path)
            raise RunFolderError(f"the manifest of run {name!r} is intact; open the run instead")
        run = RunFolder(path, rebuild(path), lock)
        if (path / MANIFEST).exists():
            os.replace(path / MANIFEST, free_damaged(path / MANIFEST))
        run.save_manifest(run.manifest)
    except BaseException:
        lock.release()
        raise
    return run


def use_take(run: RunFolder, index: int, take: int) -> ChunkRecord:
    """Show another take of a chunk in the present video; all others stay. Only the manifest is written.

    It is shown for the present settings from now on, also when the video had others in between.

    Raises:
        RunFolderError: there is no such take, or the video has no such chunk.
        RunDamagedError: its file is missing, cut off or altered.
        RunLockedError: the folder was opened only to be read.
    """
    run.require_lock()
    manifest = run.manifest
    wanted = manifest.wanted[index] if 0 <= index < len(manifest.wanted) else ""
    found = {record.take: record for record in manifest.takes(index)}
    if not wanted or take not in found:
        raise RunFolderError(
            f"chunk {index} of run {manifest.name!r} has no take {take}; "
            f"there is {', '.join(map(str, found)) if wanted and found else 'none'}"
        )
    chosen = found[take]
    if chosen != manifest.chunk(index):
        chosen.file_in(run.path).check()
        run.save_manifest(manifest.choosing(index, wanted, chosen))
    return chosen


def set_aside_damaged(run: RunFolder) -> tuple[str, ...]:
    """Take damaged takes out of a run, so that their chunks can be made again; the names of their files.

    Files are kept under names ending in `.damaged`. Where another take fits the present settings, it is shown instead.
    """
    run.require_lock()
    damaged = {record.file for record in run.manifest.records if not is_intact(run, record)}
    if not damaged:
        return ()
    # The manifest last: a writer that is killed in between finds files missing and sets the same takes aside again.
    for name in sorted(damaged):
        with contextlib.suppress(FileNotFoundError):
            os.replace(run.path / name, free_damaged(run.path / name))
    manifest = run.manifest.without(damaged)
    run.save_manifest(selected(run.path, manifest, manifest.wanted))
    return tuple(sorted(damaged))


def forget_gone(run: RunFolder) -> tuple[ChunkRecord, ...]:
    """Take those takes out of a run whose files are not there any more, so that their chunks can be made again.

    A file that comes back is found again when the run is next opened to be written. Returns the takes.
    """
    run.require_lock()
    gone = tuple(record for record in run.manifest.records if not (run.path / record.file).exists())
    if gone:
        run.save_manifest(run.manifest.without({record.file for record in gone}))
    return gone


def free_damaged(path: Path) -> Path:
    """`NAME.damaged`, or `NAME.damaged1` and so on where that is taken."""
    free, number = path.with_name(f"{path.name}.damaged"), 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.damaged{number}")
    return free


def delete_older(run: RunFolder) -> int:
    """Delete all takes that the present video does not show, and files set aside; how many bytes became free.

    A take that the video still needs, because the chunk after it continues it, is kept.
    """
    run.require_lock()
    needed = {record.continues for record in run.chunks}
    run.save_manifest(run.manifest.without({record.file for record in run.manifest.older} - needed))
    kept = {MANIFEST, *(record.file for record in run.manifest.records)}
    return sum(_deleted(path) for path in own_files(run.path) if path.name not in kept)


def delete_run(root: str | os.PathLike[str], name: str) -> tuple[int, tuple[str, ...]]:
    """Delete a run, damaged or not: the bytes that became free, and the names of strange files that were left.

    Raises:
        RunNameError: the name is empty or leads out of `root`.
        RunFolderError: no such run.
        RunLockedError: another writer holds it.
    """
    path = run_path(root, name)
    if not path.is_dir() or not own_files(path):
        raise RunFolderError(f"there is no run {name!r} in {Path(root)}")
    lock = RunLock(path / LOCK, "Run Inspector").acquire()
    try:
        remove_parts(path)
        # The manifest first: a run without one is gone, even if the rest takes long.
        files = sorted(own_files(path), key=lambda each: (each.name != MANIFEST, each.name))
        freed = sum(_deleted(each) for each in files)
    finally:
        lock.release(remove=True)
    left = tuple(sorted(each.name for each in path.iterdir()))
    if not left:
        path.rmdir()
    return freed, left


def _deleted(path: Path) -> int:
    size = path.lstat().st_size
    path.unlink()
    return size
