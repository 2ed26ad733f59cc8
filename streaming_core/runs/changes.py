"""Why chunks are made again, and how takes of one chunk differ: which values changed, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..identity import Change, differences, sentence
from .manifest import RunManifest
from .plain import plain
from .record import ChunkRecord

_UNKNOWN = "it is not stored what it was made with"


@dataclass(frozen=True)
class MadeAgain:
    """Chunks that are made again although they were finished.

    Attributes:
        chunks: their indices, at least one.
        changes: what differs between the take that was shown of the first of them and what is made now; empty when only
            a chunk before it changed, or when `is_known` is off.
        is_known: whether it is stored what that take was made with.
    """

    chunks: tuple[int, ...]
    changes: tuple[Change, ...] = ()
    is_known: bool = True

    def __str__(self) -> str:
        several = len(self.chunks) > 1
        why = sentence(self.changes)
        if not why:
            why = "the chunks before changed" if self.is_known else "their settings changed; which ones is not stored"
        return f"{chunks_text(self.chunks)} {'are' if several else 'is'} made again because {why}"


def why_made_again(
    before: RunManifest, missing: Sequence[int], identity: Mapping[str, Any], own: Sequence[Mapping[str, Any]]
) -> MadeAgain | None:
    """Which of the chunks that the run had are made again, and what changed for the first of them.

    Args:
        before: the manifest before `RunFolder.select`.
        missing: what `select` returned for the new settings hashes.
        identity: run-level description of what is made now.
        own: chunk-level values of what is made now, by index.

    Returns:
        None when the run showed none of the missing chunks: they are new, or were never finished.
    """
    shown = [record for index in missing if (record := before.chunk(index)) is not None]
    if not shown:
        return None
    indices = tuple(record.index for record in shown)
    first = shown[0]
    description = before.identities.get(first.identity)
    if description is None and first.identity:
        return MadeAgain(indices, is_known=False)
    changes = differences(plain(description or {}), plain(identity)) if description is not None else ()
    return MadeAgain(indices, (*changes, *differences(plain(first.own), plain(own[first.index]))))


def take_changes(manifest: RunManifest, take: ChunkRecord, other: ChunkRecord) -> tuple[Change, ...] | None:
    """What changed from `take` to `other`, both of `manifest`; None when it is not stored what one was made with."""
    descriptions = []
    for record in (take, other):
        description = manifest.identities.get(record.identity)
        if description is None and record.identity:
            return None
        descriptions.append(plain(description or {}))
    return (*differences(*descriptions), *differences(plain(take.own), plain(other.own)))


def take_text(manifest: RunManifest, take: ChunkRecord, other: ChunkRecord) -> str:
    """How `other` differs from `take`, in words."""
    changes = take_changes(manifest, take, other)
    if changes is None:
        return _UNKNOWN
    if changes:
        return sentence(changes)
    if take.continues != other.continues or take.settings_hash != other.settings_hash:
        return "the same values after another take of the chunk before"
    return "the same values"


def chunks_text(indices: Sequence[int]) -> str:
    """Chunk numbers in words: "chunk 3", "chunks 3 to 9, 12"."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    return f"chunk{'s' if len(indices) > 1 else ''} {', '.join(words)}"
