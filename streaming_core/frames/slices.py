"""How many frames are held at a time, and whether they are frames at all."""

from __future__ import annotations

import torch

from ..errors import NotNumbersError

SLICE_BYTES = 96_000_000
"""What a slice of float32 frames may take: 8 frames of 1280x720, less than one of 3840x2160."""
MOST_FRAMES = 16


def frames_per_slice(height: int, width: int, most: int = MOST_FRAMES) -> int:
    """How many frames of this size are held at a time: 1 to `most`, as many as `SLICE_BYTES` holds in float32."""
    return max(1, min(most, SLICE_BYTES // (height * width * 12)))


def checked(frames: torch.Tensor, first: int = 0) -> torch.Tensor:
    """The same frames `[F, ...]`, which hold numbers only; `first` is the number of the first one.

    Raises:
        NotNumbersError: NaN or infinity in a frame; it would turn a video black and every measure of it into nothing.
    """
    # A sum is the quickest look at all values; one that is no number only says that a closer look is needed.
    if frames.is_floating_point() and not frames.sum(dtype=torch.float32).isfinite():
        for number, frame in enumerate(frames, start=first):
            if not frame.isfinite().all():
                raise NotNumbersError(number)
    return frames
