"""The chunk loop of every model family: one pure step `(state, sampler) -> (state, new frames)`.

The loop node, the single-step node and a host's own loop nodes all call `continue_film`. What differs between families
(CAM, APM, prompts, latents) is behind `ChunkSampler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .chunks import Chunk, ChunkPlan
from .errors import SettingsError


@dataclass(frozen=True)
class Anchor:
    """The frame that stands for the look of the whole film.

    `frame` `[1, 3, H, W]`; `embedding`: what `ChunkSampler.embed_anchor` made of it, computed once per film.
    """

    frame: Tensor
    embedding: Any = None


class ChunkSampler(Protocol):
    """What a model family brings to the loop. Frames are `[F, 3, H, W]` in [0, 1]; latents are the model's own."""

    def embed_anchor(self, frame: Tensor) -> Any:
        """Whatever of the anchor `[1, 3, H, W]` does not change from chunk to chunk (a CLIP embedding, say)."""

    def sample_chunk(self, chunk: Chunk, control_frames: Tensor, anchor: Anchor) -> Tensor:
        """Latents of all `chunk.num_frames` frames, the first `chunk.overlap_frames` re-creating `control_frames`."""

    def decode(self, latents: Tensor, first: int) -> Tensor:
        """Frames `first..` of `latents`."""


@dataclass(frozen=True)
class FilmState:
    """All that is carried from chunk to chunk.

    `tail`: the last frames of the film so far, at most `plan.overlap_frames`; `num_chunks`: chunks made so far, the
    first clip included.
    """

    plan: ChunkPlan
    anchor: Anchor
    tail: Tensor
    num_chunks: int

    @property
    def is_complete(self) -> bool:
        return self.num_chunks >= self.plan.num_chunks

    @property
    def next_chunk(self) -> Chunk:
        """The chunk that `continue_film` makes; raises `SettingsError` when the film is complete."""
        if self.is_complete:
            raise SettingsError(f"the film already has its {self.plan.num_frames} frames; plan a longer one to go on")
        return self.plan.chunk(self.num_chunks)


def start_film(plan: ChunkPlan, first_clip: Tensor, anchor_frame: Tensor, sampler: ChunkSampler) -> FilmState:
    """State after the first clip `[F, 3, H, W]`; the anchor is embedded only when the plan needs more chunks."""
    anchor = Anchor(anchor_frame.clone(), sampler.embed_anchor(anchor_frame) if plan.num_chunks > 1 else None)
    return FilmState(plan, anchor, first_clip[-plan.overlap_frames :].clone(), num_chunks=1)


def pick_anchor(first_clip: Tensor, index: int) -> Tensor:
    """Frame `index` of the first clip as an anchor, `[1, 3, H, W]`; officially the last frame of the overlap.

    Raises `SettingsError` when the clip has no such frame.
    """
    if not 0 <= index < first_clip.shape[0]:
        raise SettingsError(
            f"anchor frame {index} is not in the first clip of {first_clip.shape[0]} frames; "
            f"choose 0 to {first_clip.shape[0] - 1}"
        )
    return first_clip[index : index + 1]


def continue_film(state: FilmState, sampler: ChunkSampler) -> tuple[FilmState, Tensor]:
    """Make the next chunk; the new state and all frames the chunk adds, `[num_frames - overlap_frames, 3, H, W]`.

    The last chunk may add more than the film asks for: `chunk.new_frames` says how many count. Whole chunks are handed
    on, so a film can be made longer later without making its last chunk again.
    """
    chunk = state.next_chunk
    latents = sampler.sample_chunk(chunk, state.tail, state.anchor)
    frames = sampler.decode(latents, chunk.overlap_frames)
    tail = torch.cat([state.tail, frames])[-state.plan.overlap_frames :].clone()
    return replace(state, tail=tail, num_chunks=state.num_chunks + 1), frames


def film_chunks(state: FilmState, sampler: ChunkSampler) -> Iterator[tuple[FilmState, Tensor]]:
    """Every remaining chunk of the film, one after the other."""
    while not state.is_complete:
        state, frames = continue_film(state, sampler)
        yield state, frames
