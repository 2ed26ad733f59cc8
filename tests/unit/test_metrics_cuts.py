"""Scene cuts: counted once where they are, and the same as PySceneDetect's AdaptiveDetector counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cut_videos import CutVideo, generated_videos, joined, scene
from streaming_core.metrics import cuts as cuts_module
from streaming_core.metrics.cuts import (
    AdaptiveCuts,
    Cuts,
    PySceneDetectCuts,
    best_detector,
    has_pyscenedetect,
    hsv8,
    score_size,
)


@pytest.fixture(scope="module")
def videos() -> list[CutVideo]:
    return generated_videos()


def found(detector, frames: torch.Tensor, slice_frames: int = 7) -> Cuts:
    for part in frames.split(slice_frames):
        detector.add(part)
    return detector.cuts()


def test_a_cut_is_counted_once_where_it_is():
    video = joined("", scene(30, 1), scene(30, 2))
    assert found(AdaptiveCuts(), video.frames).frames == video.cuts == (30,)


def test_slices_do_not_matter():
    video = joined("", scene(24, 5), scene(24, 6), scene(24, 7))
    assert {found(AdaptiveCuts(), video.frames, size).frames for size in (1, 2, 16, 100)} == {(24, 48)}


def test_motion_fades_and_still_videos_have_no_cut(videos):
    names = ("pan, no cut", "still, no cut", "fast pan", "dissolve of 24 frames", "fade to black and back")
    calm = [video for video in videos if video.name in names]
    assert len(calm) == len(names)
    assert [found(AdaptiveCuts(), video.frames).count for video in calm] == [0] * len(names)


@pytest.mark.skipif(not has_pyscenedetect(), reason="PySceneDetect is not installed")
def test_own_detector_agrees_with_pyscenedetect(videos):
    assert len(videos) >= 20
    own = {video.name: found(AdaptiveCuts(), video.frames).frames for video in videos}
    assert own == {video.name: found(PySceneDetectCuts(), video.frames).frames for video in videos}
    # The videos must tell detectors apart: some have cuts that are found, some have none.
    assert 10 <= sum(map(bool, own.values())) <= len(videos) - 10


@pytest.mark.skipif(not has_pyscenedetect(), reason="PySceneDetect is not installed")
def test_the_detector_says_who_counted(monkeypatch):
    assert best_detector().name.startswith("PySceneDetect ")
    monkeypatch.setattr(cuts_module, "has_pyscenedetect", lambda: False)
    assert best_detector().name == AdaptiveCuts.name


@given(st.integers(0, 2**31))
def test_hsv_is_within_its_ranges_and_exact_for_value(seed):
    colors = torch.randint(0, 256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    hue, saturation, value = hsv8(colors).unbind(1)
    assert torch.equal(value, colors.amax(1))
    assert hue.min() >= 0 and hue.max() <= 180
    assert saturation.min() >= 0 and saturation.max() <= 255


@pytest.mark.parametrize(
    ("color", "want"),
    [
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((255, 0, 255), (150, 255, 255)),
        ((128, 128, 128), (0, 0, 128)),
        ((0, 0, 0), (0, 0, 0)),
        ((200, 100, 100), (0, 128, 200)),
    ],
)
def test_hsv_of_known_colors(color, want):
    assert hsv8(torch.tensor(color).float().view(1, 3, 1, 1)).flatten().tolist() == list(want)


@pytest.mark.parametrize(
    ("size", "want"),
    [((720, 1280), (144, 256)), ((1280, 720), (256, 144)), ((100, 200), (100, 200)), ((3, 2560), (1, 256))],
)
def test_scores_are_taken_on_frames_256_pixels_long(size, want):
    assert score_size(*size) == want
