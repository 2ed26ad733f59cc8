"""Animated WebP, which FFmpeg does not read and the host writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from PIL import Image

from ..errors import VideoReadError
from .decoder import Source
from .look import Look, Orientation, over_black
from .media import Watch
from .rates import rate_of
from .video_index import VideoIndex, file_identity

_TICK = Fraction(1, 1000)
_DEFAULT_MS = 100
_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises for content that it cannot make sense of."""


def is_webp(path: str) -> bool:
    """Whether a file is WebP, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def find_webp(path: str, watch: Watch) -> tuple[VideoIndex, Look]:
    """Look through a WebP file; every frame is decoded, since only then its time is known.

    Raises:
        VideoReadError: damaged.
    """
    starts, now = [], 0
    try:
        with Image.open(path) as image:
            for number in range(getattr(image, "n_frames", 1)):
                watch()
                image.seek(number)
                image.load()
                starts.append(now)
                now += round(image.info.get("duration") or _DEFAULT_MS)
            size = (image.height, image.width)
            look = Look(*size, *size, Orientation(), None, 8, False, True)
    except _DAMAGE as error:
        raise VideoReadError(_damaged(path, error)) from error
    pts = np.array(starts, np.int64)
    rate, variable = rate_of(pts, _TICK, [1000 / Fraction(now - starts[-1])] if len(starts) == 1 else [])
    held = (now - starts[-1]) * _TICK
    uneven = variable or abs(held * rate - 1) > Fraction(1, 2)
    seconds = now * _TICK if uneven else len(starts) / rate
    return VideoIndex(len(starts), pts, np.zeros(1, np.int64), _TICK, rate, uneven, seconds), look


class WebpDecoder:
    """An open WebP file."""

    def __init__(self, source: Source) -> None:
        if file_identity(source.path) != source.identity:
            raise VideoReadError(f"{source.path} was changed while it was in use; load it again")
        self.source = source
        self.damaged: set[int] = set()
        self.position = 0
        self._image = Image.open(source.path)

    def images(self, numbers: Sequence[int], index: VideoIndex, look: Look) -> Iterator[torch.Tensor]:
        for number in numbers:
            try:
                self._image.seek(number)
                rgba = np.asarray(self._image.convert("RGBA"))
            except _DAMAGE as error:
                raise VideoReadError(_damaged(self.source.path, error)) from error
            self.position = number + 1
            yield torch.from_numpy(np.ascontiguousarray(over_black(rgba)))

    def close(self) -> None:
        self._image.close()


def _damaged(path: str, error: Exception) -> str:
    return f"{path} cannot be read as an animated image ({error}); it is damaged"
