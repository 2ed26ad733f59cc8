"""Decode groups: every kept frame once, in order, with the context it was promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.decoding import decode_all, official_groups, overlapping_groups

sizes = st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@given(sizes, st.sampled_from(["official", "overlapping"]))
def test_every_needed_frame_is_kept_once_and_in_order(size, grouping):
    num_frames, first = size
    latents = torch.arange(num_frames, dtype=torch.float32).view(-1, 1, 1, 1)
    calls = []

    def decode(group):
        calls.append(len(group))
        return group * 10

    frames = decode_all(latents, first, grouping, decode)
    assert frames.flatten().tolist() == [10.0 * i for i in range(first, num_frames)]
    assert max(calls) <= 8


@given(sizes)
def test_kept_frames_have_their_context(size):
    num_frames, first = size
    for group in overlapping_groups(num_frames, first):
        assert group.start <= max(0, group.keep_start - 1)
        assert group.stop >= min(num_frames, group.keep_stop + 1)
        # Groups are whole unless the clip is shorter: a temporal decoder never sees a stub.
        assert group.stop - group.start == min(8, num_frames)


def test_official_grouping_of_25_frames():
    sizes = [group.stop - group.start for group in official_groups(25, 0)]
    assert sizes == [8, 8, 8, 1]
    # Frames 0 to 6 are thrown away, but belong to the first group.
    assert official_groups(25, 7)[0].keep_start == 7
    assert official_groups(25, 7)[0].start == 0


def test_the_better_grouping_costs_no_more_frames_than_the_official_one():
    assert sum(group.stop - group.start for group in overlapping_groups(25, 7)) <= 25


def test_impossible_groups_say_why():
    with pytest.raises(SettingsError, match="frames from 5 of 5"):
        overlapping_groups(5, 5)
