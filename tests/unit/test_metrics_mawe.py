"""Forward splatting and MAWE against slow, obvious versions of themselves, and on videos whose motion is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.metrics_videos import pan, stream, texture
from streaming_core.errors import FrameError
from streaming_core.metrics.flow import raft_estimator
from streaming_core.metrics.mawe import (
    mean_flow_length,
    official_mawe,
    pair_errors,
    summarize,
    warp_error,
    working_frames,
)
from streaming_core.metrics.measure import measure_mawe
from streaming_core.metrics.splat import forward_splat


def splat_one_by_one(frame: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels written one after the other, in row-major order, so the last one stays."""
    _, height, width = frame.shape
    result, unknown = torch.zeros_like(frame), torch.ones(height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            x, y = round(column + float(flow[0, row, column])), round(row + float(flow[1, row, column]))
            if 0 <= x < width and 0 <= y < height:
                result[:, y, x], unknown[y, x] = frame[:, row, column], False
    return result, unknown


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.25, 1.5, 6.0, 1e6]))
def test_splat_equals_writing_pixel_by_pixel(height, width, seed, reach):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, 3, height, width, generator=generator)
    # Quarters hit the halves that are rounded to even.
    flow = (torch.randn(2, 2, height, width, generator=generator) * reach * 4).round() / 4
    warped, unknown = forward_splat(frames, flow)
    for index in range(2):
        want, want_unknown = splat_one_by_one(frames[index], flow[index])
        assert torch.equal(unknown[index], want_unknown)
        assert torch.equal(warped[index], want)


def test_half_pixels_go_to_the_even_target_of_the_sum():
    frames = torch.arange(4.0).view(1, 1, 1, 4) + 1
    flow = torch.zeros(1, 2, 1, 4)
    flow[:, 0] = 0.5  # 0.5, 1.5, 2.5, 3.5 round to 0, 2, 2, 4
    warped, unknown = forward_splat(frames, flow)
    assert warped.flatten().tolist() == [1, 0, 3, 0]
    assert unknown.flatten().tolist() == [False, True, False, True]


def test_flow_that_is_not_a_number_throws_nothing():
    warped, unknown = forward_splat(torch.ones(1, 3, 4, 4), torch.full((1, 2, 4, 4), math.nan))
    assert unknown.all() and not warped.any()


def test_splat_refuses_flow_of_another_size():
    with pytest.raises(FrameError, match=r"need flow \[1, 2, 4, 5\], got \[1, 2, 4, 4\]"):
        forward_splat(torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 4))


def test_warp_error_counts_known_values_only():
    right, warped = torch.full((1, 3, 2, 2), 10.0), torch.zeros(1, 3, 2, 2)
    unknown = torch.tensor([[[True, False], [False, False]]])
    assert warp_error(right, warped, unknown).item() == 100
    assert warp_error(right, warped, torch.ones(1, 2, 2, dtype=torch.bool)).item() == 0


def test_translation_has_no_warp_error():
    left = texture(64, 64, seed=3)[None] * 255
    flow = torch.zeros(1, 2, 64, 64)
    flow[:, 0], flow[:, 1] = 3, -2
    errors, lengths = pair_errors(left, left.roll((-2, 3), (2, 3)), flow)
    # What rolls round the edge is thrown out of the image, and what comes in is unknown.
    assert errors.item() == 0
    assert lengths.item() == pytest.approx(math.sqrt(13))
    assert official_mawe(errors, lengths).item() == 0


def test_mean_length_is_the_mean_of_lengths():
    flow = torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 2, 1, 2)
    assert mean_flow_length(flow).item() == 2.5


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0.01, 50)), min_size=1, max_size=20))
def test_without_still_pairs_value_and_official_are_one(pairs):
    errors, lengths = (list(column) for column in zip(*pairs, strict=True))
    result = summarize(errors, lengths, [False] * len(pairs))
    assert result.value == pytest.approx(result.official)
    assert result.still_pairs == 0


def test_still_pairs_are_counted_and_left_out():
    result = summarize([9.5, 0.0, 1.0, 19.0], [1.0, 0.0, 0.02, 1.0], [False, False, True, False])
    assert (result.value, result.official, result.pairs, result.still_pairs) == (1.5, None, 4, 2)
    assert result.ratios == (1.0, None, None, 2.0)
    assert not result.is_still


def test_still_video_is_reported_as_still():
    result = summarize([0.0, 0.0], [0.0, 0.0], [True, True])
    assert result.is_still
    assert (result.value, result.official, result.still_pairs) == (None, None, 2)


def test_working_frames_are_whole_numbers_in_a_square():
    frames = working_frames(torch.rand(2, 3, 40, 50))
    assert frames.shape == (2, 3, 720, 720)
    assert torch.equal(frames, frames.round()) and frames.min() >= 0 and frames.max() <= 255


def shift_network(x: float, y: float):
    """Stands in for RAFT where the true flow is known: the same vector everywhere."""

    def network(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.shape == right.shape and left.shape[1:] == (3, 720, 720)
        assert left.abs().max() <= 1
        return left.new_tensor([x, y]).view(1, 2, 1, 1).expand(len(left), 2, 720, 720)

    return raft_estimator(network)


def test_measured_video_of_known_motion():
    video = pan(5, step=(2.0, 1.0), size=(72, 72))
    seen = []
    result = measure_mawe(stream(video), shift_network(-20, -10), progress=lambda *state: seen.append(state))
    assert result.pairs == 4
    assert result.lengths == pytest.approx([math.sqrt(500)] * 4)
    # Ten times enlarged, the true motion is whole pixels: only rounding to 8 bit is left of the difference.
    assert max(result.errors) < 1
    assert seen[-1] == (5, 5)
    wrong = measure_mawe(stream(video), shift_network(20, 10))
    assert wrong.value > 100 * result.value


def test_video_of_one_frame_is_refused():
    with pytest.raises(FrameError, match="at least 2 frames"):
        measure_mawe(stream(pan(1)), shift_network(0, 0))


def test_still_video_through_the_whole_measure():
    video = pan(1).expand(6, -1, -1, -1)
    result = measure_mawe(stream(video), shift_network(0.01, 0))
    assert result.is_still and result.still_pairs == 5
