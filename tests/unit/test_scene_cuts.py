"""Scene cuts, motion and stills, told apart from two frames."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from streaming_core.frames.scene_cuts import change, is_cut, is_static
from streaming_core.interpolation.stream import CUT_THRESHOLD

SIZE = (180, 320)


def image(seed: int, contrast: float = 0.15, roughness: float = 1.3) -> torch.Tensor:
    """An image with the spectrum of photographs, `[3, H, W]`, larger than a frame."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (side * 3 // 2 for side in SIZE)
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    amplitude = ((down * height / width) ** 2 + across**2).sqrt().clamp(min=1 / width) ** -roughness
    noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(3, height, width, generator=generator)) * amplitude).real
    noise = noise.mean(0, keepdim=True) * 2 + noise * 0.5
    return ((noise - noise.mean()) / noise.std() * contrast + 0.5).clamp(0, 1)


def seen(source: torch.Tensor, x: float = 0.0, y: float = 0.0, zoom: float = 1.0, turn: float = 0.0) -> torch.Tensor:
    """A frame `[H, W, 3]` of `source`, moved by shares of the frame, zoomed, turned (radians)."""
    angle = torch.tensor(turn)
    cos, sin = torch.cos(angle) * 2 / 3 / zoom, torch.sin(angle) * 2 / 3 / zoom
    aspect = SIZE[0] / SIZE[1]
    matrix = torch.stack((torch.stack((cos, -sin * aspect, torch.tensor(x * 4 / 3))),
                          torch.stack((sin / aspect, cos, torch.tensor(y * 4 / 3)))))  # fmt: skip
    grid = functional.affine_grid(matrix[None], [1, 3, *SIZE], align_corners=False)
    frame = functional.grid_sample(source[None], grid, align_corners=False, padding_mode="border")
    return frame[0].movedim(0, -1)


MOTIONS = {
    "slow pan": {"x": 0.02},
    "fast pan": {"x": 0.09},
    "tilt": {"y": 0.06},
    "zoom": {"zoom": 1.12},
    "turn": {"turn": 0.06},
}


@pytest.mark.parametrize("contrast", [0.05, 0.2])
@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_no_cut(motion, contrast):
    for seed in range(3):
        source = image(seed, contrast)
        assert change(seen(source), seen(source, **MOTIONS[motion])) < CUT_THRESHOLD * 0.85


@pytest.mark.parametrize("contrast", [0.05, 0.2])
def test_another_scene_is_a_cut(contrast):
    for seed in range(6):
        first, second = seen(image(seed, contrast)), seen(image(seed + 100, contrast))
        assert change(first, second) > CUT_THRESHOLD * 1.15
        assert is_cut(first, second, CUT_THRESHOLD)
        assert not is_cut(first, second, 0)


def test_cut_between_plain_images():
    assert is_cut(torch.zeros(*SIZE, 3), torch.ones(*SIZE, 3), CUT_THRESHOLD)


def test_noise_flicker_and_fades_are_no_cuts():
    source = seen(image(1))
    generator = torch.Generator().manual_seed(2)
    noisy = [(source + 0.04 * torch.randn(source.shape, generator=generator)).clamp(0, 1) for _ in range(2)]
    assert change(*noisy) < CUT_THRESHOLD * 0.7
    assert change(source, (source * 1.08).clamp(0, 1)) < CUT_THRESHOLD * 0.7
    other = seen(image(50))
    assert change(0.95 * source + 0.05 * other, 0.85 * source + 0.15 * other) < CUT_THRESHOLD * 0.7


@pytest.mark.parametrize("size", [(1, 1), (5, 700), (8, 8), (48, 80), (37, 61)])
def test_any_size(size):
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(*size, 3, generator=generator)
    assert change(frame, frame) == 0


def test_static_allows_one_byte_step():
    frame = torch.linspace(0, 0.9, 48).reshape(4, 4, 3)
    assert is_static(frame, frame)
    assert is_static(frame, frame + 1 / 255)
    moved = frame.clone()
    moved[3, 3, 2] += 2 / 255
    assert not is_static(frame, moved)
