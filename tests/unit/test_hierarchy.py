"""Keyframes and gaps: how many there are, that they add up to the video, and what each is made with."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.hierarchy import GapPlan, Hierarchy, level_seed
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.script import Script, parse_cues, parse_positive_numbers

STRIDES, LEVELS = range(2, 9), range(1, 4)


def filled(num_keyframes: int, stride: int, levels: int, num_frames: int) -> list[Fraction]:
    """Times of the frames, in keyframes, by filling each gap in turn as a person would with a pencil."""
    times = [Fraction(index) for index in range(num_keyframes)]
    for _ in range(levels):
        pairs = list(zip(times, times[1:], strict=False))
        between = [[left + (right - left) * part / stride for part in range(stride)] for left, right in pairs]
        times = [*(time for gap in between for time in gap), times[-1]]
    return times[:num_frames]


@pytest.mark.parametrize(("stride", "levels"), list(product(STRIDES, LEVELS)))
def test_every_length_is_exact(stride, levels):
    for num_frames in range(1, 201):
        counts = Hierarchy(num_frames, stride, levels)
        step = stride**levels
        times = filled(counts.num_keyframes, stride, levels, num_frames)
        assert times == [Fraction(frame, step) for frame in range(num_frames)]
        assert counts.frames(levels) == num_frames
        for level in range(1, levels + 1):
            whole = 1 + counts.gaps(level) * stride
            assert whole - stride < counts.frames(level) <= whole, "the last gap is needed, and it is enough"
            plan = GapPlan(counts.frames(level), stride, stride + 1, level=level)
            assert plan.num_gaps == counts.gaps(level)
            shown = [frame for chunk in plan.chunks for frame in range(chunk.start, chunk.stop)]
            if plan.num_gaps:
                assert shown == list(range(counts.frames(level))), "every frame once"


@given(st.integers(1, 10_000), st.integers(2, 64), st.integers(1, 4))
def test_fewest_keyframes_that_reach_the_end(num_frames, stride, levels):
    counts = Hierarchy(num_frames, stride, levels)
    reach = Hierarchy.of_keyframes(counts.num_keyframes, stride, levels)
    assert num_frames <= reach.num_frames < num_frames + counts.step
    assert reach.num_keyframes == counts.num_keyframes
    for level in range(levels):
        finer = Hierarchy(counts.frames(levels - 1), stride, levels - 1) if levels > 1 else None
        assert finer is None or finer.frames(min(level, levels - 1)) == counts.frames(level), "a level is a video too"


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(2, 9), st.integers(1, 3))
def test_a_longer_video_has_the_same_gaps_and_more(one, two, stride, levels):
    short, long = (Hierarchy(frames, stride, levels) for frames in sorted((one, two)))
    for level in range(1, levels + 1):
        assert short.gaps(level) <= long.gaps(level)


@pytest.mark.parametrize("num_frames", [64, 256, 1000, 1024, 4096])
def test_the_published_counts_are_one_case(num_frames):
    """LVDM: 4 frames per latent, keyframe latents at stride 4 by chunks of 4 that hold 1 (reference: lvdm, 6.1)."""
    latents = num_frames // 4
    base = -(-(latents + 3) // 4)
    steps = -(-(base - 4) // 3)
    counts = Hierarchy(latents, 4)
    assert counts.num_keyframes == base
    assert VideoPlan(base, 4, 1).num_chunks == 1 + steps
    whole = VideoPlan(base, 4, 1)
    made = whole.first_frames + (whole.num_chunks - 1) * 3
    assert made == 4 + 3 * steps
    assert Hierarchy.of_keyframes(made, 4).num_frames == 4 * (made - 1) + 1
    if num_frames == 1024:
        assert (base, steps) == (65, 21)


def test_rates_are_exact():
    counts = Hierarchy(100, 4, 2)
    assert counts.rate(Fraction(24000, 1001)) == Fraction(1500, 1001)
    assert counts.rate(Fraction(24), 1) == 6 and counts.rate(Fraction(24), 2) == 24


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((0, 2, 1), "at least 1 frame"), ((5, 1, 1), "stride must be 2 or more"), ((5, 2, 0), "levels must be 1 or more")],
)
def test_what_cannot_be_is_refused(numbers, words):
    with pytest.raises(SettingsError, match=words):
        Hierarchy(*numbers)


def keyframe_plan(**cues) -> VideoPlan:
    fps = Fraction(3)
    return VideoPlan(20, 8, 3, fps=fps, script=Script(**cues, fps=fps))  # chunks: 0-7, 8-12, 13-17, 18-19


@pytest.mark.parametrize("level", [1, 2])
def test_a_gap_has_the_prompt_of_the_chunk_that_it_leads_to(level):
    plan = keyframe_plan(prompts=parse_cues("0: a dog\n1: a cat\n3: a bird"))
    stride, width = 2, 2 ** (level - 1)
    gaps = GapPlan((20 - 1) * stride**level + 1, stride, 3, level=level, keyframes=plan)
    assert gaps.num_gaps == 19 * width
    for index, chunk in enumerate(gaps.chunks):
        keyframe = index // width + 1
        expected = "a dog" if keyframe < 8 else "a cat" if keyframe < 18 else "a bird"
        assert chunk.prompt == expected, index


def test_motion_counts_from_frame_to_frame():
    plan = keyframe_plan(motion=parse_positive_numbers("1: 8", "motion"))
    gaps = GapPlan(77, 4, 5, keyframes=plan)
    assert [gaps.chunk(index).motion for index in (0, 6, 7, 18)] == [None, None, 32.0, 32.0]
    assert GapPlan(77, 2, 3, level=2, keyframes=plan).chunk(37).motion == 32.0


def test_a_gap_is_the_same_however_it_is_reached():
    gaps = GapPlan(41, 4, 9, seed=5)
    chunk = gaps.chunk(7)
    assert (chunk.start, chunk.stop, chunk.num_frames, chunk.seed) == (29, 33, 9, 5)
    assert gaps.with_seed(7, 8).chunk(7).seed == 8 and gaps.with_seed(7, 8).chunk(6) == gaps.chunk(6)
    assert GapPlan(30, 4, 9, seed=5).chunk(7).generator().initial_seed() == chunk.generator().initial_seed()
    with pytest.raises(SettingsError, match="gap 10 is not in this video of 10 gaps"):
        gaps.chunk(10)


def test_levels_have_seeds_of_their_own():
    seeds = [level_seed(5, level) for level in (1, 2, 3)]
    assert seeds[0] == 5 and len(set(seeds)) == 3 and all(0 <= seed < 2**64 for seed in seeds)


def test_a_plan_comes_back_from_its_plain_values():
    plan = GapPlan(41, 4, 9, 5, Fraction(24000, 1001), 2, keyframe_plan(prompts=parse_cues("0: a dog\n00:02: a cat")))
    back = GapPlan.from_dict(plan.to_dict())
    assert back == plan and back.chunks == plan.chunks
    assert GapPlan.from_dict(GapPlan(5, 4, 5).to_dict()) == GapPlan(5, 4, 5)


def test_the_chunk_that_adds_a_frame():
    plan = VideoPlan(40, 8, 3, given_frames=11)
    for frame in range(40):
        chunk = plan.chunk_with(frame)
        assert chunk.start <= frame < chunk.stop
    with pytest.raises(SettingsError, match="frame 40 is not in this video of 40 frames"):
        plan.chunk_with(40)
