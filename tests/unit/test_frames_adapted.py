"""Videos at another size and rate, aligned at their end."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.frames import TensorFrames
from streaming_core.frames.adapted import AdaptedFrames


def numbered(count, fps, height=16, width=32):
    values = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1) / 1000
    return TensorFrames(values.expand(count, height, width, 3), Fraction(fps))


rates = st.sampled_from([Fraction(7), Fraction(12), Fraction(24), Fraction(30000, 1001), Fraction(60)])


@given(st.integers(1, 200), rates, rates)
def test_the_last_frame_stays_and_times_are_kept(count, own, wanted):
    video = AdaptedFrames(numbered(count, own), 16, 32, wanted)
    numbers = (video.read(0, len(video))[:, 0, 0, 0] * 1000).round().int().tolist()
    assert numbers[-1] == count - 1 and numbers[0] >= 0
    for place, number in enumerate(numbers):
        before_end = (len(numbers) - 1 - place) / wanted
        assert 0 <= before_end - (count - 1 - number) / own < 1 / own
    # One frame more at the beginning would be before the video.
    assert len(video) / wanted > (count - 1) / own


@given(st.integers(2, 60), st.data())
def test_slices_are_parts_of_the_whole(count, data):
    video = AdaptedFrames(numbered(count, 30), 24, 24, 12)
    start = data.draw(st.integers(0, len(video) - 1))
    stop = data.draw(st.integers(start, len(video)))
    assert torch.equal(video.read(start, stop), video.read(0, len(video))[start:stop])


def test_words_say_what_happened():
    words = AdaptedFrames(numbered(300, 30, 18, 32), 16, 16, 12).words()
    assert words == (
        "32x18 at 30 frames per second, 300 frames, 10.0 s; resized to 16x16, the rest is cropped; "
        "one of every 2.5 frames is used, for 12 frames per second: 120 frames."
    )
    same = AdaptedFrames(numbered(10, 12), 16, 32, 12)
    assert "the size is unchanged; every frame is used: 10 frames" in same.words()
    assert torch.equal(same.read(2, 7), same.source.read(2, 7))
    assert "repeated 2 times" in AdaptedFrames(numbered(10, 12), 16, 32, 24).words()
    assert "resized to 64x32;" in AdaptedFrames(numbered(10, 12), 32, 64, 12).words()
