"""The two steps of the loop, pure functions of the state: the first chunk, and the next one.

The loop node, the single-step node and a host's own loop nodes all call these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from ..errors import SettingsError
from .plan import VideoPlan
from .refusals import refuse_cues
from .sampler import ChunkSampler
from .script import CUES
from .state import Anchor, ChunkResult, VideoState


def start_video(plan: VideoPlan, sampler: ChunkSampler) -> tuple[VideoState, Tensor]:
    """Make chunk 0, or take the frames that were given; the state after it and its frames `[F, 3, H, W]`."""
    beginning = plan.beginning
    if beginning.frames is not None:
        first = ChunkResult(beginning.frames)
    else:
        first = sampler.first_chunk(plan.chunk(0), plan.size, beginning.image)
    anchor = pick_anchor(first.frames, beginning.anchor_frame) if beginning.anchor is None else beginning.anchor
    return state_after_first(plan, first, anchor, sampler), first.frames


def state_after_first(plan: VideoPlan, first: ChunkResult, anchor: Tensor, sampler: ChunkSampler) -> VideoState:
    """State after chunk 0; the anchor `[n, 3, H, W]` is embedded only when the plan needs more chunks."""
    embedding = sampler.embed_anchor(anchor) if plan.num_chunks > 1 else None
    carry = {**first.carry, **sampler.carry(first)}
    tail = sampler.hand_off(plan, None, first)
    return VideoState(plan, Anchor(anchor.clone(), embedding), tail, num_chunks=1, carry=carry)


def pick_anchor(first_chunk: Tensor, index: int) -> Tensor:
    """Frame `index` of the first chunk as an anchor, `[1, 3, H, W]`; officially the last frame of the overlap.

    Raises `SettingsError` when there is no such frame.
    """
    if not 0 <= index < first_chunk.shape[0]:
        raise SettingsError(
            f"anchor frame {index} is not in the first chunk of {first_chunk.shape[0]} frames; "
            f"choose 0 to {first_chunk.shape[0] - 1}"
        )
    return first_chunk[index : index + 1]


def continue_video(state: VideoState, sampler: ChunkSampler) -> tuple[VideoState, Tensor]:
    """Make the next chunk; the new state and all frames the chunk adds, `[num_frames - overlap_frames, 3, H, W]`.

    The last chunk may add more than the video asks for: `chunk.new_frames` says how many count. Whole chunks are handed
    on, so a video can be made longer later without making its last chunk again.

    Raises:
        SettingsError: the video is complete, or the plan sets something for this chunk that `sampler`, which need not
            be the one that accepted the plan, cannot follow.
    """
    chunk = state.next_chunk
    refuse_cues(sampler.family, sampler.follows, chunk.cues(*CUES))
    result = sampler.next_chunk(chunk, state)
    tail = sampler.hand_off(state.plan, state.tail, result)
    carry = {**state.carry, **result.carry}
    state = replace(state, tail=tail, num_chunks=state.num_chunks + 1, carry=carry, lead=result.lead)
    return state, result.frames


def video_chunks(state: VideoState, sampler: ChunkSampler) -> Iterator[tuple[VideoState, Tensor]]:
    """Every remaining chunk of the video, one after the other."""
    while not state.is_complete:
        state, frames = continue_video(state, sampler)
        yield state, frames
