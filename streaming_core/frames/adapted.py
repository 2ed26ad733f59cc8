"""A video at another size and rate, aligned at its end, so that it can be continued."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch

from .fitting import Fit, fit
from .stream import FrameStream, as_rate, size_text

FIT_WORDS = {"crop": "the rest is cropped", "pad": "borders are repeated", "stretch": "the aspect ratio is changed"}


@dataclass(frozen=True)
class AdaptedFrames(FrameStream):
    """`source` at `height` x `width` pixels and `fps`; frames are repeated or left out, the last one always stays.

    Args:
        how: what happens to another shape, see `fitting.fit`.
    """

    source: FrameStream
    height: int
    width: int
    fps: Fraction
    how: Fit = "crop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", as_rate(self.fps))

    @property
    def decodes(self) -> bool:
        return self.source.decodes

    def __len__(self) -> int:
        return floor((len(self.source) - 1) * self.fps / self.source.fps) + 1

    def number_of(self, number: int) -> int:
        """The frame of `source` that frame `number` is."""
        return len(self.source) - 1 - floor((len(self) - 1 - number) * self.source.fps / self.fps)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        frames, places = self.source.picked([self.number_of(number) for number in range(start, stop)])
        return fit(frames.movedim(-1, 1), self.height, self.width, self.how).movedim(1, -1).contiguous()[places]

    def words(self) -> str:
        """What was adapted, in a sentence."""
        source = self.source
        size = "the size is unchanged" if _same_size(self, source) else self._size_words()
        ratio = float(source.fps / self.fps)
        if self.fps == source.fps:
            rate = "every frame is used"
        elif ratio > 1:
            rate = f"one of every {ratio:.3g} frames is used, for {float(self.fps):.5g} frames per second"
        else:
            rate = f"frames are repeated {1 / ratio:.3g} times, for {float(self.fps):.5g} frames per second"
        return f"{describe(source)}; {size}; {rate}: {len(self)} frames."

    def _size_words(self) -> str:
        same_shape = self.height * self.source.width == self.width * self.source.height
        how = "" if same_shape else f", {FIT_WORDS[self.how]}"
        return f"resized to {size_text(self.height, self.width)}{how}"


def _same_size(one: FrameStream, two: FrameStream) -> bool:
    return (one.height, one.width) == (two.height, two.width)


def describe(video: FrameStream) -> str:
    """Size, rate and length of a video in words."""
    return (
        f"{size_text(video.height, video.width)} at {float(video.fps):.5g} frames per second, {len(video)} frames, "
        f"{float(video.seconds):.1f} s"
    )
