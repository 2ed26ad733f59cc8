"""A chunk sampler without a network: what it paints depends on every bit of what a chunk may depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from streaming_core.loop.chunk import Chunk
from streaming_core.loop.state import Anchor


@dataclass(frozen=True)
class PaintedChunks:
    """As the loop sees a family. `calls` gets the index of every chunk that is painted."""

    calls: list[int] = field(default_factory=list)
    weights: str = "painted"
    style: str = "noise"

    kind = "painted"
    multiple_px = 8
    follows = ("cam_strength",)

    def settings(self) -> dict:
        return {"models": {"model": self.weights}, "style": self.style}

    def chunk_settings(self, chunk: Chunk) -> dict:
        return chunk.changed("cam_strength") if chunk.index else {}

    def with_progress(self, progress) -> PaintedChunks:
        return self

    def steps(self, chunk: Chunk) -> int:
        return 2

    def embed_anchor(self, frame: Tensor) -> Tensor:
        return frame.mean(dim=(-2, -1), keepdim=True)

    def _noise(self, chunk: Chunk, height: int, width: int) -> Tensor:
        self.calls.append(chunk.index)
        return torch.rand(chunk.num_frames, 3, height, width, generator=chunk.generator())

    def sample_first_clip(self, chunk: Chunk, image: Tensor) -> Tensor:
        return 0.5 * self._noise(chunk, *image.shape[-2:]) + 0.5 * image

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        painted = 0.5 * self._noise(chunk, *tail.shape[-2:]) + 0.1 * anchor.embedding
        return painted + 0.4 * chunk.cam_strength * tail.mean(dim=0, keepdim=True)

    def decode(self, latents: Tensor, first: int) -> Tensor:
        return latents[first:]
