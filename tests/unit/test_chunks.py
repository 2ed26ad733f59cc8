"""Frame arithmetic: whatever the lengths, the chunks tile the video exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.plan import Beginning, VideoPlan

LENGTHS = {"num_frames": 100, "chunk_frames": 25, "overlap_frames": 7}


@st.composite
def plans(draw):
    chunk_frames = draw(st.integers(2, 40))
    overlap = draw(st.integers(1, chunk_frames - 1))
    first = draw(st.integers(overlap, 60))
    return VideoPlan(
        draw(st.integers(1, 500)), chunk_frames, overlap, draw(st.integers(0, 2**64 - 1)), given_frames=first
    )


@given(plans())
def test_chunks_tile_the_video(plan):
    covered = [frame for chunk in plan.chunks for frame in range(chunk.start, chunk.stop)]
    assert covered == list(range(plan.num_frames))
    assert all(chunk.new_frames >= 1 for chunk in plan.chunks)


@given(plans())
def test_no_chunk_is_made_in_vain(plan):
    made_without_last = plan.first_frames + (plan.num_chunks - 2) * (plan.chunk_frames - plan.overlap_frames)
    assert plan.num_chunks == 1 or made_without_last < plan.num_frames


def test_official_counts():
    # 100 frames by chunks of 25 with 7 overlapping: five rounds (reference: streamingsvd, section 1).
    plan = VideoPlan(100, 25, 7)
    assert plan.num_chunks == 6
    assert (plan.chunk(5).start, plan.chunk(5).stop) == (97, 100)
    assert VideoPlan(25, 25, 7).num_chunks == 1


@given(plans(), st.integers(1, 200))
def test_a_longer_video_has_the_same_beginning(plan, more):
    longer = replace(plan, num_frames=plan.num_frames + more)
    for short, long in zip(plan.chunks[:-1], longer.chunks, strict=False):
        assert short == long


@pytest.mark.parametrize(
    "values, words",
    [
        ({"num_frames": 0}, "num_frames = 0"),
        ({"overlap_frames": 25}, "1 to 24"),
        ({"overlap_frames": 0}, "got 0"),
        ({"given_frames": 5}, "5 frames but 7"),
        ({"beginning": Beginning(frames=torch.zeros(0, 3, 8, 8))}, "empty"),
    ],
)
def test_impossible_plans_say_why(values, words):
    with pytest.raises(SettingsError, match=words):
        VideoPlan(**{**LENGTHS, **values})


def test_a_chunks_noise_depends_on_seed_and_index_only():
    plan = VideoPlan(100, 25, 7, seed=5)

    def draw(plan, index):
        return torch.randn(8, generator=plan.chunk(index).generator())

    assert torch.equal(draw(plan, 3), draw(VideoPlan(79, 25, 7, seed=5), 3))
    assert not torch.equal(draw(plan, 3), draw(plan, 2))
    assert not torch.equal(draw(plan, 3), draw(VideoPlan(100, 25, 7, seed=6), 3))


def test_chunks_outside_the_plan_are_refused():
    with pytest.raises(SettingsError, match="chunk 6 is not in this plan of 6"):
        VideoPlan(100, 25, 7).chunk(6)
