"""A video that is saved, loaded and saved again keeps its colors, however often: nothing drifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streaming_core.frames import TensorFrames, VideoFrames, pixel_format_of, write_video
from streaming_core.frames.pixels import quantize

GENERATIONS = 5
BLOCK = 32


def color_chart() -> torch.Tensor:
    """`[1, H, W, 3]`: blocks of one color each, from black to white, the pure colors among them."""
    colors = torch.rand(12, 20, 3, generator=torch.Generator().manual_seed(1))
    colors[0, :8] = torch.tensor([[red, green, blue] for red in (0, 1) for green in (0, 1) for blue in (0, 1)])
    colors[1] = torch.linspace(0, 1, 20)[:, None]
    return colors.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[None]


def generations(folder, images: torch.Tensor, **options) -> torch.Tensor:
    """The images after five rounds of saving and loading."""
    suffix = ".mkv" if options["codec"] == "ffv1" else ".mp4"
    stream = TensorFrames(images, 24)
    for number in range(GENERATIONS):
        path = folder / f"{number}{suffix}"
        write_video(stream, path, **options)
        stream = VideoFrames.open(path)
    return stream.read(0, len(stream))


def inside(images: torch.Tensor) -> torch.Tensor:
    """The middle of each block, where no color is shared with a neighbor: `[F, rows, columns, 3]`."""
    return images[:, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]


@pytest.mark.parametrize(("bits", "within"), [(8, 1), (10, 0.5)])
def test_h264_keeps_the_colors_of_a_chart(tmp_path, bits, within):
    images = color_chart().expand(2, -1, -1, -1)
    found = generations(tmp_path, images, codec="h264", crf=12, pixel_format=pixel_format_of("h264", bits))
    errors = (inside(found) - inside(images)) * 255
    assert errors.abs().mean() <= within
    # A drift goes the same way everywhere, which rounding does not.
    assert errors.mean((0, 1, 2)).abs().max() <= within / 2


@pytest.mark.parametrize("bits", [8, 16])
def test_ffv1_keeps_every_value(tmp_path, bits):
    images = color_chart()
    images = torch.cat([images, torch.rand(1, *images.shape[1:], generator=torch.Generator().manual_seed(2))])
    found = generations(tmp_path, images, codec="ffv1", pixel_format=pixel_format_of("ffv1", bits))
    assert np.array_equal(quantize(found, bits), quantize(images, bits))
