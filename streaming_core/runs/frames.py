"""The video of a run folder as a stream: stored frames are read from the chunk files when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction

import torch

from ..errors import FrameError
from ..frames.stream import FrameStream, to_rgb
from .chunk_file import ChunkFile


@dataclass(frozen=True)
class StoredChunk:
    """One chunk's part of the video: the `num_frames` frames that its file holds.

    The last `seam_frames` of them pass over into those of `ends_like`, another take of the same frames. Then the last
    `lead_frames` pass over into the lead in the file `lead`, what the chunk after this one made of them. `exact`
    are pairs of a frame and the row of the tensor `exact_from` that has it bit for bit.
    """

    file: ChunkFile
    num_frames: int
    ends_like: StoredChunk | None = None
    seam_frames: int = 0
    exact: tuple[tuple[int, int], ...] = ()
    exact_from: str = ""
    lead: ChunkFile | None = None
    lead_frames: int = 0

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Frames `start` to `stop` of this chunk with its seam, a new float32 tensor `[F, H, W, 3]` in 0..1.

        Raises:
            RunDamagedError: a file is missing, cut off or altered.
        """
        frames = to_rgb(self.file.read_range("frames", start, stop))
        for frame, row in self.exact:
            if start <= frame < stop:
                frames[frame - start] = to_rgb(self.file.read_range(self.exact_from, row, row + 1))[0]
        first = max(start, self.num_frames - self.seam_frames)
        if self.ends_like is not None and first < stop:
            other = self.ends_like.read(first, stop)
            frames[first - start :].lerp_(other, self.weights(first, stop, self.seam_frames))
        first = max(start, self.num_frames - self.lead_frames)
        if self.lead is not None and first < stop:
            skipped = self.num_frames - self.lead_frames  # below 0 where the lead is longer than this chunk
            other = to_rgb(self.lead.read_range("lead", first - skipped, stop - skipped))
            frames[first - start :].lerp_(other, self.weights(first, stop, self.lead_frames))
        return frames

    def weights(self, start: int, stop: int, over: int) -> torch.Tensor:
        """How much of what the last `over` frames pass over into is in frames `start` to `stop`: n / (over + 1)."""
        ramp = torch.arange(start, stop) - (self.num_frames - over) + 1
        return (ramp.clamp(min=0) / (over + 1))[:, None, None, None]


@dataclass(frozen=True, eq=False)
class RunFolderFrames(FrameStream):
    """Frames of consecutive chunk files, at most `num_frames` of them.

    Made by `RunFolder.frames_stream`. A snapshot: chunks that are rerolled later need a new stream.

    Args:
        chunks: in the order of the video.
        run_name: the run's name.

    Raises:
        RunDamagedError: from `read`, when a file is missing, cut off or altered.
    """

    chunks: tuple[StoredChunk, ...]
    height: int
    width: int
    fps: Fraction
    num_frames: int
    run_name: str = ""
    _starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts, total = [], 0
        for chunk in self.chunks:
            starts.append(total)
            total += chunk.num_frames
        if not 1 <= self.num_frames <= total:
            raise FrameError(f"{self.num_frames} frames were asked for, the finished chunks hold {total}")
        object.__setattr__(self, "_starts", tuple(starts))

    def __len__(self) -> int:
        return self.num_frames

    def _read(self, start: int, stop: int) -> torch.Tensor:
        pieces = []
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            chunk, offset = self.chunks[number], self._starts[number]
            last = min(stop, offset + chunk.num_frames)
            if start < last:
                pieces.append(chunk.read(start - offset, last - offset))
                start = last
            number += 1
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
