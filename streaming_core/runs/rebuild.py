"""What chunk files say of themselves: enough to rebuild a lost manifest, and to know takes that no manifest names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunDamagedError, RunMismatchError
from .chunk_file import file_sha256, read_metadata
from .manifest import RunManifest
from .plain import canonical_json
from .record import ChunkRecord, take_of_file

MOST_IDENTITY_BYTES = 256 * 1024
"""A longer description is not repeated in chunk files; the manifest has it."""


@dataclass(frozen=True)
class FoundTake:
    """A whole chunk file: its record, the run as it was when the file was written, and the take's identity if known."""

    record: ChunkRecord
    run: RunManifest
    identity: Mapping[str, Any] | None


def metadata_of(record: ChunkRecord, run: RunManifest, identity: Mapping[str, Any]) -> dict[str, str]:
    """The texts that go into a chunk file; its own size and checksum cannot be among them."""
    texts = {"record": record.to_json(), "run": run.bare().to_json()}
    text = canonical_json(identity)
    if record.identity and len(text.encode("utf-8", "surrogatepass")) <= MOST_IDENTITY_BYTES:
        texts["identity"] = text
    return texts


def found_take(path: Path) -> FoundTake | None:
    """What a file says of the take in it; None unless it is a whole chunk file under its own name."""
    try:
        texts = read_metadata(path)
        run = RunManifest.from_json(texts["run"], path)
        record = ChunkRecord.from_dict(json.loads(texts["record"]))
        identity = dict(json.loads(texts["identity"])) if "identity" in texts else None
        if record.file != path.name:
            return None
        record = dataclasses.replace(record, num_bytes=path.stat().st_size, sha256=file_sha256(path))
    except (RunDamagedError, RunMismatchError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return FoundTake(record, run, identity)


def rebuild(folder: Path) -> RunManifest:
    """The manifest as the chunk files in `folder` tell it, for a folder whose own is lost. Writes nothing.

    The run is as the latest file knew it. For every settings hash the latest take that was made for it is shown; what
    was chosen by hand is not in the files. Files that are cut off are left out.

    Raises:
        RunDamagedError: there is not a whole chunk file.
    """
    found = [take for path in _chunk_paths(folder) if (take := found_take(path)) is not None]
    if not found:
        raise RunDamagedError(f"{folder} holds no whole chunk file; nothing can be recovered from it")
    manifest = max(found, key=lambda take: (take.record.created, take.record.index)).run
    for take in sorted(found, key=lambda take: (take.record.index, take.record.take)):
        manifest = manifest.with_take(take.record, take.identity)
        manifest = manifest.choosing(take.record.index, take.record.made_for, take.record)
    return manifest


def with_strays(folder: Path, manifest: RunManifest) -> RunManifest:
    """The manifest with the whole chunk files that it does not name, because a writer was killed before it could.

    Writes nothing. They come in as older takes; the next `select` shows them where they fit and nothing else is there.
    """
    known = {record.file for record in manifest.records}
    size = manifest.kind, manifest.height, manifest.width
    for path in _chunk_paths(folder):
        if path.name in known or (take := found_take(path)) is None:
            continue
        if (take.run.kind, take.run.height, take.run.width) == size:
            manifest = manifest.with_take(take.record, take.identity)
    return manifest


def _chunk_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("chunk_*.safetensors"))
    return [path for path in paths if take_of_file(path.name) and path.is_file() and not path.is_symlink()]
