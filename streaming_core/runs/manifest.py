"""The manifest of a run folder: versioned, immutable in memory, replaced as a whole on disk. See docs/run_folder.md."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..errors import RunDamagedError, RunMismatchError, StreamingError
from .plain import canonical_json, plain, settings_hash
from .record import ChunkRecord

__all__ = ["ChunkRecord", "RunManifest", "canonical_json", "list_runs", "plain", "settings_hash"]

MANIFEST = "manifest.json"
FORMAT = "streaming-run"
SCHEMA = 2
_WAY_OUT = "recover the run or choose another run name; its chunk files are untouched"


@dataclass(frozen=True)
class RunManifest:
    """What a run is and what is finished.

    Attributes:
        kind: which loop writes it.
        height, width: pixels; fps: exact rate; num_frames: length asked for, if known.
        created: seconds since 1970.
        settings: plain values of the present video, for people and the inspector; not to be changed.
        wanted: settings hashes of the present video's chunks by index; "" where nothing was ever wanted.
        chosen: per chunk, by wanted hash: the file of the take that a video with this hash shows.
        records: all takes that are stored, by index and take.
        identities: run-level descriptions by their key, each once; not to be changed.
    """

    kind: str
    name: str
    height: int
    width: int
    fps: Fraction
    num_frames: int | None
    created: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    chosen: tuple[Mapping[str, str], ...] = ()
    records: tuple[ChunkRecord, ...] = ()
    identities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    # What the video shows

    @cached_property
    def _by_file(self) -> dict[str, ChunkRecord]:
        return {record.file: record for record in self.records}

    @cached_property
    def _current(self) -> dict[int, ChunkRecord]:
        found = {index: self.choice(index, wanted) for index, wanted in enumerate(self.wanted)}
        return {index: record for index, record in found.items() if record is not None}

    @cached_property
    def chunks(self) -> tuple[ChunkRecord, ...]:
        """The current take of every finished chunk, by index."""
        return tuple(self._current.values())

    @property
    def shown(self) -> tuple[ChunkRecord, ...]:
        """The current takes from chunk 0 on without a gap: what can be played."""
        return tuple(record for index, record in enumerate(self.chunks) if record.index == index)

    @cached_property
    def older(self) -> tuple[ChunkRecord, ...]:
        """All takes that the present video does not show, by index and take."""
        current = {record.file for record in self.chunks}
        return tuple(record for record in self.records if record.file not in current)

    @property
    def missing(self) -> tuple[int, ...]:
        """Chunks of the present video that are not finished."""
        return tuple(index for index, wanted in enumerate(self.wanted) if wanted and index not in self._current)

    def chunk(self, index: int) -> ChunkRecord | None:
        """The current take of one chunk, or None when it is not finished."""
        return self._current.get(index)

    def takes(self, index: int) -> tuple[ChunkRecord, ...]:
        """All takes of a chunk that are stored, by number."""
        return tuple(record for record in self.records if record.index == index)

    def with_file(self, name: str) -> ChunkRecord | None:
        """The take in a file, or None."""
        return self._by_file.get(name)

    def choice(self, index: int, wanted: str) -> ChunkRecord | None:
        """The take that a video with this settings hash shows, or showed last; None when it never had one."""
        files = self.chosen[index] if index < len(self.chosen) else {}
        return self._by_file.get(files.get(wanted, ""))

    # Changed copies

    def choosing(self, index: int, wanted: str, record: ChunkRecord | None) -> RunManifest:
        """A copy in which a video with the hash `wanted` shows `record` as chunk `index`, or nothing."""
        chosen = [*self.chosen, *({} for _ in range(index + 1 - len(self.chosen)))]
        others = {each: file for each, file in chosen[index].items() if each != wanted}
        chosen[index] = others if record is None else {**others, wanted: record.file}
        return replace(self, chosen=tuple(chosen))

    def with_take(self, record: ChunkRecord, identity: Mapping[str, Any] | None = None) -> RunManifest:
        """A copy with one more take, not shown yet; `identity` is the description that `record.identity` names."""
        if record.identity and identity is not None and record.identity not in self.identities:
            identities = {**self.identities, record.identity: identity}
        else:
            identities = dict(self.identities)
        others = [each for each in self.records if each.file != record.file]
        return replace(self, records=_sorted([*others, record]), identities=identities)

    def showing(self, record: ChunkRecord) -> RunManifest:
        """A copy whose video wants `record` as it was made and shows it; `record` must be one of its takes."""
        padded = [*self.wanted, *[""] * (record.index + 1 - len(self.wanted))]
        padded[record.index] = record.made_for
        return replace(self.choosing(record.index, record.made_for, record), wanted=tuple(padded))

    def without(self, files: Collection[str]) -> RunManifest:
        """A copy that does not know the takes in `files`, nor identities that only they had."""
        records = tuple(record for record in self.records if record.file not in files)
        chosen = tuple({wanted: name for wanted, name in each.items() if name not in files} for each in self.chosen)
        used = {record.identity for record in records}
        identities = {key: value for key, value in self.identities.items() if key in used}
        return replace(self, records=records, chosen=chosen, identities=identities)

    def bare(self) -> RunManifest:
        """A copy of what stands in every chunk file too: the run with what it wants, without takes and identities."""
        return replace(self, chosen=(), records=(), identities={})

    # On disk

    def to_json(self) -> str:
        """The text of the manifest file."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields["fps"] = str(self.fps)
        fields["records"] = [record.to_dict() for record in self.records]
        return json.dumps({"format": FORMAT, "schema": SCHEMA, **fields}, indent=1, ensure_ascii=False)

    def save(self, folder: Path) -> None:
        """Replace the manifest in `folder` as a whole.

        Raises:
            OSError: disk full, folder not writable.
        """
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
                f"{path} has format {found[0]} {found[1]}, this version reads {FORMAT} {SCHEMA}; choose another run "
                "name, nothing in the folder was changed"
            )
        try:
            return cls._from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise RunDamagedError(f"{path} is not a readable manifest ({error!r}); {_WAY_OUT}") from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> RunManifest:
        names = {each.name for each in dataclasses.fields(cls)}
        values: dict[str, Any] = {key: value for key, value in data.items() if key in names}
        values["fps"] = Fraction(data["fps"])
        values["settings"] = dict(data["settings"])
        values["wanted"] = tuple(str(wanted) for wanted in data["wanted"])
        values["chosen"] = tuple(dict(files) for files in data["chosen"])
        values["records"] = _sorted(ChunkRecord.from_dict(record) for record in data["records"])
        values["identities"] = {key: dict(identity) for key, identity in data["identities"].items()}
        manifest = cls(**values)
        if not all(isinstance(size, int) and size > 0 for size in (manifest.height, manifest.width)):
            raise ValueError(f"size {manifest.width}x{manifest.height}")
        return manifest


def list_runs(root: str | os.PathLike[str]) -> list[RunManifest | StreamingError]:
    """All runs below `root`, by name: their manifests, or the error that says why one cannot be read."""
    runs: list[RunManifest | StreamingError] = []
    for path in sorted(Path(root).glob(f"*/{MANIFEST}")):
        try:
            runs.append(RunManifest.load(path.parent))
        except StreamingError as error:
            runs.append(error)
    return runs


def _sorted(records: Iterable[ChunkRecord]) -> tuple[ChunkRecord, ...]:
    return tuple(sorted(records, key=lambda record: (record.index, record.take)))
