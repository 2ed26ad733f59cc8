"""The manifest of a run folder: versioned, immutable in memory, replaced as a whole on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .atomic import atomic_write
from .errors import RunDamagedError, RunMismatchError, SettingsError

MANIFEST = "manifest.json"
FORMAT = "streaming-run"
SCHEMA = 1
_FILE_NAME = re.compile(r"chunk_\d{5,}(\.r\d+)?\.safetensors")


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
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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
        revision: how often the chunk was drawn anew.
        notes: canonical JSON.
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
    notes: str = "{}"
    status: str = "complete"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "contents": list(self.contents), "notes": json.loads(self.notes)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChunkRecord:
        """Raises KeyError, TypeError or ValueError for anything that is no record."""
        names = {field.name for field in dataclasses.fields(cls)}
        record = cls(
            **{key: value for key, value in data.items() if key in names}
            | {"contents": tuple(data["contents"]), "notes": canonical_json(data.get("notes", {}))}
        )
        numbers = (record.index, record.num_frames, record.skip_frames, record.num_bytes, record.revision)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"chunk record with numbers {numbers}")
        if not _FILE_NAME.fullmatch(record.file):
            raise ValueError(f"chunk file {record.file!r}")
        return record


@dataclass(frozen=True)
class RunManifest:
    """What a run is and what is finished.

    Attributes:
        kind: which loop writes it.
        height, width: pixels; fps: exact rate; num_frames: length asked for, if known.
        created: seconds since 1970.
        settings: canonical JSON, for people and the inspector.
        chunks: records by index.
    """

    kind: str
    name: str
    height: int
    width: int
    fps: Fraction
    num_frames: int | None
    created: float
    settings: str = "{}"
    chunks: tuple[ChunkRecord, ...] = ()

    def with_chunk(self, record: ChunkRecord) -> RunManifest:
        """The manifest with one record added or replaced."""
        others = [chunk for chunk in self.chunks if chunk.index != record.index]
        return dataclasses.replace(self, chunks=tuple(sorted([*others, record], key=lambda chunk: chunk.index)))

    def without_chunks(self) -> RunManifest:
        """The manifest of the run before its first chunk."""
        return dataclasses.replace(self, chunks=())

    def to_json(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"fps": str(self.fps), "settings": json.loads(self.settings)}
        fields["chunks"] = [chunk.to_dict() for chunk in self.chunks]
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
        hint = "move the folder away or choose another run name; its chunk files are untouched"
        try:
            data = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
            found = data["format"], data["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error}); {hint}") from error
        if found != (FORMAT, SCHEMA):
            raise RunMismatchError(
                f"{path} has format {found[0]} {found[1]}, this version reads {FORMAT} {SCHEMA}; {hint}"
            )
        try:
            names = {field.name for field in dataclasses.fields(cls)}
            return cls(
                **{key: value for key, value in data.items() if key in names}
                | {
                    "fps": Fraction(data["fps"]),
                    "settings": canonical_json(data["settings"]),
                    "chunks": tuple(ChunkRecord.from_dict(chunk) for chunk in data["chunks"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error!r}); {hint}") from error
