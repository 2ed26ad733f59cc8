"""Randomized blending hides seams that hard cuts show, and does not blur more than averaging does."""

from __future__ import annotations

import pytest
import torch

from benchmarks.blending_seams import Score, hard, linear, randomized, run
from streaming_core.windows.plan import plan_windows

VIDEOS = range(6)


def mean_score(way, **process) -> Score:
    scores = [run(way(seed), seed, **process) for seed in VIDEOS]
    return Score(sum(s.jump for s in scores) / len(scores), sum(s.sharpness for s in scores) / len(scores))


@pytest.mark.parametrize(
    "process",
    [{}, {"correlation": 0.6}, {"spread": 0.3}, {"disagreement": 1.5}],
    ids=["usual", "restless", "stubborn windows", "strong disagreement"],
)
def test_lower_jumps_than_hard_cuts_and_no_more_blur_than_averaging(process):
    cut, averaged, blended = (
        mean_score(way, **process) for way in (lambda _seed: hard, lambda _seed: linear, randomized)
    )
    assert blended.jump < 0.7 * cut.jump
    assert blended.sharpness >= averaged.sharpness
    # The case is a fair one: hard cuts do show seams, averaging does blur.
    assert cut.jump > 1.5 and averaged.sharpness < cut.sharpness


def test_the_reference_average_has_weights_that_add_up():
    windows = plan_windows(90, 38, 12)
    video = torch.randn(90, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = [video[window.start : window.stop] for window in windows]
    assert torch.allclose(linear(parts, windows, 0), video, atol=1e-6)
    assert torch.equal(hard(parts, windows, 0), video)
