"""A chunk sampler without a network: what it paints depends on every bit of what a chunk may depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from streaming_core.loop.chunk import Chunk
from streaming_core.loop.sampler import ChunkSampler
from streaming_core.loop.state import Anchor, ChunkResult


@dataclass(frozen=True)
class PaintedChunks(ChunkSampler):
    """As the loop sees a family. `calls` gets the index of every chunk that is painted."""

    calls: list[int] = field(default_factory=list)
    weights: str = "painted"
    style: str = "noise"

    family = "painted"
    size_multiple = 8
    follows = frozenset({"cam_strength"})

    def identity(self) -> dict:
        return {"model": self.weights, "style": self.style}

    def chunk_identity(self, chunk: Chunk) -> dict:
        return super().chunk_identity(chunk) if chunk.index else {}

    def steps(self, chunk: Chunk) -> int:
        return 2

    def embed_anchor(self, frame: Tensor) -> Tensor:
        return frame.mean(dim=(-2, -1), keepdim=True)

    def _noise(self, chunk: Chunk, height: int, width: int) -> Tensor:
        self.calls.append(chunk.index)
        return torch.rand(chunk.num_frames, 3, height, width, generator=chunk.generator())

    def first_chunk(self, chunk: Chunk, size: tuple[int, int], image: Tensor | None) -> ChunkResult:
        return ChunkResult(0.5 * self._noise(chunk, *size) + 0.5 * image)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        painted = 0.5 * self._noise(chunk, *tail.shape[-2:]) + 0.1 * anchor.embedding
        return painted + 0.4 * chunk.cam_strength * tail.mean(dim=0, keepdim=True)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return latents[chunk.overlap_frames :]
