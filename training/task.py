"""What a stage is to the training loop, and what most stages have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streaming_core.errors import SettingsError

from .footage import VideoPool, VideoSource
from .layout import Weights
from .videos import Variety, Video, held_out_videos


class Task(Protocol):
    """One stage: what is trained and on what."""

    stage: str
    network: nn.Module
    """All of its parameters are trained."""

    def settings(self) -> dict[str, Any]:
        """What a run must agree in to be resumed."""

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one step; draws everything from `generator`."""

    def measure(self) -> dict[str, float]:
        """How good the network is now, on held-out clips; draws nothing from outside."""

    def weights(self) -> Weights:
        """What the next stage and the export read."""


@dataclass(frozen=True)
class Clips:
    """What a stage is trained on: `batch` clips of `frames` frames in each step, `size` pixels squared.

    With a `pool` they are from its videos, which need not be encoded.
    """

    size: int = 96
    variety: Variety = "narrow"
    pool: VideoPool | None = None
    batch: int = 3
    frames: int = 8

    @property
    def source(self) -> VideoSource:
        return VideoSource(self.size, self.variety, self.pool)

    def settings(self) -> dict[str, Any]:
        pool = self.pool.num_videos if self.pool else 0
        return {
            "size": self.size, "videos": self.variety, "batch": self.batch, "frames": self.frames, "pool": pool,
        }  # fmt: skip

    def starts(self, length: int) -> range:
        """Frames at which clips of `length` frames begin: all of a pool's videos, or the first one."""
        return range((self.pool.num_frames if self.pool else length) - length + 1)

    def held_out(self, count: int) -> list[Video]:
        return held_out_videos(count, self.size, self.variety)


def check_overlap(overlap: int, frames: int) -> None:
    """Raises `SettingsError` where control frames are none or all of a clip."""
    if not 0 < overlap < frames:
        raise SettingsError(f"{overlap} control frames leave nothing new in clips of {frames}; use fewer")
