"""Frame streams from tensors: any slices equal the whole, and the algebra of trimming and joining."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import FrameError, FrameMismatchError, FrameRangeError, SettingsError
from streaming_core.frames import JoinedFrames, ResampledFrames, TensorFrames, TrimmedFrames, as_rate, to_rgb

ranges = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted)


def video(num_frames: int, seed: int = 0, height: int = 3, width: int = 5) -> TensorFrames:
    images = torch.rand(num_frames, height, width, 3, generator=torch.Generator().manual_seed(seed))
    return TensorFrames(images, Fraction(24))


def whole(stream) -> torch.Tensor:
    return stream.read(0, len(stream))


@given(length=st.integers(1, 20), size=st.integers(1, 25), bounds=ranges)
@settings(max_examples=60, deadline=None)
def test_slices_are_the_whole(length, size, bounds):
    stream = video(length)
    assert torch.equal(torch.cat(list(stream.slices(size))), stream.images)
    start, stop = (min(bound, length) for bound in bounds)
    assert torch.equal(stream.read(start, stop), stream.images[start:stop])
    assert torch.equal(
        torch.cat([torch.zeros(0, 3, 5, 3), *stream.slices(size, start, stop)]), stream.images[start:stop]
    )


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), bounds=ranges, data=st.data())
@settings(max_examples=80, deadline=None)
def test_join_and_trim_are_list_slices(lengths, bounds, data):
    parts = [video(length, seed) for seed, length in enumerate(lengths)]
    joined = JoinedFrames(tuple(parts))
    expected = torch.cat([part.images for part in parts])
    assert len(joined) == len(expected)
    assert torch.equal(whole(joined), expected)
    start, stop = (min(bound, len(joined)) for bound in bounds)
    assert torch.equal(joined.read(start, stop), expected[start:stop])
    if start == stop:
        return
    trimmed = joined.trimmed(start, stop)
    assert torch.equal(whole(trimmed), expected[start:stop])
    inner = data.draw(st.integers(0, len(trimmed) - 1))
    again = trimmed.trimmed(inner)
    assert torch.equal(whole(again), expected[start + inner : stop])
    assert again.source is joined, "trims of trims must not pile up"
    cut = data.draw(st.integers(1, len(joined) - 1)) if len(joined) > 1 else 0
    if cut:
        assert torch.equal(whole(JoinedFrames((joined.trimmed(0, cut), joined.trimmed(cut)))), expected)


@given(length=st.integers(1, 12), fps=st.sampled_from([1, 7, 23.976, 24, 25, 60]), bounds=ranges)
def test_another_rate_shows_the_nearest_frame_of_each_time_and_keeps_the_length(length, fps, bounds):
    source = video(length)
    stream = ResampledFrames(source, fps)
    assert abs(stream.seconds - source.seconds) <= Fraction(1, 2) / stream.fps or len(stream) == 1
    early = Fraction(1, 2) / max(stream.fps, 24)
    shown = [max(k for k in range(length) if Fraction(k, 24) < n / stream.fps + early) for n in range(len(stream))]
    assert torch.equal(whole(stream), source.images[shown])
    start, stop = (min(bound, len(stream)) for bound in bounds)
    assert torch.equal(stream.read(start, stop), source.images[shown][start:stop])


def test_joins_of_joins_are_flat():
    a, b, c = video(2, 0), video(3, 1), video(1, 2)
    assert JoinedFrames((JoinedFrames((a, b)), c)).parts == (a, b, c)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (TensorFrames(torch.zeros(2, 4, 5, 3), Fraction(24)), ("5x3", "5x4")),
        (TensorFrames(torch.zeros(2, 3, 6, 3), Fraction(24)), ("5x3", "6x3")),
        (TensorFrames(torch.zeros(2, 3, 5, 3), Fraction(24000, 1001)), ("24 fps", "24000/1001 fps")),
    ],
)
def test_join_of_unlike_streams_names_both(other, words):
    with pytest.raises(FrameMismatchError) as caught:
        JoinedFrames((video(2), other))
    assert all(word in str(caught.value) for word in words)


def test_join_of_nothing():
    with pytest.raises(FrameError, match="nothing to join"):
        JoinedFrames(())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2), (5, 6)])
def test_reading_out_of_range(start, stop):
    with pytest.raises(FrameRangeError, match=f"{start} to {stop}.*0 to 4"):
        video(4).read(start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (2, 2), (3, 1)])
def test_trimming_out_of_range(start, stop):
    with pytest.raises(FrameRangeError, match=f"{start} to {stop}"):
        TrimmedFrames(video(4), start, stop)


def test_slices_need_a_frame():
    with pytest.raises(SettingsError):
        next(video(4).slices(0))


def test_reading_nothing_keeps_the_size():
    assert video(4).read(2, 2).shape == (0, 3, 5, 3)


def test_readers_do_not_see_each_other():
    stream = video(4)
    before = stream.images.clone()
    stream.read(0, 4).zero_()
    assert torch.equal(stream.images, before)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 1)])
def test_gray_is_repeated(shape):
    images = torch.rand(shape)
    read = whole(TensorFrames(images, 8))
    assert read.shape == (2, 3, 5, 3)
    assert all(torch.equal(read[..., channel], images.view(2, 3, 5)) for channel in range(3))


def test_alpha_is_dropped_or_laid_over_a_background():
    images = torch.rand(2, 3, 5, 4)
    assert torch.equal(whole(TensorFrames(images, 8)), images[..., :3])
    over_white = whole(TensorFrames(images, 8, background=1.0))
    assert torch.allclose(over_white, images[..., :3] * images[..., 3:] + 1 - images[..., 3:], atol=1e-6)
    gray = torch.rand(2, 3, 5, 2)
    assert torch.equal(whole(TensorFrames(gray, 8)), gray[..., :1].expand(-1, -1, -1, 3))


def test_types_become_float32_in_0_to_1():
    eight = torch.arange(256, dtype=torch.uint8).view(1, 4, 64, 1).expand(-1, -1, -1, 3)
    assert torch.equal((to_rgb(eight) * 255).round().to(torch.uint8), eight)
    half = torch.rand(2, 3, 5, 3).half()
    read = whole(TensorFrames(half, 8))
    assert read.dtype == torch.float32 and torch.equal(read, half.float())
    assert torch.equal(to_rgb(torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3)).flatten(), torch.tensor([0, 0.5, 1]))


@pytest.mark.parametrize("shape", [(3, 5), (0, 3, 5, 3), (2, 0, 5, 3), (2, 3, 5, 0), (1, 2, 3, 5, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(FrameError):
        TensorFrames(torch.zeros(shape), 8)


def test_whole_numbers_beyond_bytes_are_refused():
    with pytest.raises(FrameError, match="int64"):
        TensorFrames(torch.zeros(1, 2, 2, 3, dtype=torch.int64), 8)


@pytest.mark.parametrize(
    ("given_rate", "expected"),
    [
        (24, Fraction(24)),
        (23.976023976023978, Fraction(24000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (23.98, Fraction(1199, 50)),
        ("29.97", Fraction(2997, 100)),
        (1 / 3, Fraction(1, 3)),
        (30000 / 1001, Fraction(30000, 1001)),
        (Fraction(60000, 1001), Fraction(60000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_rates_are_exact(given_rate, expected):
    assert as_rate(given_rate) == expected


@pytest.mark.parametrize("wrong", [0, -24, float("nan"), float("inf"), "fast", None, 100000])
def test_rates_that_are_none(wrong):
    with pytest.raises(SettingsError):
        as_rate(wrong)


def test_handles_can_be_pickled():
    stream = JoinedFrames((video(3), video(2, 1))).trimmed(1, 4)
    assert torch.equal(whole(pickle.loads(pickle.dumps(stream))), whole(stream))


def test_length_in_seconds_is_exact():
    assert TensorFrames(torch.zeros(48, 2, 2, 3), Fraction(24000, 1001)).seconds == Fraction(1001, 500)
