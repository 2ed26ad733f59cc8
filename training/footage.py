"""Where training clips come from: films made from seeds, or a folder of video files.

A source is asked for clips with a generator and gives the same ones for the same state of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming_core.errors import SettingsError
from streaming_core.frames import VideoFrames

from .films import HELD_OUT, Film, Footage, Variety, make_film

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Clip:
    """A stretch of a film and one earlier frame of it, the anchor `[1, 3, H, W]`; all in 0..1."""

    footage: Footage
    anchor: Tensor
    motion_bucket_id: int


class ClipSource(Protocol):
    """`draw` gives `num_frames` frames of some film, and the anchor.

    `anchor_frame` counts from the start of the film; the clip starts at one of `starts`, also counted so.
    """

    def draw(self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int) -> Clip: ...


def pick(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


@dataclass(frozen=True)
class FilmSource:
    """Films from seeds that are not held out."""

    size: int
    variety: Variety = "narrow"

    def draw(self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int) -> Clip:
        film = make_film(pick(generator, HELD_OUT), self.size, self.variety)
        return clip_of(film, num_frames, starts[pick(generator, len(starts))], anchor_frame)


def clip_of(film: Film, num_frames: int, start: int, anchor_frame: int) -> Clip:
    anchor = film.render(anchor_frame, anchor_frame + 1).frames
    return Clip(film.render(start, start + num_frames), anchor, film.motion_bucket_id)


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

    def draw(self, generator: torch.Generator, num_frames: int, starts: Sequence[int], anchor_frame: int) -> Clip:
        video = self.videos[pick(generator, len(self.videos))]
        fitting = [start for start in starts if max(start + num_frames, anchor_frame + 1) <= len(video)]
        start = fitting[pick(generator, len(fitting))]
        # A film may begin anywhere in the file.
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
