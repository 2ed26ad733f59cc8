"""Looking after run folders: older drawings chosen, damage set aside, manifests recovered, runs deleted.

Only files that belong to a run by their names are ever touched, only in its own folder, and links are never followed.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

from ..atomic import remove_parts
from ..errors import RunDamagedError, RunFolderError
from .folder import RunFolder
from .lock import RunLock
from .manifest import MANIFEST, ChunkRecord, RunManifest
from .name import run_path
from .takes import keeping_seam

LOCK = "run.lock"
_OWN_FILE = re.compile(rf"chunk_\d{{5,}}(\.r\d+)?\.safetensors(\.damaged)?|{re.escape(MANIFEST)}(\.damaged)?")


def own_files(folder: Path) -> list[Path]:
    """The files of a run in its folder, its lock left out; no links, no folders, nothing of other names."""
    return sorted(
        path for path in folder.iterdir() if _OWN_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    )


def run_bytes(folder: Path) -> int:
    """Bytes of a run's files on the disk."""
    return sum(path.stat().st_size for path in own_files(folder))


def is_intact(run: RunFolder, record: ChunkRecord, content: bool = True) -> bool:
    """Whether a drawing's file is there, whole and (with `content`) unaltered."""
    with contextlib.suppress(RunDamagedError):
        record.file_in(run.path).check(content)
        return True
    return False


def recover(root: str | os.PathLike[str], name: str, *, owner: str = "") -> RunFolder:
    """Open a run whose manifest is lost or damaged: it is made anew from what the chunk files say of themselves.

    A damaged manifest is kept as `manifest.json.damaged`.

    Raises:
        RunFolderError: no such run, or its manifest is intact.
        RunDamagedError: there is no whole chunk file.
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
        run = RunFolder(path, RunManifest.rebuild(path), lock)
        if (path / MANIFEST).exists():
            os.replace(path / MANIFEST, path / f"{MANIFEST}.damaged")
        run.save_manifest(run.manifest)
    except BaseException:
        lock.release()
        raise
    return run


def use_revision(run: RunFolder, index: int, revision: int) -> ChunkRecord:
    """Choose an older drawing of a chunk again; the present one is kept. Only the manifest is written.

    Raises:
        RunFolderError: there is no such drawing.
        RunDamagedError: its file is missing, cut off or altered.
        RunLockedError: the folder was opened only to be read.
    """
    run.require_lock()
    present = run.record(index)
    found = {record.revision: record for record in run.manifest.drawings(index)}
    if present is None or revision not in found:
        raise RunFolderError(
            f"chunk {index} of run {run.manifest.name!r} has no revision {revision}; "
            f"there is {', '.join(map(str, found)) or 'none'}"
        )
    chosen = found[revision]
    if chosen.file != present.file:
        chosen.file_in(run.path).check()
        wanted = present.stands_for or present.settings_hash
        chosen = replace(chosen, stands_for="" if wanted == chosen.settings_hash else wanted)
        run.save_manifest(keeping_seam(run.manifest, present).with_chunk(chosen, keep_old=True))
    return chosen


def set_aside_damaged(run: RunFolder) -> tuple[str, ...]:
    """Take damaged chunks out of a run, so that they can be made again; the names of their files.

    Files are kept under names ending in `.damaged`. Where a intact older drawing is kept, it takes the chunk's place.
    """
    run.require_lock()
    manifest = run.manifest
    damaged = [record for record in (*manifest.chunks, *manifest.older) if not is_intact(run, record)]
    gone = {record.file for record in damaged}
    manifest = replace(
        manifest,
        chunks=tuple(record for record in manifest.chunks if record.file not in gone),
        older=tuple(record for record in manifest.older if record.file not in gone),
    )
    for record in damaged:
        if record in run.manifest.chunks and (kept := manifest.drawings(record.index)):
            wanted = record.stands_for or record.settings_hash
            manifest = manifest.with_chunk(replace(kept[-1], stands_for=wanted))
    for name in sorted(gone):
        with contextlib.suppress(FileNotFoundError):
            os.replace(run.path / name, run.path / f"{name}.damaged")
    if gone:
        run.save_manifest(manifest)
    return tuple(sorted(gone))


def delete_older(run: RunFolder) -> int:
    """Delete the older drawings of a run's chunks and files set aside; how many bytes became free.

    A drawing that the video still needs, because the chunk after it continues it, is kept.
    """
    run.require_lock()
    needed = {record.continues for record in run.chunks}
    kept = tuple(record for record in run.manifest.older if record.file in needed)
    names = {record.file for record in (*run.chunks, *kept)} | {MANIFEST}
    run.save_manifest(replace(run.manifest, older=kept))
    return sum(_deleted(path) for path in own_files(run.path) if path.name not in names)


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
