"""Interpolation timelines: exact counts, monotone times, both ends kept."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.interpolation import timeline

SOURCES = st.integers(1, 90)
COUNTS = st.integers(1, 600)
RATES = st.one_of(
    st.sampled_from([Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25), Fraction(8)]),
    st.fractions(5, 120, max_denominator=1001),
)


def positions(line: timeline.Timeline) -> list[Fraction]:
    return [line.position(index) for index in range(len(line))]


def played(line: timeline.Timeline, start: int = 0, stop: int | None = None) -> list[Fraction]:
    """The positions that the spans of a timeline give, in order."""
    spans = line.spans(start, len(line) if stop is None else stop)
    return [span.left + time for span in spans for time in span.times]


def check_ends_and_order(line: timeline.Timeline, num_source: int) -> None:
    for times in (positions(line), played(line)):
        assert times[0] == 0
        assert len(times) == len(line)
        assert all(0 <= time <= num_source - 1 for time in times)
        if len(line) > 1:
            assert times[-1] == num_source - 1
        if num_source > 1:
            assert all(before < after for before, after in zip(times, times[1:], strict=False))


@given(SOURCES, COUNTS, RATES)
def test_count_is_met_with_both_ends_kept(num_source, num_frames, fps):
    line = timeline.with_count(num_source, fps, num_frames, output_fps=24)
    assert len(line) == num_frames
    assert line.fps == 24
    check_ends_and_order(line, num_source)


@given(st.integers(2, 90), COUNTS)
def test_count_keeps_the_speed_unless_told(num_source, num_frames):
    line = timeline.with_count(num_source, Fraction(1, 2), num_frames)
    if num_frames > 1:
        assert 2 * (num_source - 1) == (num_frames - 1) / line.fps


@given(SOURCES, RATES, RATES)
def test_rate_keeps_both_ends_and_the_length(num_source, fps, output_fps):
    line = timeline.at_rate(num_source, fps, output_fps)
    assert line.fps == output_fps
    check_ends_and_order(line, num_source)
    if len(line) > 2:  # the last frame is within half a frame of where it was
        assert abs((len(line) - 1) / output_fps - (num_source - 1) / fps) <= Fraction(1, 2) / output_fps


@given(SOURCES, st.integers(1, 16), RATES)
def test_multiplier_keeps_every_source_frame(num_source, factor, fps):
    line = timeline.multiplied(num_source, fps, factor, output_fps=fps)
    assert len(line) == (num_source - 1) * factor + 1
    assert positions(line)[::factor] == list(range(num_source))
    check_ends_and_order(line, num_source)


@given(st.integers(1, 60), st.integers(1, 130))
def test_official_doubling_counts_as_published(num_source, num_frames):
    line = timeline.official(num_source, num_frames, 24)
    kept = min(num_source, num_frames // 2 + 1)
    expected = [Fraction(index, 2) for index in range(2 * kept - 1)]
    expected += [Fraction(kept - 1)] if num_frames % 2 == 0 else []
    assert positions(line) == expected == played(line)
    if num_source > num_frames // 2:  # enough frames: odd lengths are met, even ones exceeded by two, as published
        assert len(line) == num_frames + (2 if num_frames % 2 == 0 else 0)


@given(SOURCES, COUNTS, st.data())
def test_spans_of_a_part_are_the_part_of_the_spans(num_source, num_frames, data):
    line = timeline.with_count(num_source, 24, num_frames, output_fps=24)
    start = data.draw(st.integers(0, num_frames))
    stop = data.draw(st.integers(start, num_frames))
    assert played(line, start, stop) == played(line)[start:stop]
    lefts = [span.left for span in line.spans(start, stop)]
    assert lefts == sorted(set(lefts))
    if stop > start:
        assert line.last_needed(stop) >= played(line, start, stop)[-1] > line.last_needed(stop) - 1


@given(SOURCES, COUNTS)
def test_snapping_moves_by_less_than_can_be_seen(num_source, num_frames):
    line = timeline.with_count(num_source, 24, num_frames, output_fps=24)
    for exact, seen in zip(positions(line), played(line), strict=True):
        assert abs(exact - seen) < timeline.SNAP
        assert seen == exact or seen.denominator == 1


def test_almost_source_frames_are_source_frames():
    line = timeline.with_count(100, 24, 200, output_fps=24)  # steps of 99/199: 0.4975, 0.995, ...
    assert played(line, 0, 3) == [0, Fraction(99, 199), 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: timeline.with_count(0, 24, 5),
        lambda: timeline.with_count(5, 24, 0),
        lambda: timeline.multiplied(5, 24, 0),
        lambda: timeline.at_rate(5, 24, 0),
        lambda: timeline.at_rate(5, 24, 5000),
        lambda: timeline.official(5, 0, 24),
        lambda: timeline.with_count(2, 24, 2000),  # 48000 frames per second
        lambda: timeline.with_count(5, 24, 5).position(5),
    ],
)
def test_impossible_wishes_are_refused(make):
    with pytest.raises(SettingsError):
        make()
