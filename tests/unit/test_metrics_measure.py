"""What the measures say about videos whose truth is known."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cut_videos import grain
from benchmarks.metrics_videos import pan, stream, texture
from streaming_core.color.lab import srgb_to_lab
from streaming_core.errors import Cancelled, FrameError, NotNumbersError, SettingsError
from streaming_core.frames import FrameStream, VideoFrames, write_video
from streaming_core.loop.chunk_layout import ChunkLayout, lay_out, parse_chunks, windows
from streaming_core.metrics.clip_scores import ClipTools, cosines, curve
from streaming_core.metrics.color import color_drift, frame_colors, straight_line_change
from streaming_core.metrics.flow import raft_estimator
from streaming_core.metrics.measure import measure
from streaming_core.metrics.seams import against_neighbors
from streaming_core.metrics.stagnation import measure_stagnation, still_pairs, with_refreshes

LAYOUT = lay_out(61, (25, 18))


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return pan(61)


# -- the whole pass ----------------------------------------------------------------------------------------------------


def test_a_smooth_pan_has_nothing_to_report(video):
    found = measure(stream(video), LAYOUT)
    assert found.cuts.count == 0
    assert found.seams.largest < 1.5
    # Pure translation: what the flow does not explain is a fraction of one of 255 gray levels.
    assert max(found.differences) < 0.75
    assert found.stagnation.still_pairs == 0 and not found.stagnation.is_still
    assert found.stagnation.kept == pytest.approx(1, abs=0.02)
    speed = 100 * (1.5**2 + 0.5**2) ** 0.5 / (96**2 + 160**2) ** 0.5
    assert found.stagnation.chunk_motion == pytest.approx([speed] * 3, rel=0.02)
    assert found.mawe is None and set(found.left_out) == {"mawe", "anchor", "text"}


@pytest.mark.parametrize("boundary", [25, 43])
@pytest.mark.parametrize("change", ["light", "contrast", "position", "image"])
def test_a_seam_stands_out_where_it_is(video, boundary, change):
    frames = video.clone()
    if change == "light":
        frames[boundary:] += 0.03
    elif change == "contrast":
        frames[boundary:] = (frames[boundary:] - 0.5) * 0.85 + 0.5
    elif change == "position":
        frames = pan(61, position=lambda frame: (1.5 * frame + 3 * (frame >= boundary), 0.5 * frame))
    else:
        frames[boundary:] = pan(61, seed=9)[boundary:]
    seams = measure(stream(frames.clamp(0, 1)), LAYOUT).seams
    scores = {join.frame: join.score for join in seams.joins}
    other = 68 - boundary
    assert scores[boundary] > 5
    assert scores[boundary] > 5 * scores[other]
    assert seams.largest == scores[boundary]
    # The curve stands out at the same place, for videos whose chunks nobody knows.
    ratios = measure(stream(frames.clamp(0, 1))).seams.ratios
    assert max(range(60), key=lambda pair: ratios[pair] or 0) in (boundary - 1, boundary)


def test_a_seam_in_a_video_with_grain_still_stands_out(video):
    frames = video.clone()
    frames[25:] += 0.06
    seams = measure(stream(grain(frames, 0.02, 1)), LAYOUT).seams
    assert seams.joins[0].score > 5 > 2 > seams.joins[1].score


def test_a_seam_survives_video_compression(tmp_path):
    frames = pan(61, size=(180, 320))
    frames[43:] += 0.02
    write_video(stream(frames.clamp(0, 1)), tmp_path / "video.mp4")
    seams = measure(VideoFrames.open(tmp_path / "video.mp4"), LAYOUT).seams
    assert seams.joins[1].score > 5 > 2 > seams.joins[0].score


def test_a_cut_is_counted_once_and_is_no_motion(video):
    frames = torch.cat((video[:30], pan(31, seed=9)))
    found = measure(stream(frames), LAYOUT)
    assert found.cuts.frames == (30,)
    assert found.seams.largest < 1.5
    assert found.stagnation.chunk_motion == pytest.approx([found.stagnation.chunk_motion[0]] * 3, rel=0.05)
    assert found.seams.ratios[29] > 5


def test_a_join_just_behind_a_cut_is_no_seam(video):
    frames = torch.cat((video[:42], pan(19, seed=9)))
    found = measure(stream(frames), LAYOUT)
    assert found.cuts.frames == (42,)
    assert found.seams.joins[1].frame == 43 and found.seams.joins[1].score < 1.5


def test_a_still_video_is_still(video):
    found = measure(stream(video[:1].expand(40, -1, -1, -1)), lay_out(40, (16, 8)))
    assert found.stagnation.is_still and found.stagnation.still_pairs == 39 and found.stagnation.longest_still == 39
    assert found.stagnation.kept is None
    assert found.seams.largest == 1
    assert found.color.largest == 0 and found.color.trend_size < 1e-9


def test_a_video_that_comes_to_rest(video):
    frames = pan(61, position=lambda frame: (1.5 * min(frame, 30), 0))
    found = measure(stream(frames), LAYOUT).stagnation
    assert (found.stagnant_from, found.still_pairs, found.longest_still, found.kept) == (30, 30, 30, 0)
    assert not found.is_still


def test_mawe_is_taken_from_raft_in_the_same_pass(video):
    zero = raft_estimator(lambda left, right: torch.zeros(len(left), 2, 720, 720))
    calls = []
    found = measure(stream(video[:4]), lay_out(4, (2,)), flow=zero, check_cancel=lambda: calls.append(1))
    assert found.mawe.is_still and found.mawe.pairs == 3
    assert "mawe" not in found.left_out and found.flow_name.startswith("RAFT-large")
    # RAFT is slow: Cancel is asked for before every pair as well as before every slice.
    assert len(calls) == 4


def test_slices_do_not_matter(video, monkeypatch):
    whole = measure(stream(video[:20]), lay_out(20, (10,)))
    monkeypatch.setattr("streaming_core.frames.stream.frames_per_slice", lambda height, width: 3)
    sliced = measure(stream(video[:20]), lay_out(20, (10,)))
    assert sliced.differences == pytest.approx(whole.differences, rel=1e-3)
    assert sliced.stagnation.motion == pytest.approx(whole.stagnation.motion, rel=1e-3)
    assert sliced.color_means == whole.color_means and sliced.cuts == whole.cuts


def test_progress_and_cancel(video):
    seen = []
    measure(stream(video), LAYOUT, progress=lambda *state: seen.append(state))
    assert seen == [(16, 61), (32, 61), (48, 61), (61, 61)]

    def cancel():
        if len(seen) >= 2:
            raise Cancelled

    seen.clear()
    with pytest.raises(Cancelled):
        measure(stream(video), LAYOUT, progress=lambda *state: seen.append(state), check_cancel=cancel)
    assert seen == [(16, 61), (32, 61)]


class CountedStream(FrameStream):
    """Notes how many frames are asked for at once."""

    height, width, fps = 96, 160, Fraction(24)

    def __init__(self, frames: torch.Tensor):
        self.frames, self.most = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        self.most = max(self.most, stop - start)
        return self.frames[start:stop].clone()


def test_frames_are_read_once_and_in_slices(video):
    source = CountedStream(video)
    measure(source, LAYOUT)
    assert source.most == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("number", [0, 19, 40])
def test_values_that_are_no_numbers_are_refused_when_they_are_read(video, value, number):
    images = video.clone()
    images[number, 3, 4, 1] = value
    seen = []
    with pytest.raises(NotNumbersError, match=f"frame {number},") as caught:
        measure(stream(images), LAYOUT, progress=lambda *state: seen.append(state))
    assert caught.value.number == number
    assert len(seen) == number // 16  # not one slice further


def test_a_video_of_one_frame_is_refused(video):
    with pytest.raises(FrameError, match="at least 2 frames to be measured, got 1"):
        measure(stream(video[:1]))


# -- colors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("color", "want"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 1, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602)),
        ((0.5, 0.5, 0.5), (53.3890, 0, 0)),
    ],
)
def test_lab_of_known_colors(color, want):
    assert srgb_to_lab(torch.tensor(color).float()).tolist() == pytest.approx(want, abs=0.01)


def gray_of_lightness(lightness: torch.Tensor) -> torch.Tensor:
    """sRGB of the grays with the given L."""
    linear = torch.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness * 27 / 24389)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("start", "size"), [(40.0, 20.0), (70.0, -15.0), (50.0, 4.0)])
def test_a_ramp_of_lightness_is_measured_within_two_per_cent(start, size):
    levels = gray_of_lightness(torch.linspace(start, start + size, 61))
    levels = (levels * 255).round() / 255  # as a video file would store them
    found = measure(stream(levels.view(-1, 1, 1, 1).expand(-1, 64, 96, 3)), LAYOUT).color
    assert found.trend[0] == pytest.approx(size, rel=0.02)
    assert found.trend_size == pytest.approx(abs(size), rel=0.02)
    # Chunk means lie in the middle of their chunks: 12, 33.5 and 51.5 of 60.
    assert found.chunk_drift == pytest.approx([0, abs(size) * 21.5 / 60, abs(size) * 39.5 / 60], rel=0.02, abs=0.02)


def test_a_ramp_of_color_on_a_moving_image_is_measured_within_two_per_cent():
    still = pan(1, size=(64, 96)).expand(61, -1, -1, -1)
    shift = torch.linspace(0, 0.12, 61).view(-1, 1, 1, 1) * torch.tensor([1.0, 0.2, -0.5])
    frames = (still + shift).clamp(0, 1)
    want = srgb_to_lab(frames[-1]).mean((0, 1)) - srgb_to_lab(frames[0]).mean((0, 1))
    found = measure(stream(frames), LAYOUT).color
    assert found.trend_size == pytest.approx(float(want.square().sum().sqrt()), rel=0.02)
    assert found.trend == pytest.approx(want.tolist(), rel=0.05, abs=0.1)


def test_spread_sees_contrast():
    image = texture(64, 96, seed=5).movedim(0, -1)[None]
    frames = torch.cat((image.expand(8, -1, -1, -1), ((image - 0.5) * 0.5 + 0.5).expand(8, -1, -1, -1)))
    means, spreads = frame_colors(frames)
    found = color_drift(means, spreads, lay_out(16, (8,)))
    assert found.chunk_spread_ratio[0] == 1
    assert found.chunk_spread_ratio[1] == pytest.approx(0.5, abs=0.08)


def test_pixels_are_sampled_evenly():
    frames = torch.rand(1, 1080, 1920, 3, generator=torch.Generator().manual_seed(1))
    mean, spread = frame_colors(frames)
    lab = srgb_to_lab(frames[0]).flatten(0, 1)
    assert mean[0].tolist() == pytest.approx(lab.mean(0).tolist(), abs=0.4)
    assert spread[0].tolist() == pytest.approx(lab.std(0).tolist(), rel=0.01)


@given(st.integers(2, 50), st.floats(-10, 10), st.floats(-5, 5))
def test_straight_line_of_a_straight_line(count, start, slope):
    line = start + slope * torch.arange(count, dtype=torch.float64)[:, None]
    assert straight_line_change(line).item() == pytest.approx(slope * (count - 1), abs=1e-9)


# -- seams and rest ----------------------------------------------------------------------------------------------------


def test_jumps_are_judged_against_pairs_around_them():
    jumps = [1.0] * 20 + [10.0] * 20
    jumps[30] = 50.0
    ratios = against_neighbors(jumps, frozenset({30}), floor=0.1)
    assert ratios[5] == 1 and ratios[35] == 1
    assert ratios[30] == 5


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=60), st.sets(st.integers(0, 59)))
def test_ratios_are_positive_numbers_or_none(jumps, joins):
    ratios = against_neighbors(jumps, frozenset(joins), floor=0.5)
    assert len(ratios) == len(jumps)
    assert all(ratio is None or 0 < ratio < float("inf") for ratio in ratios)


def test_a_small_moving_thing_is_not_still():
    left = torch.full((2, 3, 128, 128), 100.0)
    right = left.clone()
    right[1, :, 50:56, 50:56] = 180
    assert still_pairs(left, right, torch.zeros(2, 2, 128, 128)).tolist() == [True, False]


def test_coding_noise_is_still_and_slow_motion_is_not():
    left = torch.full((1, 3, 128, 128), 100.0)
    right = left + torch.randint(-1, 2, left.shape, generator=torch.Generator().manual_seed(0))
    assert still_pairs(left, right, torch.zeros(1, 2, 128, 128)).item()
    assert not still_pairs(left, right, torch.full((1, 2, 128, 128), 0.05)).item()
    # Equal frames are still whatever flow was found between them.
    assert still_pairs(left, left, torch.full((1, 2, 128, 128), 0.05)).item()


@pytest.mark.parametrize("step", [0.1, 0.3])
def test_a_slow_pan_is_not_still(step):
    found = measure(stream(pan(20, step=(step, 0), size=(128, 192))), lay_out(20, (10,))).stagnation
    assert found.still_pairs == 0
    assert found.kept == pytest.approx(1, abs=0.1)


def test_a_still_video_stays_still_through_a_video_file(tmp_path):
    """An encoder draws the whole image anew at keyframes, here after 250 frames: no motion."""
    write_video(stream(pan(1, size=(90, 160)).expand(270, -1, -1, -1)), tmp_path / "still.mp4")
    found = measure(VideoFrames.open(tmp_path / "still.mp4"))
    assert found.stagnation.is_still and found.stagnation.still_pairs == 269
    assert found.cuts.count == 0


def test_refreshes_are_rare_small_and_alone():
    still = [True] * 30
    still[10] = False
    assert with_refreshes(still, [0.05] * 30) == [True] * 30
    assert with_refreshes(still, [0.5] * 30) == still  # too large: a cut between two images
    still[11] = False
    assert with_refreshes(still, [0.05] * 30) == still  # two in a row move
    twelve_in_twenty_four = [True, False] * 15
    assert with_refreshes(twelve_in_twenty_four, [0.05] * 30) == twelve_in_twenty_four


def test_motion_of_still_pairs_does_not_count():
    found = measure_stagnation([3.0, 3.0, 2.0, 2.0], [False, True, False, False], lay_out(5, (3, 2)))
    assert found.motion == (3.0, 0.0, 2.0, 2.0)
    # The third pair joins two chunks; what jumps there is a seam.
    assert found.chunk_motion == (1.5, 2.0)


# -- chunks and curves -------------------------------------------------------------------------------------------------


def test_last_length_is_repeated_to_the_end():
    layout = lay_out(61, (25, 18))
    assert layout.starts == (0, 25, 43) and layout.boundaries == (25, 43)
    assert layout.chunks == (range(0, 25), range(25, 43), range(43, 61))
    assert lay_out(10, (25, 18)).boundaries == ()
    assert lay_out(43, (25, 18)).starts == (0, 25)


@given(st.integers(1, 500), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_chunks_cover_the_video_once(num_frames, lengths):
    layout = lay_out(num_frames, tuple(lengths))
    assert [frame for chunk in layout.chunks for frame in chunk] == list(range(num_frames))


@given(st.integers(1, 5000))
def test_windows_cover_the_video_and_have_no_boundaries(num_frames):
    layout = windows(num_frames)
    assert [frame for chunk in layout.chunks for frame in chunk] == list(range(num_frames))
    assert layout.boundaries == () and len(layout.chunks) <= 12
    assert min(map(len, layout.chunks)) >= min(4, num_frames)


def test_chunks_as_people_write_them():
    assert parse_chunks("25,18") == parse_chunks(" 25 18 ") == (25, 18)
    assert parse_chunks("") == ()
    for text in ("25,-1", "a", "0", "2.5"):
        with pytest.raises(SettingsError, match="whole numbers such as 25,18"):
            parse_chunks(text)
    with pytest.raises(SettingsError, match="1 or more frames"):
        lay_out(10, ())


def by_color(frames: torch.Tensor) -> torch.Tensor:
    """Stands in for a vision model: the mean color is the embedding."""
    return frames.mean((1, 2))


def test_clip_curves_follow_the_video(video):
    frames = video.clone()
    frames[43:, ..., 0] = 0
    tools = ClipTools(by_color, text=torch.tensor([0.0, 1.0, 1.0]), name="colors")
    found = measure(stream(frames), LAYOUT, clip=tools)
    assert found.clip_name == "colors" and set(found.left_out) == {"mawe"}
    assert len(found.anchor.values) == len(found.text.values) == 61
    assert found.anchor.values[0] == pytest.approx(1)
    assert found.anchor.chunk_means[0] > 0.99 > 0.9 > found.anchor.chunk_means[2]
    assert found.anchor.worst_frame >= 43 and found.text.worst_frame < 43
    assert found.text.mean == pytest.approx(sum(found.text.values) / 61)


def test_anchor_may_be_a_image_of_its_own(video):
    tools = ClipTools(by_color, anchor=torch.tensor([1.0, 0, 0]).expand(1, 8, 8, 3))
    found = measure(stream(video[:8]), lay_out(8, (8,)), clip=tools)
    assert max(found.anchor.values) < 0.9 and found.text is None and "text" in found.left_out


def test_parts_of_two_models_are_refused():
    with pytest.raises(SettingsError, match="768 wide, text or anchor embeddings 1024"):
        cosines(torch.zeros(2, 768), torch.zeros(1024))


def test_curve_names_the_worst_frame():
    found = curve([0.5, 0.1, 0.9, 0.9], ChunkLayout(4, (0, 2)))
    assert (found.worst, found.worst_frame) == (0.1, 1)
    assert found.chunk_means == pytest.approx((0.3, 0.9))
