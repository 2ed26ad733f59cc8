"""Where training clips come from: videos made from seeds, or a folder of video files.

A source is asked for clips with a generator and gives the same ones for the same state of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming_core.errors import SettingsError
from streaming_core.frames import VideoFrames

from .videos import HELD_OUT, Footage, Variety, Video, make_video

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Clip:
    """A stretch of a video and one frame of it, the anchor `[1, 3, H, W]`; all in 0..1.

    `latents` `[F, 4, h, w]` at unit scale and those of the anchor, `[4, h, w]`: where they have been made beforehand.
    """

    footage: Footage
    anchor: Tensor
    motion_bucket_id: int
    latents: Tensor | None = None
    anchor_latent: Tensor | None = None


class ClipSource(Protocol):
    """`draw` gives `num_frames` frames of some video, and the anchor.

    `anchor_frame` counts from the start of the video (None: the clip's own first frame); the clip starts at one of
    `starts`, also counted so.
    """

    def draw(
        self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int | None
    ) -> Clip: ...


def pick(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


@dataclass(frozen=True)
class VideoPool:
    """The videos of seeds 0, 1, 2 ... as unit-scale latents `[videos, frames, 4, h, w]`: encoded once, drawn often."""

    latents: Tensor

    @property
    def num_videos(self) -> int:
        return self.latents.shape[0]

    @property
    def num_frames(self) -> int:
        return self.latents.shape[1]


@dataclass(frozen=True)
class VideoSource:
    """Videos from seeds that are not held out; with a `pool` only those in it."""

    size: int
    variety: Variety = "narrow"
    pool: VideoPool | None = None

    def draw(
        self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int | None
    ) -> Clip:
        seed = pick(generator, self.pool.num_videos if self.pool else HELD_OUT)
        start = starts[pick(generator, len(starts))]
        clip = clip_of(make_video(seed, self.size, self.variety), num_frames, start, anchor_frame)
        if self.pool is None:
            return clip
        if start + num_frames > self.pool.num_frames:
            raise SettingsError(
                f"the pool's videos have {self.pool.num_frames} frames and frame {start + num_frames} was asked for; "
                "make longer ones with --stage pool --frames"
            )
        latents, anchor = self.pool.latents[seed], start if anchor_frame is None else anchor_frame
        return replace(clip, latents=latents[start : start + num_frames].float(), anchor_latent=latents[anchor].float())


def clip_of(video: Video, num_frames: int, start: int, anchor_frame: int | None) -> Clip:
    anchor_frame = start if anchor_frame is None else anchor_frame
    anchor = video.render(anchor_frame, anchor_frame + 1).frames
    return Clip(video.render(start, start + num_frames), anchor, video.motion_bucket_id)


@dataclass(frozen=True)
class FolderSource:
    """Every video file below a folder; the middle square of each frame, shrunk to `size` pixels.

    Make it with `open`. Nothing says what moves there, so `moving` is the brightness change against the frame before,
    0.1 and more counting as one.
    """

    videos: tuple[VideoFrames, ...]
    size: int
    motion_bucket_id: int = 127

    @classmethod
    def open(cls, folder: Path, size: int, shortest: int) -> FolderSource:
        """Raises `SettingsError` where no file below `folder` has at least `shortest` frames."""
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        videos = tuple(video for video in map(VideoFrames.open, paths) if len(video) >= shortest)
        if not videos:
            raise SettingsError(
                f"{folder} holds {len(paths)} video files and none has {shortest} frames; bring longer clips"
            )
        return cls(videos, size)

    def draw(
        self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int | None
    ) -> Clip:
        video = self.videos[pick(generator, len(self.videos))]
        fitting = [start for start in starts if max(start + num_frames, (anchor_frame or 0) + 1) <= len(video)]
        start = fitting[pick(generator, len(fitting))]
        anchor_frame = start if anchor_frame is None else anchor_frame
        # A video may begin anywhere in the file.
        first = pick(generator, len(video) - max(start + num_frames, anchor_frame + 1) + 1)
        anchor = self._fit(video.read(first + anchor_frame, first + anchor_frame + 1))
        frames = self._fit(video.read(first + start, first + start + num_frames))
        change = (frames[1:] - frames[:-1]).abs().mean(dim=1, keepdim=True)
        moving = (torch.cat([change[:1], change]) / 0.1).clamp(0, 1)
        return Clip(Footage(frames, moving), anchor, self.motion_bucket_id)

    def _fit(self, images: Tensor) -> Tensor:
        """`[F, H, W, 3]` to `[F, 3, size, size]`."""
        frames = images.movedim(-1, 1)
        side = min(frames.shape[-2:])
        top, left = (frames.shape[-2] - side) // 2, (frames.shape[-1] - side) // 2
        square = frames[..., top : top + side, left : left + side].float()
        return F.interpolate(square, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
