"""Takes of a chunk: where each lies, and how one ends when the chunk after it continues another.

A chunk that is made once more gets a file of its own (`chunk_00003.t1.safetensors`); nothing is replaced. Every record
says which file its chunk continues. Where that is not the take before it in the video, the frames at the end of that
take pass over into those of the file that is continued, when they are read: no file is changed for a seam.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from .frames import StoredChunk
from .gaps import KEYFRAMES, exact_frames
from .manifest import RunManifest
from .record import ChunkRecord, take_of_file


def free_take(folder: Path, manifest: RunManifest, index: int) -> int:
    """The next take of a chunk. Its number was never used, also not by a file that is damaged, set aside or gone.

    A number that comes back would make a chunk that continued the old take end in the frames of the new one.
    """
    names = {record.file for record in manifest.takes(index)}
    names |= {record.continues for record in manifest.takes(index + 1)}
    names |= {re.sub(r"\.damaged\d*$", "", path.name) for path in folder.glob(f"chunk_{index:05d}*")}
    found = [take_of_file(name) for name in names]
    return max((each[1] + 1 for each in found if each is not None and each[0] == index), default=0)


def stored_chunk(folder: Path, manifest: RunManifest, record: ChunkRecord) -> StoredChunk:
    """Where the frames of a current take are, and those of the other take that it must end like."""
    following = manifest.chunk(record.index + 1)
    plain = StoredChunk(record.file_in(folder), record.num_frames, exact=exact_frames(record), exact_from=KEYFRAMES)
    if following is None or following.continues in ("", record.file):
        return plain
    continued = manifest.with_file(following.continues)
    if continued is None or continued.num_frames != record.num_frames:
        return plain
    other = StoredChunk(continued.file_in(folder), continued.num_frames)
    return StoredChunk(plain.file, plain.num_frames, other, min(record.seam_frames, record.num_frames))


def kept_rerolls(manifest: RunManifest, missing: Collection[int] = ()) -> str:
    """Which chunks but the missing ones are rerolled takes, in words; "" for none."""
    found = [
        f"{each.index} (seed {each.seed})" for each in manifest.chunks if each.index not in missing and each.rerolled
    ]
    return f"rerolled and kept so: chunk {', '.join(found)}" if found else ""
