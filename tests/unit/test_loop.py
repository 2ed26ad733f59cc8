"""The chunk loop with a sampler of plain arithmetic, so every frame tells where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.sampler import ChunkSampler
from streaming_core.loop.script import Script, parse_cues
from streaming_core.loop.state import ChunkResult
from streaming_core.loop.steps import continue_video, pick_anchor, state_after_first, video_chunks


@dataclass
class Counting(ChunkSampler):
    """Continues a video whose frame t holds the number t; notes what it was given."""

    controls: list = field(default_factory=list)
    embedded: int = 0

    family = "counting"
    size_multiple = 1

    def identity(self):
        return {}

    def steps(self, chunk):
        return 1

    def first_chunk(self, chunk, size, image):
        return ChunkResult(numbered(chunk.num_frames))

    def embed_anchor(self, frame):
        self.embedded += 1
        return frame.mean()

    def sample_chunk(self, chunk, control_frames, anchor):
        self.controls.append(control_frames.flatten().tolist())
        first = control_frames.flatten()[0]
        return first + torch.arange(chunk.num_frames).view(-1, 1, 1, 1)

    def decode(self, latents, chunk, tail):
        return latents[chunk.overlap_frames :]


def numbered(count):
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1)


lengths = st.integers(2, 20).flatmap(
    lambda chunk: st.tuples(st.just(chunk), st.integers(1, chunk - 1), st.integers(1, 120))
)


@given(lengths)
def test_the_video_goes_on_without_gap_or_repeat(values):
    chunk_frames, overlap, num_frames = values
    sampler = Counting()
    plan = VideoPlan(num_frames, chunk_frames, overlap)
    state = state_after_first(plan, ChunkResult(numbered(chunk_frames)), numbered(1), sampler)
    video = [numbered(chunk_frames)[:num_frames]]
    while not state.is_complete:
        chunk = state.next_chunk
        state, frames = continue_video(state, sampler)
        video.append(frames[: chunk.new_frames])
    assert torch.cat(video).flatten().tolist() == list(range(num_frames))
    assert all(len(control) == overlap for control in sampler.controls)
    assert sampler.embedded == (1 if plan.num_chunks > 1 else 0)


def test_a_step_changes_neither_its_state_nor_what_follows_from_it():
    plan = VideoPlan(40, 8, 3)
    state = state_after_first(plan, ChunkResult(numbered(8)), numbered(1), Counting())
    tail = state.tail.clone()
    once, first = continue_video(state, Counting())
    again, second = continue_video(state, Counting())
    assert torch.equal(state.tail, tail)
    assert torch.equal(first, second) and torch.equal(once.tail, again.tail)
    assert len(list(video_chunks(state, Counting()))) == plan.num_chunks - 1


def test_the_tail_owns_its_memory():
    clip = numbered(8)
    state = state_after_first(VideoPlan(40, 8, 3), ChunkResult(clip), clip[:1], Counting())
    clip.zero_()
    assert state.tail.flatten().tolist() == [5.0, 6.0, 7.0]


def test_a_complete_video_says_so():
    state = state_after_first(VideoPlan(5, 8, 3), ChunkResult(numbered(8)), numbered(1), Counting())
    with pytest.raises(SettingsError, match="already has its 5 frames"):
        continue_video(state, Counting())


def test_a_plan_is_checked_once_per_prompt():
    looked_at = []

    class Prompted(Counting):
        follows = frozenset({"prompt"})

        def chunk_identity(self, chunk):
            looked_at.append((chunk.index, chunk.prompt))
            return super().chunk_identity(chunk)

    script = Script(prompts=parse_cues("1: a\n3: b"))
    Prompted().accept(VideoPlan(40, 8, 3, script=script, height=4, width=4, beginning=Beginning(numbered(1))))
    assert sorted(looked_at) == [(0, None), (1, "a"), (3, "b")]


def test_anchors_outside_the_clip_are_refused():
    with pytest.raises(SettingsError, match="anchor frame 8 .* 0 to 7"):
        pick_anchor(numbered(8), 8)
