"""What is rerolled, and how takes of any kind of run are made."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.sampler import ChunkSampler
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.runs.manifest import ChunkRecord
from ..progress import StepProgress

if TYPE_CHECKING:
    from typing_extensions import Self

SEED_MODES = ("new", "given")
SCOPES = ("selected only", "selected and following")


@dataclass(frozen=True)
class RerollRequest:
    """Which chunks are rerolled, and from which seeds.

    `seed_mode`: "new" derives a seed per chunk from `seed`, "given" takes `seed` itself. `scope`: the selected chunks
    only, or also all chunks after them, with the seeds that they have.
    """

    chunks: tuple[int, ...]
    seed_mode: str
    seed: int
    scope: str

    def seed_of(self, index: int, present: int) -> int:
        """The seed of a chunk that had `present`."""
        if index not in self.chunks:
            return present
        if self.seed_mode == "given":
            return self.seed
        digest = hashlib.blake2b(f"reroll:{self.seed}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def all_chunks(self, num_chunks: int) -> tuple[int, ...]:
        """Every chunk that is made again, of a video with `num_chunks`.

        Raises `SettingsError` for chunks that the video does not have.
        """
        if self.chunks[-1] >= num_chunks:
            raise SettingsError(f"chunk {self.chunks[-1]} is not in this video of {num_chunks} chunks (0 is the first)")
        return tuple(range(self.chunks[0], num_chunks)) if self.scope == SCOPES[1] else self.chunks


class TakeMaker(ABC):
    """Makes takes of the chunks of one run."""

    @classmethod
    @abstractmethod
    def of(cls, run: RunFolder, sampler: ChunkSampler, request: RerollRequest) -> TakeMaker:
        """Raises `RunMismatchError` where `sampler` is not what the run was made with."""

    @property
    @abstractmethod
    def num_chunks(self) -> int: ...

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Frames of the video."""

    @abstractmethod
    def steps(self, index: int) -> int:
        """Sampling steps of a chunk."""

    @abstractmethod
    def with_progress(self, progress: StepProgress) -> Self:
        """The same, moving this bar."""

    @abstractmethod
    def refuse_unfinished(self, indices: Sequence[int]) -> None:
        """Raise `SettingsError` where what these chunks depend on is not finished, or not for the present settings."""

    @abstractmethod
    def is_there(self, index: int, seed: int) -> bool:
        """Whether the present take is what would be made: from that seed, after the same chunk, and intact."""

    @abstractmethod
    def make(self, index: int, seed: int) -> None:
        """Make and store another take of a chunk, from `seed`."""


def finished(run: RunFolder, index: int) -> ChunkRecord:
    """The current take of a chunk; raises `SettingsError` when there is none."""
    record = run.record(index)
    if record is None:
        raise unfinished(run, index, "is not finished")
    return record


def unfinished(run: RunFolder, index: int, reason: str, node: str = "Stream Sampler") -> SettingsError:
    """What to raise for a chunk that cannot be rerolled yet."""
    return SettingsError(f"chunk {index} of run {run.manifest.name!r} {reason}; run {node} first to complete the video")
