"""What a run knows of one take of a chunk."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .chunk_file import ChunkFile

_FILE_NAME = re.compile(r"chunk_(\d{5,})(?:\.t([1-9]\d*))?\.safetensors")
_COUNTS = ("index", "take", "num_frames", "seam_frames", "lead_frames", "num_bytes")


def take_file_name(index: int, take: int) -> str:
    """The file of a take: `chunk_00003.safetensors` for take 0, `chunk_00003.t1.safetensors` for take 1."""
    return f"chunk_{index:05d}{f'.t{take}' if take else ''}.safetensors"


def take_of_file(name: str) -> tuple[int, int] | None:
    """Chunk and take that a file name stands for, or None for every other name."""
    match = _FILE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2] or 0))


@dataclass(frozen=True)
class ChunkRecord:
    """One take of a chunk. Never changed once it is written.

    Attributes:
        index: chunk number from 0.
        take: number of the take from 0, never used twice for one chunk.
        settings_hash: hash of all that the take depends on, the hash of the chunk before included.
        identity: key of the run-level description in `RunManifest.identities`; "" when the writer gave none.
        own: chunk-level values (seed, prompt, strengths), plain; not to be changed.
        num_frames: frames that it adds to the video, all that are stored.
        seam_frames: over how many of its last frames it passes into the take that the next chunk continues, when the
            video shows another one.
        contents: names of the tensors in the file.
        seconds: how long making it took.
        created: seconds since 1970.
        file: name of its file in the run folder; num_bytes, sha256: what the file must be.
        continues: file of the take whose tail it continues; "" for chunk 0 and for gaps between keyframes.
        stands_for: settings hash of the chunk that it was rerolled for; "" when it was made from its own settings.
        notes: small plain values for people; not to be changed.
        lead_frames: over how many frames before its first one the video passes over into this take's version of them;
            0 in records from before there was any.
    """

    index: int
    take: int
    settings_hash: str
    identity: str
    own: Mapping[str, Any]
    num_frames: int
    seam_frames: int
    contents: tuple[str, ...]
    seconds: float
    created: float
    file: str
    num_bytes: int
    sha256: str
    continues: str = ""
    stands_for: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    lead_frames: int = 0

    @property
    def seed(self) -> int:
        """The seed among its own values, 0 when there is none."""
        return int(self.own.get("seed", 0))

    @property
    def made_for(self) -> str:
        """Settings hash of the chunk that it was made as."""
        return self.stands_for or self.settings_hash

    @property
    def rerolled(self) -> bool:
        """Whether it stands for a chunk with other settings, as a reroll does."""
        return self.stands_for not in ("", self.settings_hash)

    def accepts(self, wanted: str) -> bool:
        """Whether it is what a video with this settings hash asks for, by how it was made."""
        return wanted in (self.settings_hash, self.made_for)

    def file_in(self, folder: Path) -> ChunkFile:
        """The file of the take and what it must be."""
        return ChunkFile(folder / self.file, self.num_bytes, self.sha256)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by the names of the attributes."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {**fields, "own": dict(self.own), "notes": dict(self.notes), "contents": list(self.contents)}

    def to_json(self) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChunkRecord:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything that is not a record."""
        names = {each.name for each in dataclasses.fields(cls)}
        values = {key: value for key, value in data.items() if key in names}
        values |= {"own": dict(data["own"]), "notes": dict(data["notes"]), "contents": tuple(data["contents"])}
        record = cls(**values)
        numbers = [getattr(record, name) for name in _COUNTS]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"chunk record with numbers {numbers}")
        if record.file != take_file_name(record.index, record.take):
            raise ValueError(f"take {record.take} of chunk {record.index} in {record.file!r}")
        if record.continues and take_of_file(record.continues) is None:
            raise ValueError(f"{record.file!r} continues {record.continues!r}")
        return record
