"""All frame arithmetic of chunk-by-chunk generation (docs/design.md, section 4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..errors import SettingsError
from .script import Script


@dataclass(frozen=True)
class Chunk:
    """One model call. Chunk 0 is the first clip; every later one re-creates `overlap_frames` and adds the rest.

    `start`, `stop`: the frames of the video it contributes, trimmed to the video's length. `num_frames`: frames of the
    model call. `overlap_frames`: how many of them, at its beginning, exist already. `prompt`: None for the family's
    own; `cam_strength`, `anchor_strength`: factors on short-term and long-term memory. Families use what they can.
    """

    index: int
    start: int
    stop: int
    num_frames: int
    overlap_frames: int
    seed: int
    prompt: str | None = None
    cam_strength: float = 1.0
    anchor_strength: float = 1.0

    def changed(self, *names: str) -> dict[str, Any]:
        """Those of these fields that are not what they are without a script, for settings hashes."""
        defaults = {each.name: each.default for each in fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    @property
    def new_frames(self) -> int:
        return self.stop - self.start

    def generator(self) -> torch.Generator:
        """A CPU generator that is the same for this chunk however it was reached."""
        digest = hashlib.blake2b(f"{self.seed}:{self.index}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class ChunkPlan:
    """How a video of `num_frames` is made: a first clip, then chunks that each continue its tail.

    `script`: what differs from chunk to chunk besides. `drawn`: pairs of a chunk and its seed, whatever the rest says.

    Raises `SettingsError` for lengths that cannot work.
    """

    num_frames: int
    chunk_frames: int
    overlap_frames: int
    first_frames: int
    seed: int = 0
    script: Script = Script()
    drawn: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.num_frames < 1:
            raise SettingsError(f"a video needs at least 1 frame, got num_frames = {self.num_frames}")
        if not 1 <= self.overlap_frames < self.chunk_frames:
            raise SettingsError(
                f"overlap_frames must be 1 to {self.chunk_frames - 1} (chunk_frames - 1), got {self.overlap_frames}"
            )
        if self.first_frames < 1:
            raise SettingsError("the first chunk is empty; it needs at least 1 frame")
        if self.num_frames > self.first_frames and self.first_frames < self.overlap_frames:
            raise SettingsError(
                f"the first chunk has {self.first_frames} frames but {self.overlap_frames} are needed to continue it; "
                "use a longer first chunk or a smaller overlap_frames"
            )

    @property
    def num_chunks(self) -> int:
        """Chunks in all, the first clip included: `1 + ceil((T - F) / (N - K))`."""
        missing = max(0, self.num_frames - self.first_frames)
        return 1 + -(-missing // (self.chunk_frames - self.overlap_frames))

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, from 0 (the first clip) to `num_chunks - 1`."""
        if not 0 <= index < self.num_chunks:
            raise SettingsError(f"chunk {index} is not in this plan of {self.num_chunks} chunks (0 is the first)")
        step = self.chunk_frames - self.overlap_frames
        start = self.first_frames + (index - 1) * step if index else 0
        whole = start + (step if index else self.first_frames)  # untrimmed: a longer video has the same chunks
        return Chunk(
            index=index,
            start=start,
            stop=min(whole, self.num_frames),
            num_frames=self.chunk_frames if index else self.first_frames,
            overlap_frames=self.overlap_frames if index else 0,
            seed=dict(self.drawn).get(index, self.script.seed(self.seed, index, whole)),
            prompt=self.script.value("prompts", None, index, whole),
            cam_strength=self.script.value("cam_strength", 1.0, index, whole),
            anchor_strength=self.script.value("anchor_strength", 1.0, index, whole),
        )

    def with_seed(self, index: int, seed: int) -> ChunkPlan:
        """The plan with another seed for one chunk."""
        return replace(self, drawn=(*self.drawn, (index, seed)))

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self.chunk(index) for index in range(self.num_chunks))
