"""Run folders: what a long run has made so far, kept so that a crash costs at most the chunk in work.

    root/name/manifest.json            what the run is, and one record per finished chunk
    root/name/chunk_00003.safetensors  frames and/or latents of chunk 3, its tail frames for the next one
    root/name/chunk_00003.r1.safetensors   the same after it was drawn anew once
    root/name/run.lock                 who is writing

Every file is written under a temporary name, synced and renamed, a chunk before the manifest that names it. So the
manifest never names a chunk that is not there whole, and a killed writer leaves only files that no manifest names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..atomic import remove_parts
from ..errors import FrameError, RunFolderError, RunLockedError, RunMismatchError
from ..frames.stream import as_rate, size_text
from .chunk_file import ChunkFile, write_chunk_file
from .chunk_tensors import chunk_tensors, storable_frames, video_frames
from .frames import LatentDecoder, RunFolderFrames, StoredChunk
from .lock import RunLock
from .manifest import MANIFEST, ChunkRecord, RunManifest, plain, settings_hash
from .name import run_path
from .resume import ResumePlan, list_runs, plan_resume
from .takes import free_revision, keeping_seam, stored_chunk

__all__ = ["ChunkData", "ChunkRecord", "ResumePlan", "RunFolder", "RunManifest", "list_runs", "settings_hash"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkData:
    """The tensors of one chunk as they were stored.

    Attributes:
        frames: `[F, H, W, 3]` uint8 or float16, or None when only latents were stored.
        latents: in the layout of the writer, or None.
        tail: what the next chunk continues from, bit for bit as given, or None.
        extra: further tensors by name.
    """

    frames: torch.Tensor | None
    latents: torch.Tensor | None
    tail: torch.Tensor | None
    extra: Mapping[str, torch.Tensor]


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
        *,
        kind: str,
        height: int,
        width: int,
        fps: float | Fraction | str,
        num_frames: int | None = None,
        owner: str = "",
    ) -> RunFolder:
        """Begin a new run and hold its lock.

        Args:
            root: the folder that all runs lie in; made if missing.
            name: see `run_name.run_path`.
            settings: what the run was made with, for people and the inspector; chunks carry their own hashes.
            kind: which loop writes it, such as "streamingsvd"; other loops refuse the folder.
            height, width: pixels of the frames.
            num_frames: how long the video shall become, if known.
            owner: who writes, for the message a second writer gets.

        Raises:
            RunNameError: the name is empty or leads out of `root`.
            RunFolderError: the run exists already, or the folder cannot be written.
            RunLockedError: another writer holds the folder.
        """
        path = run_path(root, name)
        manifest = RunManifest(
            kind=kind,
            name=name,
            height=height,
            width=width,
            fps=as_rate(fps),
            num_frames=num_frames,
            created=time.time(),
            settings=plain(settings or {}),
        )
        lock = _locked(path, owner)
        try:
            if (path / MANIFEST).exists():
                raise RunFolderError(f"run {name!r} exists already; resume it or choose another run name")
            run = cls(path, manifest, lock)
            run.save_manifest(manifest)
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, root: str | os.PathLike[str], name: str, *, write: bool = False, owner: str = "") -> RunFolder:
        """Open an existing run to read it, or with `write` to go on with it (and hold its lock).

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
        *,
        kind: str,
        height: int,
        width: int,
        fps: float | Fraction | str,
        num_frames: int | None = None,
        owner: str = "",
    ) -> RunFolder:
        """Go on with the run of this name if there is one that fits, else begin it. Arguments and errors as `create`.

        Length, rate and settings may change (the manifest takes the new ones); kind and size may not.

        Raises:
            RunMismatchError: the run is of another kind or size; the message names both.
            RunDamagedError: the manifest is not readable.
        """
        wanted = {"kind": kind, "height": height, "width": width, "fps": fps, "num_frames": num_frames, "owner": owner}
        if not (run_path(root, name) / MANIFEST).exists():
            return cls.create(root, name, settings, **wanted)
        run = cls.open(root, name, write=True, owner=owner)
        try:
            run._expect(kind, height, width)
            updated = replace(run.manifest, fps=as_rate(fps), num_frames=num_frames, settings=plain(settings or {}))
            if updated != run.manifest:
                run.save_manifest(updated)
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def discard(self) -> None:
        """Remove a run that has no finished chunk and give the lock back.

        Raises:
            RunFolderError: the run holds finished chunks.
            RunLockedError: the folder was opened only to be read.
        """
        if self.chunks:
            raise RunFolderError(f"run {self.manifest.name!r} holds {len(self.chunks)} finished chunks and is kept")
        self.require_lock()
        remove_parts(self.path)
        (self.path / MANIFEST).unlink(missing_ok=True)
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Chunks

    @property
    def chunks(self) -> tuple[ChunkRecord, ...]:
        """Records of the finished chunks, by index."""
        return self.manifest.chunks

    def record(self, index: int) -> ChunkRecord | None:
        """The record of one chunk, or None when it is not finished."""
        return self.manifest.chunk(index)

    def write_chunk(
        self,
        index: int,
        *,
        settings_hash: str,
        seed: int,
        frames: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        tail: torch.Tensor | None = None,
        extra: Mapping[str, torch.Tensor] | None = None,
        num_frames: int | None = None,
        skip_frames: int = 0,
        seconds: float = 0.0,
        store_as: str = "uint8",
        notes: Mapping[str, Any] | None = None,
        replace_existing: bool = False,
        keep_old: bool = False,
        stands_for: str = "",
        seam_frames: int = 0,
    ) -> ChunkRecord:
        """Store a finished chunk; when this returns it survives whatever happens next.

        Args:
            index: chunk number from 0.
            settings_hash: hash of all that this chunk depends on, see `settings_hash`.
            frames: `[F, H, W, C]`, 0..1; stored as `store_as` ("uint8", rounded, or "float16").
            latents: stored bit for bit.
            tail: what the next chunk continues from, stored bit for bit (float32 frames for an exact hand-off).
            extra: further tensors; names must not be "frames", "latents" or "tail".
            num_frames: frames that the chunk adds to the video; default all of `frames` after `skip_frames`.
            skip_frames: frames at the start of the stored ones (or of the decoded latents) that are not in the video.
            seconds: how long the chunk took.
            notes: small values for people and the inspector.
            replace_existing: allow a finished chunk of this index to be replaced, as for a reroll or after damage.
            keep_old: keep the file that is replaced, to be chosen again with `run_care.use_revision`.
            stands_for, seam_frames: see `ChunkRecord`.

        Raises:
            FrameError: frames of another size than the run's, NaN, or neither frames nor latents.
            RunMismatchError: the chunk is finished already and `replace_existing` is off.
            RunLockedError: the folder was opened only to be read.
            RunFolderError: disk full or folder not writable; all earlier chunks are untouched.
        """
        self.require_lock()
        old = self.record(index)
        if old is not None and not replace_existing:
            same = "the same" if old.settings_hash == settings_hash else "other"
            raise RunMismatchError(
                f"chunk {index} of run {self.manifest.name!r} is finished already, with {same} settings; "
                "reroll it or choose another run name"
            )
        tensors = chunk_tensors(self._storable(frames, store_as), latents, tail, extra)
        count = video_frames(tensors, num_frames, skip_frames)
        revision, name = free_revision(self.path, self.manifest, index)
        record = ChunkRecord(
            index=index,
            settings_hash=settings_hash,
            seed=int(seed),
            num_frames=count,
            skip_frames=skip_frames,
            contents=tuple(sorted(tensors)),
            seconds=round(float(seconds), 3),
            created=time.time(),
            revision=revision,
            file=name,
            num_bytes=0,
            sha256="",
            notes=plain(notes or {}),
            stands_for=stands_for,
            continues=self.manifest.chunk(index - 1).file if index and self.manifest.chunk(index - 1) else "",
            seam_frames=seam_frames,
        )
        try:
            metadata = {"record": record.to_json(), "run": self.manifest.without_chunks().to_json()}
            written = write_chunk_file(self.path / name, tensors, metadata)
            record = replace(record, num_bytes=written.num_bytes, sha256=written.sha256)
            self.save_manifest(keeping_seam(self.manifest, old).with_chunk(record, keep_old))
        except OSError as error:
            raise RunFolderError(
                f"chunk {index} could not be stored in {self.path}: {error.strerror or error}; "
                "the chunks before it are kept"
            ) from error
        if old is not None and not keep_old:
            self._forget(old)
        return record

    def read_chunk(self, index: int) -> ChunkData:
        """All tensors of a finished chunk, checked.

        Raises:
            RunFolderError: the chunk is not finished.
            RunDamagedError: its file is missing, cut off or altered.
        """
        file = self.chunk_file(index)
        tensors = {key: file.read(key) for key in file.keys()}
        frames, latents, tail = (tensors.pop(key, None) for key in ("frames", "latents", "tail"))
        return ChunkData(frames, latents, tail, tensors)

    def chunk_file(self, index: int) -> ChunkFile:
        """The file of a finished chunk, to read single tensors or rows from."""
        record = self.record(index)
        if record is None:
            raise RunFolderError(f"chunk {index} of run {self.manifest.name!r} is not finished")
        return record.file_in(self.path)

    def completed_prefix(self, hashes: Sequence[str], *, rerun_damaged: bool = False) -> ResumePlan:
        """How far a run with these settings hashes, one per chunk, has come already.

        Args:
            hashes: what each chunk would be stored with; chain them (`settings_hash(..., previous=...)`) where a chunk
                depends on the one before.
            rerun_damaged: take a damaged chunk as not finished instead of refusing it.

        Raises:
            RunDamagedError: a chunk that would be reused is missing, cut off or altered.
        """
        return plan_resume(self.path, self.manifest, hashes, rerun_damaged)

    def frames_stream(
        self, num_frames: int | None = None, decoder: LatentDecoder | None = None, frame_dim: int = 0
    ) -> RunFolderFrames:
        """The video of the chunks that are finished without a gap from chunk 0 on.

        Args:
            num_frames: length; default what the run was asked for, or as much as is finished.
            decoder: needed when chunks hold latents only.
            frame_dim: dimension of the stored latents that counts frames.

        Raises:
            FrameError: no chunk is finished, or fewer frames than `num_frames`.
        """
        parts: list[StoredChunk] = []
        for record in self.chunks:
            if record.index != len(parts):
                break
            parts.append(stored_chunk(self.path, self.manifest, record))
        total = sum(part.num_frames for part in parts)
        if total == 0:
            raise FrameError(f"run {self.manifest.name!r} has no finished chunk yet")
        if num_frames is None:
            num_frames = min(total, self.manifest.num_frames or total)
        about = self.manifest
        return RunFolderFrames(
            tuple(parts), about.height, about.width, about.fps, num_frames, decoder, frame_dim, about.name
        )

    # Inside

    def _storable(self, frames: torch.Tensor | None, store_as: str) -> torch.Tensor | None:
        if frames is None:
            return None
        stored = storable_frames(frames, store_as)
        size = tuple(stored.shape[1:3])
        if size != (self.manifest.height, self.manifest.width):
            raise FrameError(
                f"frames are {size_text(*size)}, run {self.manifest.name!r} is "
                f"{size_text(self.manifest.height, self.manifest.width)}"
            )
        return stored

    def _expect(self, kind: str, height: int, width: int) -> None:
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
            raise RunFolderError(f"{self.path / MANIFEST} cannot be written: {error.strerror or error}") from error
        self.manifest = manifest

    def require_lock(self) -> None:
        """Raises `RunLockedError` unless this folder was opened to be written and still is."""
        if self._lock is None or not self._lock.held:
            raise RunLockedError(f"run {self.manifest.name!r} was opened to be read only; open it for writing")

    def _forget(self, record: ChunkRecord) -> None:
        """Delete the file of a replaced chunk. One that is still read (Windows) stays; no manifest names it."""
        try:
            (self.path / record.file).unlink(missing_ok=True)
        except OSError:
            log.info("kept %s, it is still in use", self.path / record.file)


def _locked(path: Path, owner: str) -> RunLock:
    return RunLock(path / "run.lock", owner).acquire()
