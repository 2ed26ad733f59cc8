"""The chunk loop of every model family: one pure step `(state, sampler) -> (state, new frames)`.

The loop node, the single-step node and a host's own loop nodes all call `continue_video`. What differs between families
(CAM, APM, prompts, frames or latents as hand-off) is behind `ChunkSampler`; what is laid around any family (color
anchoring, a perturbed hand-off) is a chunk sampler too that replaces `make_clip`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import SettingsError
from .chunk import Chunk, ChunkPlan


@dataclass(frozen=True)
class Anchor:
    """The frame that stands for the look of the whole video.

    `frame` `[1, 3, H, W]`; `embedding`: what `ChunkSampler.embed_anchor` made of it, computed once per video.
    """

    frame: Tensor
    embedding: Any = None


@dataclass(frozen=True)
class Clip:
    """What one chunk adds: `frames` `[n, 3, H, W]`, and the latents of all frames of its model call, where it has them.

    `memory`: what later chunks have to know of this one besides the tail, small tensors by name.
    """

    frames: Tensor
    latents: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class ChunkSampler(Protocol):
    """What a model family brings to the loop. Frames are `[F, 3, H, W]` in [0, 1]; latents are the model's own.

    A family may also have

    * `hand_off(plan, tail, clip) -> Tensor`: the new tail from the one before (None for the first clip), for families
      that continue latents; without it the tail is the last `plan.overlap_frames` frames;
    * `decode_after(latents, chunk, tail) -> Tensor`: the new frames of a chunk, decoded as the continuation of `tail`,
      for temporal decoders; without it `decode` is called;
    * `make_clip(chunk, state) -> Clip` in place of sampling and decoding, and `remember(clip) -> dict`, what later
      chunks have to know of the first clip.
    """

    def embed_anchor(self, frame: Tensor) -> Any:
        """Whatever of the anchor `[1, 3, H, W]` does not change from chunk to chunk (a CLIP embedding, say)."""

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        """Latents of all `chunk.num_frames` frames, the first `chunk.overlap_frames` of them those of `tail`."""

    def decode(self, latents: Tensor, first: int) -> Tensor:
        """Frames `first..` of `latents`."""


@dataclass(frozen=True)
class VideoState:
    """All that is carried from chunk to chunk.

    `tail`: what the next chunk continues, frames or latents as the sampler asks for: the last frames of the video so
    far, at most `plan.overlap_frames`, or its last latents. `num_chunks`: chunks made so far, the first clip included.
    `memory`: what samplers noted of earlier chunks (`Clip.memory`), small tensors by name.
    """

    plan: ChunkPlan
    anchor: Anchor
    tail: Tensor
    num_chunks: int
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.num_chunks >= self.plan.num_chunks

    @property
    def next_chunk(self) -> Chunk:
        """The chunk that `continue_video` makes; raises `SettingsError` when the video is complete."""
        if self.is_complete:
            raise SettingsError(
                f"the video already has its {self.plan.num_frames} frames; plan a longer one to continue"
            )
        return self.plan.chunk(self.num_chunks)


def start_video(plan: ChunkPlan, first_clip: Tensor | Clip, anchor_frame: Tensor, sampler: ChunkSampler) -> VideoState:
    """State after the first clip `[F, 3, H, W]`; the anchor is embedded only when the plan needs more chunks."""
    clip = as_clip(first_clip)
    anchor = Anchor(anchor_frame.clone(), sampler.embed_anchor(anchor_frame) if plan.num_chunks > 1 else None)
    remember = getattr(sampler, "remember", None)
    memory = {**clip.memory, **(remember(clip) if remember else {})}
    return VideoState(plan, anchor, _hand_off(sampler, plan, None, clip), num_chunks=1, memory=memory)


def as_clip(first_clip: Tensor | Clip) -> Clip:
    """Frames `[F, 3, H, W]` alone, or with the latents that they were decoded from."""
    return first_clip if isinstance(first_clip, Clip) else Clip(first_clip)


def _hand_off(sampler: ChunkSampler, plan: ChunkPlan, tail: Tensor | None, clip: Clip) -> Tensor:
    """What the chunk after `clip` continues."""
    own = getattr(sampler, "hand_off", None)
    if own is not None:
        return own(plan, tail, clip)
    frames = clip.frames if tail is None else torch.cat([tail, clip.frames])
    return frames[-plan.overlap_frames :].clone()


def make_clip(sampler: ChunkSampler, chunk: Chunk, state: VideoState) -> Clip:
    """Sample a chunk that continues `state` and decode what it adds."""
    own = getattr(sampler, "make_clip", None)
    if own is not None:
        return own(chunk, state)
    latents = sampler.sample_chunk(chunk, state.tail, state.anchor)
    return Clip(decode_new(sampler, latents, chunk, state), latents)


def decode_new(sampler: ChunkSampler, latents: Tensor, chunk: Chunk, state: VideoState) -> Tensor:
    """The frames that a chunk adds, from the latents of its model call."""
    after = getattr(sampler, "decode_after", None)
    if after is not None:
        return after(latents, chunk, state.tail)
    return sampler.decode(latents, chunk.overlap_frames)


def pick_anchor(first_clip: Tensor, index: int) -> Tensor:
    """Frame `index` of the first clip as an anchor, `[1, 3, H, W]`; officially the last frame of the overlap.

    Raises `SettingsError` when the clip has no such frame.
    """
    if not 0 <= index < first_clip.shape[0]:
        raise SettingsError(
            f"anchor frame {index} is not in the first chunk of {first_clip.shape[0]} frames; "
            f"choose 0 to {first_clip.shape[0] - 1}"
        )
    return first_clip[index : index + 1]


def continue_video(state: VideoState, sampler: ChunkSampler) -> tuple[VideoState, Tensor]:
    """Make the next chunk; the new state and all frames the chunk adds, `[num_frames - overlap_frames, 3, H, W]`.

    The last chunk may add more than the video asks for: `chunk.new_frames` says how many count. Whole chunks are handed
    on, so a video can be made longer later without making its last chunk again.
    """
    chunk = state.next_chunk
    clip = make_clip(sampler, chunk, state)
    tail = _hand_off(sampler, state.plan, state.tail, clip)
    memory = {**state.memory, **clip.memory}
    return replace(state, tail=tail, num_chunks=state.num_chunks + 1, memory=memory), clip.frames


def video_chunks(state: VideoState, sampler: ChunkSampler) -> Iterator[tuple[VideoState, Tensor]]:
    """Every remaining chunk of the video, one after the other."""
    while not state.is_complete:
        state, frames = continue_video(state, sampler)
        yield state, frames
