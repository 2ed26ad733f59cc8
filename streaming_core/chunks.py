"""All frame arithmetic of chunk-by-chunk generation (docs/design.md, section 4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from .errors import SettingsError


@dataclass(frozen=True)
class Chunk:
    """One model call. Chunk 0 is the first clip; every later one re-creates `overlap_frames` and adds the rest.

    `start`, `stop`: the frames of the film it contributes, trimmed to the film's length. `num_frames`: frames of the
    model call. `overlap_frames`: how many of them, at its beginning, exist already.
    """

    index: int
    start: int
    stop: int
    num_frames: int
    overlap_frames: int
    seed: int

    @property
    def new_frames(self) -> int:
        return self.stop - self.start

    def generator(self) -> torch.Generator:
        """A CPU generator that is the same for this chunk however it was reached."""
        digest = hashlib.blake2b(f"{self.seed}:{self.index}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class ChunkPlan:
    """How a film of `num_frames` is made: a first clip, then chunks that each continue its tail.

    Raises `SettingsError` for lengths that cannot work.
    """

    num_frames: int
    chunk_frames: int
    overlap_frames: int
    first_frames: int
    seed: int = 0

    def __post_init__(self):
        if self.num_frames < 1:
            raise SettingsError(f"a film needs at least 1 frame, got num_frames = {self.num_frames}")
        if not 1 <= self.overlap_frames < self.chunk_frames:
            raise SettingsError(
                f"overlap_frames must be 1 to {self.chunk_frames - 1} (chunk_frames - 1), got {self.overlap_frames}"
            )
        if self.first_frames < 1:
            raise SettingsError("the first clip is empty; it needs at least 1 frame")
        if self.num_frames > self.first_frames and self.first_frames < self.overlap_frames:
            raise SettingsError(
                f"the first clip has {self.first_frames} frames but {self.overlap_frames} are needed to continue it; "
                "use a longer first clip or a smaller overlap_frames"
            )

    @property
    def num_chunks(self) -> int:
        """Chunks in all, the first clip included: `1 + ceil((T - F) / (N - K))`."""
        missing = max(0, self.num_frames - self.first_frames)
        return 1 + -(-missing // (self.chunk_frames - self.overlap_frames))

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, from 0 (the first clip) to `num_chunks - 1`."""
        if not 0 <= index < self.num_chunks:
            raise SettingsError(f"chunk {index} is not in this plan of {self.num_chunks} chunks (0 is the first clip)")
        if index == 0:
            return Chunk(0, 0, min(self.first_frames, self.num_frames), self.first_frames, 0, self.seed)
        step = self.chunk_frames - self.overlap_frames
        start = self.first_frames + (index - 1) * step
        stop = min(start + step, self.num_frames)
        return Chunk(index, start, stop, self.chunk_frames, self.overlap_frames, self.seed)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self.chunk(index) for index in range(self.num_chunks))
