"""Noise levels and guidance beyond what the recorded cases cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.models.streamingsvd.conditioning import augmentation_noise, clip_pixels, guide, linear_guidance
from streaming_core.schedules.ddim import cosine_betas, zero_terminal_snr
from streaming_core.schedules.svd import (
    ALIGN_YOUR_STEPS_SVD,
    align_your_steps_sigmas,
    karras_sigmas,
    v_prediction_scalings,
)


@given(st.integers(2, 200))
def test_schedules_fall_from_700_to_0(steps):
    for sigmas in (align_your_steps_sigmas(steps), karras_sigmas(steps)):
        assert len(sigmas) == steps + 1
        assert sigmas[0] == pytest.approx(700) and sigmas[-1] == 0
        assert (sigmas[:-1] > sigmas[1:]).all()


def test_the_table_itself_comes_back_at_its_own_length():
    assert align_your_steps_sigmas(11)[:-1].tolist() == pytest.approx(list(ALIGN_YOUR_STEPS_SVD), rel=1e-12)


def test_one_step_cannot_keep_both_ends():
    with pytest.raises(SettingsError, match="at least 2 steps"):
        align_your_steps_sigmas(1)


def test_the_enhancer_s_levels_are_the_same_on_every_processor():
    """NumPy's single-precision roots are rounded as IEEE 754 asks; those of other libraries depend on the machine."""
    roots = np.sqrt((1 - cosine_betas()).cumprod(0).numpy())
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    signal = roots * roots
    want = 1 - np.concatenate([signal[:1], signal[1:] / signal[:-1]])
    assert want.dtype == np.float32
    assert np.array_equal(zero_terminal_snr(cosine_betas()).numpy(), want)


@given(st.floats(0.002, 700))
def test_scalings_keep_unit_variance(sigma):
    scalings = v_prediction_scalings(torch.tensor(sigma, dtype=torch.float64))
    variance = 1 + sigma**2
    assert float(scalings.c_in) ** 2 * variance == pytest.approx(1)
    assert float(scalings.c_skip) ** 2 * variance + float(scalings.c_out) ** 2 == pytest.approx(1)


def test_guidance_is_per_frame():
    scale = linear_guidance(1.0, 3.0, 5)
    guided = guide(torch.zeros(5, 2, 1, 1), torch.ones(5, 2, 1, 1), scale)
    assert guided[:, 0, 0, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]


@given(st.integers(1, 40), st.integers(1, 40))
def test_clip_pixels_takes_every_size(height, width):
    gray = torch.zeros(1, 3, height, width)
    pixels = clip_pixels(gray, size_px=14, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert pixels.shape == (1, 3, 14, 14)
    assert pixels.abs().max() < 1e-5


def test_uniform_augmentation_brightens_and_gaussian_does_not():
    def mean(kind):
        return float(augmentation_noise((1, 3, 64, 64), kind, torch.Generator().manual_seed(0)).mean())

    assert mean("uniform") == pytest.approx(0.5, abs=0.02)
    assert mean("gaussian") == pytest.approx(0.0, abs=0.04)
    with pytest.raises(SettingsError, match="salt"):
        augmentation_noise((1,), "salt", torch.Generator())
