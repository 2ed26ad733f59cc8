"""The manifest of a run folder: versioned, immutable in memory, replaced as a whole on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..errors import RunDamagedError, RunMismatchError, SettingsError
from .chunk_file import ChunkFile, file_sha256, read_metadata

MANIFEST = "manifest.json"
FORMAT = "streaming-run"
SCHEMA = 1
_WAY_OUT = "recover the run or choose another run name; its chunk files are untouched"
_FILE_NAME = re.compile(r"chunk_\d{5,}(\.r\d+)?\.safetensors")


def plain(value: Any) -> Any:
    """A value as JSON would give it back: texts, numbers, lists and dictionaries; whole floats become integers.

    Raises:
        SettingsError: NaN, infinity, or something that has no plain form (a tensor, a model).
    """
    return json.loads(canonical_json(value))


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces, whole floats as integers, fractions and paths as text.

    Raises:
        SettingsError: NaN, infinity, or something that has no plain form (a tensor, a model).
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SettingsError(f"a setting is {value}, which cannot be stored")
        return int(value) if value.is_integer() else value
    if isinstance(value, (Fraction, Path)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise SettingsError("settings need names that are texts or whole numbers")
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise SettingsError(f"a setting of type {type(value).__name__} cannot be stored; store a fingerprint of it instead")


def settings_hash(settings: Mapping[str, Any], previous: str = "") -> str:
    """The sha256 (hexadecimal) of settings in canonical form.

    Args:
        settings: all that the result depends on: model fingerprint, prompt, seed, sizes, sampler, anchor.
        previous: hash of the chunk before, when this one depends on it; a change there then changes this hash too.
    """
    return hashlib.sha256(f"{previous}\n{canonical_json(settings)}".encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class ChunkRecord:
    """What the manifest knows of a finished chunk; fields as the arguments of `RunFolder.write_chunk`.

    Attributes:
        contents: names of the tensors in the file.
        created: seconds since 1970.
        revision: which drawing of the chunk this is.
        notes: small values for people and the inspector; not to be changed.
        stands_for: settings hash of the chunk that this one was drawn anew for; it is used where that one is wanted.
        continues: file of the chunk whose tail it continues; "" for chunk 0.
        seam_frames: over how many of its last frames it passes into the older drawing that the next chunk continues,
            when it continues one.
    """

    index: int
    settings_hash: str
    seed: int
    num_frames: int
    skip_frames: int
    contents: tuple[str, ...]
    seconds: float
    created: float
    revision: int
    file: str
    num_bytes: int
    sha256: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    status: str = "complete"
    stands_for: str = ""
    continues: str = ""
    seam_frames: int = 0

    def accepts(self, wanted: str) -> bool:
        """Whether this is the chunk that a video with this settings hash asks for."""
        return wanted in (self.settings_hash, self.stands_for or self.settings_hash)

    def file_in(self, folder: Path) -> ChunkFile:
        """The file of the chunk and what it must be."""
        return ChunkFile(folder / self.file, self.num_bytes, self.sha256)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "contents": list(self.contents)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChunkRecord:
        """Raises KeyError, TypeError or ValueError for anything that is no record."""
        names = {each.name for each in dataclasses.fields(cls)}
        record = cls(
            **{key: value for key, value in data.items() if key in names}
            | {"contents": tuple(data["contents"]), "notes": dict(data.get("notes", {}))}
        )
        counts = ("index", "num_frames", "skip_frames", "num_bytes", "revision", "seam_frames")
        numbers = [getattr(record, name) for name in counts]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"chunk record with numbers {numbers}")
        if not all(_FILE_NAME.fullmatch(name) for name in (record.file, record.continues or record.file)):
            raise ValueError(f"chunk file {record.file!r} that continues {record.continues!r}")
        return record


@dataclass(frozen=True)
class RunManifest:
    """What a run is and what is finished.

    Attributes:
        kind: which loop writes it.
        height, width: pixels; fps: exact rate; num_frames: length asked for, if known.
        created: seconds since 1970.
        settings: plain values, for people and the inspector; not to be changed.
        chunks: records by index.
        older: records of drawings that were replaced and kept, by index and revision.
    """

    kind: str
    name: str
    height: int
    width: int
    fps: Fraction
    num_frames: int | None
    created: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    chunks: tuple[ChunkRecord, ...] = ()
    older: tuple[ChunkRecord, ...] = ()

    def chunk(self, index: int) -> ChunkRecord | None:
        """The record of one chunk, or None when it is not finished."""
        return next((record for record in self.chunks if record.index == index), None)

    def drawings(self, index: int) -> tuple[ChunkRecord, ...]:
        """All drawings of a chunk that are kept, by revision."""
        kept = [record for record in (*self.chunks, *self.older) if record.index == index]
        return tuple(sorted(kept, key=lambda record: record.revision))

    def with_chunk(self, record: ChunkRecord, keep_old: bool = False) -> RunManifest:
        """The manifest with one record added or replaced; `keep_old` puts what was replaced among the older ones."""
        old = self.chunk(record.index)
        chunks = [chunk for chunk in self.chunks if chunk is not old]
        older = [each for each in self.older if each.file != record.file] + ([old] if keep_old and old else [])
        return dataclasses.replace(
            self, chunks=_sorted([*chunks, record]), older=_sorted(each for each in older if each.file != record.file)
        )

    def without_chunks(self) -> RunManifest:
        """The manifest of the run before its first chunk."""
        return dataclasses.replace(self, chunks=(), older=())

    def to_json(self) -> str:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields["fps"] = str(self.fps)
        for name in ("chunks", "older"):
            fields[name] = [record.to_dict() for record in getattr(self, name)]
        return json.dumps({"format": FORMAT, "schema": SCHEMA, **fields}, indent=1, ensure_ascii=False)

    def save(self, folder: Path) -> None:
        """Replace the manifest in `folder` as a whole."""
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8", errors="surrogatepass")

    @classmethod
    def load(cls, folder: Path) -> RunManifest:
        """The manifest in `folder`.

        Raises:
            RunDamagedError: cut off, altered or not a manifest.
            RunMismatchError: written by another version of the format.
        """
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8", errors="surrogatepass")
        except (OSError, ValueError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error}); {_WAY_OUT}") from error
        return cls.from_json(text, path)

    @classmethod
    def from_json(cls, text: str, path: Path) -> RunManifest:
        """The manifest in a text that was found in `path`; errors as `load`."""
        try:
            data = json.loads(text)
            found = data["format"], data["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error}); {_WAY_OUT}") from error
        if found != (FORMAT, SCHEMA):
            raise RunMismatchError(
                f"{path} has format {found[0]} {found[1]}, this version reads {FORMAT} {SCHEMA}; {_WAY_OUT}"
            )
        try:
            names = {each.name for each in dataclasses.fields(cls)}
            known = {key: value for key, value in data.items() if key in names}
            chunks, older = (
                tuple(ChunkRecord.from_dict(record) for record in records)
                for records in (data["chunks"], data.get("older", ()))
            )
            values = {"fps": Fraction(data["fps"]), "settings": dict(data["settings"])}
            manifest = cls(**known | values | {"chunks": chunks, "older": older})
            if not all(isinstance(size, int) and size > 0 for size in (manifest.height, manifest.width)):
                raise ValueError(f"size {manifest.width}x{manifest.height}")
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error!r}); {_WAY_OUT}") from error

    @classmethod
    def rebuild(cls, folder: Path) -> RunManifest:
        """The manifest as the chunk files in `folder` tell it, for a folder whose own is lost. Writes nothing.

        Every chunk file carries the run and its own record. Of a chunk drawn anew, the latest whole file counts, the
        others are kept as older; files that are cut off are left out.

        Raises:
            RunDamagedError: no whole chunk file.
        """
        manifest: RunManifest | None = None
        for path in sorted(folder.glob("chunk_*.safetensors")):
            try:
                texts = read_metadata(path)
                run = cls.from_json(texts["run"], path)
                record = ChunkRecord.from_dict(json.loads(texts["record"]))
            except (RunDamagedError, RunMismatchError, ValueError, KeyError, TypeError):
                continue
            record = dataclasses.replace(record, num_bytes=path.stat().st_size, sha256=file_sha256(path))
            manifest = manifest or run
            if record.file == path.name:
                found = sorted([*manifest.drawings(record.index), record], key=lambda each: each.revision)
                for each in found:
                    manifest = manifest.with_chunk(each, keep_old=True)
        if manifest is None:
            raise RunDamagedError(f"{folder} holds no whole chunk file; nothing can be recovered from it")
        return manifest


def _sorted(records: Iterable[ChunkRecord]) -> tuple[ChunkRecord, ...]:
    return tuple(sorted(records, key=lambda record: (record.index, record.revision)))
