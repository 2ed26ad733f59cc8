"""SCuts: the number of scene cuts, as StreamingT2V counts them with PySceneDetect's AdaptiveDetector and its defaults.

Where PySceneDetect is installed it does the counting. Otherwise our own detector follows the same published rule; how
often the two agree is in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# PySceneDetect's defaults: a frame is a cut when its score is 3 times the mean of its 2 + 2 neighbors and at least
# 15, and no cut was counted in the 15 frames before it. Scores are taken on frames 256 pixels long.
RATIO = 3.0
LEAST_SCORE = 15.0
WINDOW = 2
LEAST_SCENE_FRAMES = 15
LONG_SIDE_PX = 256


@dataclass(frozen=True)
class Cuts:
    """Scene cuts of a video. `frames`: the first frame of the scene after each cut; `detector`: who found them."""

    frames: tuple[int, ...]
    detector: str

    @property
    def count(self) -> int:
        return len(self.frames)


class CutDetector(Protocol):
    def add(self, frames: Tensor) -> None:
        """Take the next frames, `[F, H, W, 3]` in 0..1."""

    def cuts(self) -> Cuts:
        """The cuts among all frames so far."""


def score_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which frames are compared: the longer side at most 256 pixels."""
    factor = max(1.0, max(height, width) / LONG_SIDE_PX)
    return max(1, round(height / factor)), max(1, round(width / factor))


def hsv8(frames: Tensor) -> Tensor:
    """Hue (0..179), saturation and value (0..255) of RGB `[F, 3, H, W]`; whole numbers in and out."""
    red, green, blue = frames.unbind(1)
    value, low = frames.amax(1), frames.amin(1)
    spread = value - low
    safe = spread.clamp(min=1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = (30 * hue).round()
    return torch.stack((hue + 180 * (hue < 0), (255 * spread / value.clamp(min=1)).round(), value), 1)


class AdaptiveCuts:
    """Our detector. A frame's score is the mean absolute change of hue, saturation and value since the one before."""

    name = "own adaptive detector"

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._recent: deque[float] = deque(maxlen=2 * WINDOW + 1)
        self._seen = 0
        self._last_cut = 0
        self._found: list[int] = []

    def add(self, frames: Tensor) -> None:
        images = frames.movedim(-1, 1).float()
        size = score_size(*images.shape[-2:])
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        images = hsv8(images.mul(255).round())
        first = images[:1] if self._before is None else self._before
        scores = (images - torch.cat((first, images[:-1]))).abs().mean((1, 2, 3)).tolist()
        self._before = images[-1:].clone()
        for score in scores:
            self._recent.append(score)
            self._seen += 1
            if len(self._recent) == self._recent.maxlen:
                self._judge(self._seen - 1 - WINDOW)

    def _judge(self, frame: int) -> None:
        """Decide about `frame`, whose score is in the middle of the recent ones."""
        score = self._recent[WINDOW]
        around = (sum(self._recent) - score) / (2 * WINDOW)
        stands_out = score >= LEAST_SCORE and (around < 1e-5 or score / around >= RATIO)
        if stands_out and frame - self._last_cut >= LEAST_SCENE_FRAMES:
            self._found.append(frame)
            self._last_cut = frame

    def cuts(self) -> Cuts:
        return Cuts(tuple(self._found), self.name)


class PySceneDetectCuts:
    """PySceneDetect's AdaptiveDetector with its defaults, fed with frames as its own manager would shrink them."""

    def __init__(self) -> None:
        import cv2
        import scenedetect

        version = scenedetect.__version__
        self.name = f"PySceneDetect {version} AdaptiveDetector"
        self._cv2, self._timecode = cv2, scenedetect.FrameTimecode
        # Until version 0.7 detectors counted in plain frame numbers.
        self._plain_numbers = tuple(int(part) for part in version.split(".")[:2]) < (0, 7)
        self._detector = scenedetect.AdaptiveDetector()
        self._seen = 0
        self._found: list[int] = []

    def _place(self, frame: int):
        return frame if self._plain_numbers else self._timecode(frame, 25.0)

    def _note(self, places: list) -> None:
        self._found += [place if isinstance(place, int) else place.frame_num for place in places]

    def add(self, frames: Tensor) -> None:
        height, width = score_size(*frames.shape[1:3])
        for frame in frames:
            image = frame.float().mul(255).round().to("cpu", torch.uint8).numpy()
            if image.shape[:2] != (height, width):
                image = self._cv2.resize(image, (width, height), interpolation=self._cv2.INTER_LINEAR)
            image = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2BGR)
            self._note(self._detector.process_frame(self._place(self._seen), image))
            self._seen += 1

    def cuts(self) -> Cuts:
        return Cuts(tuple(sorted(set(self._found))), self.name)


@functools.cache
def has_pyscenedetect() -> bool:
    """Whether PySceneDetect can be used; OpenCV, which it needs, is often installed without the libraries it needs."""
    try:
        import cv2  # noqa: F401
        import scenedetect  # noqa: F401
    except ImportError:
        return False
    return True


def best_detector() -> CutDetector:
    """PySceneDetect where it is installed, our own detector elsewhere."""
    return PySceneDetectCuts() if has_pyscenedetect() else AdaptiveCuts()
