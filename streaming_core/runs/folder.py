"""Run folders: what a long run has made so far, kept so that a crash costs at most the chunk that is being made.

    root/name/manifest.json                what the run is, and one record per take of a chunk
    root/name/chunk_00003.safetensors      frames of chunk 3, its tail for the next one
    root/name/chunk_00003.t1.safetensors   the second take of chunk 3
    root/name/run.lock                     who is writing

Every file is written under a temporary name, synced and renamed, a chunk before the manifest that names it. So the
manifest never names a chunk that is not there whole. No chunk file is ever replaced or deleted here: other settings,
rerolls and repairs make further takes, and only Run Inspector deletes, when it is confirmed (`care`). The format is
described in docs/run_folder.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..atomic import remove_parts
from ..errors import FrameError, RunFolderError, RunLockedError, RunMismatchError
from ..frames.stream import as_rate, size_text
from .chunk_file import ChunkFile, write_chunk_file
from .content import ChunkContent
from .frames import RunFolderFrames
from .lock import LOCK, RunLock
from .manifest import MANIFEST, RunManifest, list_runs
from .name import run_path
from .plain import identity_key, plain, settings_hash
from .rebuild import metadata_of, with_strays
from .record import ChunkRecord, take_file_name
from .selection import selected
from .takes import free_take, stored_chunk, without_leads

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ChunkContent", "ChunkRecord", "RunFolder", "RunManifest", "list_runs", "settings_hash"]


class _Form(TypedDict):
    kind: str
    height: int
    width: int
    fps: float | Fraction | str


class RunForm(_Form, total=False):
    """What a run is, by name.

    Attributes:
        kind: which loop writes it, such as "streamingsvd"; other loops refuse the folder.
        height, width: pixels of the frames.
        fps: frame rate.
        num_frames: the length that is asked for, if known.
        owner: who writes, for the message a second writer gets.
    """

    num_frames: int | None
    owner: str


class RunFolder:
    """One run on disk. Made by `create`, `open` or `open_or_create`; a with block gives the lock back at its end.

    Attributes:
        path: the folder.
        manifest: what it held when it was opened, or after the last `write_chunk`.
    """

    def __init__(self, path: Path, manifest: RunManifest, lock: RunLock | None) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    # Opening

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        name: str,
        settings: Mapping[str, Any] | None = None,
        **about: Unpack[RunForm],
    ) -> RunFolder:
        """Begin a new run and hold its lock. Whole chunk files that lie there without a manifest become older takes.

        Args:
            root: the folder that all runs lie in; made if missing.
            name: see `name.run_path`.
            settings: what the run was made with, for people and the inspector; chunks carry their own hashes.
            about: see `RunForm`.

        Raises:
            RunNameError: the name is empty or leads out of `root`.
            RunFolderError: the run exists already, or the folder cannot be written.
            RunLockedError: another writer holds the folder.
        """
        path = run_path(root, name)
        manifest = RunManifest(
            kind=about["kind"],
            name=name,
            height=about["height"],
            width=about["width"],
            fps=as_rate(about["fps"]),
            num_frames=about.get("num_frames"),
            created=time.time(),
            settings=plain(settings or {}),
        )
        lock = _locked(path, about.get("owner", ""))
        try:
            if (path / MANIFEST).exists():
                raise RunFolderError(f"run {name!r} exists already; resume it or choose another run name")
            run = cls(path, manifest, lock)
            run.save_manifest(with_strays(path, manifest))
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, root: str | os.PathLike[str], name: str, *, write: bool = False, owner: str = "") -> RunFolder:
        """Open an existing run to read it, or with `write` to continue it (and hold its lock).

        Raises:
            RunNameError, RunLockedError: as `create`.
            RunFolderError: no such run.
            RunDamagedError: the manifest is not readable; the chunk files are left as they are.
            RunMismatchError: the manifest has another schema version.
        """
        path = run_path(root, name)
        if not (path / MANIFEST).is_file():
            raise RunFolderError(f"there is no run {name!r} in {Path(root)}")
        if not write:
            return cls(path, RunManifest.load(path), None)
        lock = _locked(path, owner)
        try:
            run = cls(path, RunManifest.load(path), lock)
            remove_parts(path)
            run._change_to(with_strays(path, run.manifest))
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open_or_create(
        cls,
        root: str | os.PathLike[str],
        name: str,
        settings: Mapping[str, Any] | None = None,
        **about: Unpack[RunForm],
    ) -> RunFolder:
        """Continue the run of this name if there is one that fits, else begin it. Arguments and errors as `create`.

        Length, rate and settings may change (the manifest takes the new ones); kind and size may not.

        Raises:
            RunMismatchError: the run is of another kind or size; the message names both.
            RunDamagedError: the manifest is not readable.
        """
        if not (run_path(root, name) / MANIFEST).exists():
            return cls.create(root, name, settings, **about)
        run = cls.open(root, name, write=True, owner=about.get("owner", ""))
        try:
            run.expect(about["kind"], about["height"], about["width"])
            rate, length = as_rate(about["fps"]), about.get("num_frames")
            run._change_to(replace(run.manifest, fps=rate, num_frames=length, settings=plain(settings or {})))
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def discard_if_empty(self) -> bool:
        """Remove a run that holds no take at all and give the lock back; whether that was so. Else does nothing.

        Raises:
            RunLockedError: the folder was opened only to be read.
        """
        lock = self.require_lock()
        if self.manifest.records or with_strays(self.path, self.manifest).records:
            return False
        remove_parts(self.path)
        (self.path / MANIFEST).unlink(missing_ok=True)
        lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return True

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Chunks

    @property
    def chunks(self) -> tuple[ChunkRecord, ...]:
        """The current takes of the finished chunks, by index."""
        return self.manifest.chunks

    def record(self, index: int) -> ChunkRecord | None:
        """The current take of one chunk, or None when it is not finished."""
        return self.manifest.chunk(index)

    def select(self, wanted: Sequence[str]) -> tuple[int, ...]:
        """Show the takes that fit these settings hashes, of chunks 0, 1, ...; the indices of those that must be made.

        The hash of a chunk that continues another holds the hash of that (`settings_hash(..., previous=...)`). Which
        take is chosen, and what happens to longer videos, says `selection.selected`. Every other take stays stored. The
        manifest is written once, and only if something changed.

        Raises:
            RunDamagedError: a current take that would be used again is missing, cut off or altered.
            RunLockedError: the folder was opened only to be read.
            RunFolderError: the manifest cannot be written.
        """
        self.require_lock()
        self._change_to(selected(self.path, self.manifest, wanted))
        return tuple(index for index in self.manifest.missing if index < len(wanted))

    def write_chunk(
        self,
        index: int,
        content: ChunkContent,
        *,
        settings_hash: str,
        identity: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
        stands_for: str = "",
        independent: bool = False,
        seconds: float = 0.0,
        notes: Mapping[str, Any] | None = None,
    ) -> ChunkRecord:
        """Store a finished chunk as a new take and show it; when this returns it survives whatever happens next.

        Takes of this chunk that are there already stay as they are, to be chosen again.

        Args:
            index: chunk number from 0.
            content: the tensors.
            settings_hash: hash of all that this chunk depends on, see `plain.settings_hash`.
            identity: run-level description of what it was made with; stored once for all chunks that share it.
            own: chunk-level values: seed, prompt, strengths.
            stands_for, notes: see `ChunkRecord`.
            independent: it continues no other chunk, as gaps between keyframes do not.
            seconds: how long the chunk took.

        Raises:
            FrameError: frames of another size than the run's, NaN, or none.
            SettingsError: identity, own or notes hold something that has no plain form.
            RunLockedError: the folder was opened only to be read.
            RunFolderError: disk full or folder not writable; all earlier chunks are untouched.
        """
        self.require_lock()
        tensors = content.tensors(self.manifest.height, self.manifest.width)
        about, previous = plain(identity or {}), None if independent else self.record(index - 1)
        take = free_take(self.path, self.manifest, index)
        record = ChunkRecord(
            index=index,
            take=take,
            settings_hash=settings_hash,
            identity=identity_key(about) if about else "",
            own=plain(own or {}),
            num_frames=len(tensors["frames"]),
            seam_frames=content.seam_frames,
            lead_frames=content.lead_frames,
            contents=tuple(sorted(tensors)),
            seconds=round(float(seconds), 3),
            created=time.time(),
            file=take_file_name(index, take),
            num_bytes=0,
            sha256="",
            continues=previous.file if previous else "",
            stands_for=stands_for,
            notes=plain(notes or {}),
        )
        try:
            # The file knows the run as it will be with this take, so that `recover` loses nothing.
            texts = metadata_of(record, self.manifest.with_take(record).showing(record), about)
            written = write_chunk_file(self.path / record.file, tensors, texts)
            record = replace(record, num_bytes=written.num_bytes, sha256=written.sha256)
            self.save_manifest(self.manifest.with_take(record, about).showing(record))
        except OSError as error:
            raise RunFolderError(
                f"chunk {index} could not be stored in {self.path}: {error.strerror or error}; "
                "the chunks before it are kept"
            ) from error
        return record

    def chunk_file(self, index: int) -> ChunkFile:
        """The file of a finished chunk, to read single tensors or rows from."""
        record = self.record(index)
        if record is None:
            raise RunFolderError(f"chunk {index} of run {self.manifest.name!r} is not finished")
        return record.file_in(self.path)

    def frames_stream(self, num_frames: int | None = None) -> RunFolderFrames:
        """The video of the chunks that are finished without a gap from chunk 0 on.

        Args:
            num_frames: length; default what the run was asked for, or as much as is finished.

        Raises:
            FrameError: no chunk is finished, or fewer frames than `num_frames`.
        """
        parts = tuple(stored_chunk(self.path, self.manifest, record) for record in self.manifest.shown)
        total = sum(part.num_frames for part in parts)
        if total == 0:
            raise FrameError(f"run {self.manifest.name!r} has no finished chunk yet")
        if num_frames is None:
            num_frames = min(total, self.manifest.num_frames or total)
        about = self.manifest
        parts = without_leads(parts, num_frames)
        return RunFolderFrames(parts, about.height, about.width, about.fps, num_frames, about.name)

    # Inside

    def expect(self, kind: str, height: int, width: int) -> None:
        """Raise `RunMismatchError` for a run of another kind or size; the message names both."""
        have = self.manifest
        if have.kind != kind:
            raise RunMismatchError(
                f"run {have.name!r} was made by {have.kind!r}, not {kind!r}; choose another run name"
            )
        if (have.height, have.width) != (height, width):
            raise RunMismatchError(
                f"run {have.name!r} is {size_text(have.height, have.width)}, {size_text(height, width)} was asked for; "
                "choose another run name"
            )

    def save_manifest(self, manifest: RunManifest) -> None:
        """Replace the manifest, in memory and on the disk."""
        try:
            manifest.save(self.path)
        except OSError as error:
            raise RunFolderError(
                f"{self.path / MANIFEST} cannot be written: {error.strerror or error}; finished chunks are kept"
            ) from error
        self.manifest = manifest

    def _change_to(self, manifest: RunManifest) -> None:
        if manifest != self.manifest:
            self.save_manifest(manifest)

    def require_lock(self) -> RunLock:
        """The lock; raises `RunLockedError` unless this folder was opened to be written and still is."""
        if self._lock is None or not self._lock.held:
            raise RunLockedError(f"run {self.manifest.name!r} was opened to be read only; open it for writing")
        return self._lock


def _locked(path: Path, owner: str) -> RunLock:
    return RunLock(path / LOCK, owner).acquire()
