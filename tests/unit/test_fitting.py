"""Images of any shape at the size asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import FrameError, SettingsError
from streaming_core.frames.fitting import FITS, fit


@given(st.integers(16, 90), st.integers(16, 90), st.sampled_from(FITS))
def test_every_shape_lands_on_the_size_in_range(height, width, how):
    frames = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    fitted = fit(frames, 64, 128, how)
    assert fitted.shape == (2, 3, 64, 128)
    assert 0 <= fitted.min() and fitted.max() <= 1


def test_the_right_size_is_left_alone():
    frames = torch.rand(1, 3, 64, 128)
    assert fit(frames, 64, 128) is frames


def test_crop_keeps_the_center_and_pad_keeps_everything():
    wide = torch.zeros(1, 3, 64, 256)
    wide[..., :16] = 1.0
    assert fit(wide, 64, 64, "crop").max() < 0.01, "the left edge is cut away"
    padded = fit(wide, 64, 64, "pad")
    assert padded[0, 0, 32, :2].min() > 0.9, "the left edge is still there"


def test_dots_and_unknown_ways_are_refused():
    with pytest.raises(FrameError, match="1x1 pixels"):
        fit(torch.rand(1, 3, 1, 1), 64, 64)
    with pytest.raises(SettingsError, match="fold"):
        fit(torch.rand(1, 3, 64, 64), 64, 128, "fold")
