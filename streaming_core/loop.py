"""The chunk loop of every model family: one pure step `(state, sampler) -> (state, new frames)`.

The loop node, the single-step node and a host's own loop nodes all call `continue_film`. What differs between families
(CAM, APM, prompts, latents) is behind `ChunkSampler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .chunks import Chunk, ChunkPlan
from .errors import SettingsError


class ChunkSampler(Protocol):
    """What a model family brings to the loop. Frames are `[F, 3, H, W]` in [0, 1]; latents are the model's own."""

    def sample_chunk(self, chunk: Chunk, control_frames: Tensor, anchor: Tensor) -> Tensor:
        """Latents of all `chunk.num_frames` frames, the first `chunk.overlap_frames` re-creating `control_frames`."""

    def decode(self, latents: Tensor, first: int) -> Tensor:
        """Frames `first..` of `latents`."""


@dataclass(frozen=True)
class FilmState:
    """All that is carried from chunk to chunk.

    `tail`: the last frames of the film so far, at most `plan.overlap_frames`; `anchor`: one frame, `[1, 3, H, W]`;
    `num_chunks`: chunks made so far, the first clip included.
    """

    plan: ChunkPlan
    anchor: Tensor
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


def start_film(plan: ChunkPlan, first_clip: Tensor, anchor_index: int) -> tuple[FilmState, Tensor]:
    """State after the first clip `[F, 3, H, W]`, and those of its frames that belong to the film.

    `anchor_index`: which frame of the first clip anchors the whole film; officially the last of the overlap.
    """
    if not 0 <= anchor_index < first_clip.shape[0]:
        raise SettingsError(
            f"anchor frame {anchor_index} is not in the first clip of {first_clip.shape[0]} frames; "
            f"choose 0 to {first_clip.shape[0] - 1}"
        )
    anchor = first_clip[anchor_index : anchor_index + 1].clone()
    tail = first_clip[-plan.overlap_frames :].clone()
    return FilmState(plan, anchor, tail, num_chunks=1), first_clip[: plan.num_frames]


def continue_film(state: FilmState, sampler: ChunkSampler) -> tuple[FilmState, Tensor]:
    """Make the next chunk; the new state and the film's new frames, `[chunk.new_frames, 3, H, W]`.

    The tail is always taken from whole chunks, so trimming the last one to the film's length changes nothing before it.
    """
    chunk = state.next_chunk
    latents = sampler.sample_chunk(chunk, state.tail, state.anchor)
    frames = sampler.decode(latents, chunk.overlap_frames)
    tail = torch.cat([state.tail, frames])[-state.plan.overlap_frames :].clone()
    return replace(state, tail=tail, num_chunks=state.num_chunks + 1), frames[: chunk.new_frames]


def film_chunks(state: FilmState, sampler: ChunkSampler) -> Iterator[tuple[FilmState, Tensor]]:
    """Every remaining chunk of the film, one after the other."""
    while not state.is_complete:
        state, frames = continue_film(state, sampler)
        yield state, frames
