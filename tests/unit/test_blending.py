"""Windows, handovers and the join of randomized blending."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.windows.handovers import RecordedHandovers, SeededHandovers, first_owned, official_handovers
from streaming_core.windows.plan import Window, keyframes, overlaps, plan_official_windows, plan_windows
from tests.windows_oracle import joined, ownership


@st.composite
def layouts(draw, max_frames: int = 500):
    window = draw(st.integers(2, 64))
    return draw(st.integers(1, max_frames)), window, draw(st.integers(0, window - 1))


seeds, steps = st.integers(0, 2**64 - 1), st.integers(0, 999)


@given(layouts())
def test_windows_cover_the_video(layout):
    num_frames, window, overlap = layout
    windows = plan_windows(num_frames, window, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_frames
    assert all(len(w) == min(window, num_frames) for w in windows)
    assert all(a.start < b.start for a, b in zip(windows, windows[1:], strict=False))
    assert all(overlap <= shared < window for shared in overlaps(windows))
    # As few windows as their length and overlap allow.
    assert len(windows) == max(1, -(-(num_frames - overlap) // (window - overlap)))
    assert all(a.start + window - overlap == b.start for a, b in zip(windows, windows[1:-1], strict=False))


@given(layouts(), seeds, steps)
def test_every_frame_is_owned_once_by_a_window_that_has_it(layout, seed, step):
    windows = plan_windows(*layout)
    offsets = SeededHandovers(seed).offsets(windows, step)
    assert len(offsets) == len(windows) - 1
    for window, before, offset in zip(windows[1:], windows, offsets, strict=False):
        handover = window.start + offset
        assert window.start <= handover <= before.stop
    owned = ownership(windows, offsets)
    owners = [k for k, own in enumerate(owned) for _ in range(own.start, own.stop)]
    assert len(owners) == layout[0] and owned[0].start == 0 and owned[-1].stop == layout[0]
    assert owners == sorted(owners)
    for window, own in zip(windows, owned, strict=True):
        assert not len(own) or window.start <= own.start < own.stop <= window.stop


@given(layouts(), seeds, steps)
def test_ownership_is_what_painting_windows_over_each_other_gives(layout, seed, step):
    """The official loop writes window after window from its handover on; the last write to a frame stays."""
    windows = plan_windows(*layout)
    offsets = SeededHandovers(seed).offsets(windows, step)
    painted = [-1] * layout[0]
    for k, (window, offset) in enumerate(zip(windows, (0, *offsets), strict=True)):
        painted[window.start + offset : window.stop] = [k] * (len(window) - offset)
    owned = ownership(windows, offsets)
    assert painted == [k for k, own in enumerate(owned) for _ in range(len(own))]


@given(layouts(), seeds, steps)
def test_handovers_are_a_pure_function_of_seed_step_and_boundary(layout, seed, step):
    num_frames, window, overlap = layout
    windows = plan_windows(num_frames, window, overlap)
    handovers = SeededHandovers(seed)
    assert handovers.offsets(windows, step) == SeededHandovers(seed).offsets(windows, step)
    # A longer video has the same handovers where it has the same windows.
    longer = plan_windows(num_frames + window, window, overlap)
    same = [k for k, (a, b) in enumerate(zip(windows, longer, strict=False)) if a == b]
    whole = len(same) - 1
    assert handovers.offsets(windows, step)[: max(0, whole)] == handovers.offsets(longer, step)[: max(0, whole)]


@given(layouts(max_frames=200), seeds, steps, st.integers(0, 4))
def test_the_join_copies_every_frame_from_its_owner(layout, seed, step, dim):
    windows = plan_windows(*layout)
    offsets = SeededHandovers(seed).offsets(windows, step)
    shape = [2, 1, 3, 2, 1]
    parts = []
    for k, window in enumerate(windows):
        shape[dim] = len(window)
        frames = torch.arange(window.start, window.stop).view([-1 if axis == dim else 1 for axis in range(5)])
        parts.append((1000 * k + frames).expand(shape).float())
    video = joined(parts, windows, offsets, dim).movedim(dim, 0)
    assert len(video) == layout[0] and not video.isnan().any()
    for k, own in enumerate(ownership(windows, offsets)):
        for frame in range(own.start, own.stop):
            assert (video[frame] == 1000 * k + frame).all()


@given(layouts(max_frames=64), seeds)
def test_one_window_changes_nothing(layout, seed):
    num_frames, window, overlap = min(layout[0], layout[1]), *layout[1:]
    windows = plan_windows(num_frames, window, overlap)
    assert windows == (Window(0, num_frames),) and SeededHandovers(seed).offsets(windows, 3) == ()
    video = torch.randn(num_frames, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(joined([video], windows, (), 0), video)


def test_handovers_are_uniform_over_the_whole_overlap():
    windows = plan_windows(90, 38, 12)
    drawn = torch.tensor([SeededHandovers(7).offsets(windows, step) for step in range(4000)])
    counts = torch.stack([torch.bincount(column, minlength=13) for column in drawn.T])
    assert counts.shape == (2, 13)
    # 8000 draws over 13 places: the standard deviation of a count is 17; both boundaries stay within 5 of it.
    assert (counts - 4000 / 13).abs().max() < 5 * 17


def test_boundaries_steps_and_seeds_are_independent():
    windows = plan_windows(400, 38, 12)
    table = {(seed, step): SeededHandovers(seed).offsets(windows, step) for seed in range(3) for step in range(3)}
    assert len(set(table.values())) == len(table)
    assert len(set(table[0, 0])) > 4


def test_official_handovers_are_the_global_random_module_s():
    windows = plan_official_windows(100, 38, 12)
    mine = official_handovers(windows, 5, 33)
    state = random.getstate()
    random.seed(33)
    want = tuple(tuple(random.randint(0, 11) for _ in range(2)) for _ in range(5))
    random.setstate(state)
    assert mine.table == want


@pytest.mark.parametrize(
    ("num_frames", "starts", "kept"),
    [(38, [0], 38), (63, [0], 38), (64, [0, 26], 64), (100, [0, 26, 52], 90), (200, [*range(0, 157, 26)], 194)],
)
def test_official_layout_drops_the_tail(num_frames, starts, kept):
    windows = plan_official_windows(num_frames, 38, 12)
    assert [*keyframes(windows)] == starts and windows[-1].stop == kept


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda: plan_windows(100, 0, 0), ["0"]),
        (lambda: plan_windows(100, 16, 16), ["16", "15"]),
        (lambda: plan_windows(100, 16, 40), ["40", "16"]),
        (lambda: plan_windows(100, 16, -1), ["-1"]),
        (lambda: plan_windows(0, 16, 4), ["0"]),
        (lambda: plan_official_windows(37, 38, 12), ["38", "37"]),
        (lambda: first_owned(RecordedHandovers(((0, 1),)), plan_windows(20, 8, 4), 0), ["4 windows", "3", "2"]),
        (lambda: first_owned(RecordedHandovers(((0, 5, 0),)), plan_windows(20, 8, 4), 0), ["5", "4"]),
        (lambda: RecordedHandovers(((0,),)).offsets(plan_windows(12, 8, 4), 1), ["1"]),
    ],
)
def test_bad_settings_are_refused_with_the_numbers(call, numbers):
    with pytest.raises(SettingsError) as refused:
        call()
    assert all(number in str(refused.value) for number in numbers)
    assert "\n" not in str(refused.value)
