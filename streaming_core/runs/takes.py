"""Takes of a chunk: where each lies, and how one ends when the chunk after it continues another.

A chunk that is made once more gets a file of its own (`chunk_00003.t1.safetensors`); nothing is replaced. Every record
says which file its chunk continues. Where that is not the take before it in the video, the frames at the end of that
take pass over into those of the file that is continued, when they are read: no file is changed for a seam.

A chunk may bring its own version of the last frames before it, its lead. What the video shows there, a seam included,
passes over into it, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
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
    """Where the frames of a current take are, those of the other take that it must end like, and those of its lead."""
    following = manifest.chunk(record.index + 1)
    plain = StoredChunk(record.file_in(folder), record.num_frames, exact=exact_frames(record), exact_from=KEYFRAMES)
    if following is None:
        return plain
    if following.lead_frames:
        plain = replace(plain, lead=following.file_in(folder), lead_frames=following.lead_frames)
    if following.continues in ("", record.file):
        return plain
    continued = manifest.with_file(following.continues)
    if continued is None or continued.num_frames != record.num_frames:
        return plain
    other = StoredChunk(continued.file_in(folder), continued.num_frames)
    return replace(plain, ends_like=other, seam_frames=min(record.seam_frames, record.num_frames))


def without_leads(parts: Sequence[StoredChunk], num_frames: int) -> tuple[StoredChunk, ...]:
    """The chunks of a video of `num_frames` frames, in order: none passes over into one that the video does not show.

    So a short video of a run that has more chunks shows what it would without them.
    """
    stops = accumulate(part.num_frames for part in parts)
    return tuple(
        part if stop < num_frames else replace(part, lead=None, lead_frames=0)
        for part, stop in zip(parts, stops, strict=True)
    )


def kept_rerolls(manifest: RunManifest, missing: Collection[int] = ()) -> str:
    """Which chunks but the missing ones are rerolled takes, in words; "" for none."""
    found = [
        f"{each.index} (seed {each.seed})" for each in manifest.chunks if each.index not in missing and each.rerolled
    ]
    return f"rerolled and kept so: chunk {', '.join(found)}" if found else ""
