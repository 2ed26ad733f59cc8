"""Videos at a frame rate: the same ball, seen more or less often in a second, for the stages of DropletVideo.

A "narrow" video runs at `OWN_FPS`. Seen at 4 frames per second, its ball moves 5.2 pixels of 64 from frame to frame, at
32 frames per second 0.66: what DropletVideo's motion setting says of a video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .diffusion import FPS_ID
from .footage import pick
from .videos import HELD_OUT, Footage, Variety, Video, make_video

OWN_FPS = float(FPS_ID)
SLOWEST, FASTEST = 3.0, 40.0
"""Frame rates that are drawn: strongest and weakest motion."""
STARTS_PER_VIDEO = 40
"""A clip begins at one of so many frames of the video's own."""


@dataclass(frozen=True)
class TimedClip:
    """Frames of a video at `fps`, beginning at its own frame `start`."""

    video: Video
    fps: float
    start: int

    def render(self, num_frames: int) -> Footage:
        """Its first `num_frames` frames."""
        return self.video.at(self.start + torch.arange(num_frames, dtype=torch.float64) * (OWN_FPS / self.fps))

    @property
    def caption(self) -> str:
        return self.video.caption(self.start)


def draw_timed(generator: torch.Generator, size: int, variety: Variety, videos: int = HELD_OUT) -> TimedClip:
    """A clip of one of the first `videos` videos; the logarithm of its frame rate is uniform."""
    video = make_video(pick(generator, videos), size, variety)
    share = float(torch.rand((), generator=generator))
    fps = math.exp(math.log(SLOWEST) + share * math.log(FASTEST / SLOWEST))
    return TimedClip(video, fps, pick(generator, STARTS_PER_VIDEO))
