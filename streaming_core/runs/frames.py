"""The video of a run folder as a stream: stored frames are read, latents are decoded on demand in fixed groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch

from ..errors import FrameError
from ..frames.stream import FrameStream, size_text, to_rgb
from ..loop.decoding import GROUPINGS, Grouping
from .chunk_file import ChunkFile


@dataclass(frozen=True)
class LatentGroup:
    """Latents `start` to `stop` are decoded in one call; of its frames, the `keep` after the first `skip` are used."""

    start: int
    stop: int
    skip: int
    keep: int


class LatentDecoder(Protocol):
    """What turns the latents of a chunk into frames. Groups depend on these two numbers only, never on free memory."""

    def groups(self, num_latents: int, first: int) -> Sequence[LatentGroup]:
        """The groups that together give the frames of a chunk from frame `first` on, in order."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames `[F, H, W, 3]` in 0..1 of the latents of one group."""


@dataclass(frozen=True)
class GroupDecoder:
    """A `LatentDecoder` for models with one frame per latent.

    Args:
        function: latents of one group -> frames `[F, H, W, 3]` in 0..1.
        grouping: "overlapping" or "official", see `decoding`.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    grouping: Grouping = "overlapping"

    def groups(self, num_latents: int, first: int) -> Sequence[LatentGroup]:
        return [
            LatentGroup(group.start, group.stop, group.keep_start - group.start, group.keep_stop - group.keep_start)
            for group in GROUPINGS[self.grouping](num_latents, first)
        ]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.function(latents)


@dataclass(frozen=True)
class StoredChunk:
    """One chunk's part of the video: `num_frames` frames after the first `skip_frames` of what the file holds.

    Its last `seam_frames` pass over into those of `ends_like`, another drawing of the same frames.
    """

    file: ChunkFile
    num_frames: int
    skip_frames: int
    has_frames: bool
    ends_like: StoredChunk | None = None
    seam_frames: int = 0

    def seam_weights(self, start: int, stop: int) -> torch.Tensor:
        """How much of `ends_like` is in frames `start` to `stop`: 0, and at the end n / (seam_frames + 1)."""
        ramp = torch.arange(start, stop) - (self.num_frames - self.seam_frames) + 1
        return ramp.clamp(min=0) / (self.seam_frames + 1)


@dataclass(frozen=True, eq=False)
class RunFolderFrames(FrameStream):
    """Frames of consecutive chunk files, at most `num_frames` of them.

    Made by `RunFolder.frames_stream`. A snapshot: chunks that are drawn anew later need a new stream.

    Args:
        chunks: in the order of the video.
        decoder: needed when a chunk holds latents instead of frames.
        frame_dim: dimension of stored latents that counts frames (0 for `[F, C, h, w]`, 2 for `[1, C, F, h, w]`).
        run_name: the run's name.

    Raises:
        RunDamagedError: from `read`, when a file is missing, cut off or altered.
    """

    chunks: tuple[StoredChunk, ...]
    height: int
    width: int
    fps: Fraction
    num_frames: int
    decoder: LatentDecoder | None = None
    frame_dim: int = 0
    run_name: str = ""
    _starts: tuple[int, ...] = field(init=False, repr=False)
    _last_group: dict[tuple[str, int], torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts, total = [], 0
        for chunk in self.chunks:
            starts.append(total)
            total += chunk.num_frames
        if not 1 <= self.num_frames <= total:
            raise FrameError(f"{self.num_frames} frames were asked for, the finished chunks hold {total}")
        if self.decoder is None and not all(chunk.has_frames for chunk in self.chunks):
            raise FrameError("this run stores latents; connect the VAE that decodes them")
        object.__setattr__(self, "_starts", tuple(starts))
        object.__setattr__(self, "_last_group", {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_group": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return self.num_frames

    def _read(self, start: int, stop: int) -> torch.Tensor:
        pieces = []
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            chunk, offset = self.chunks[number], self._starts[number]
            last = min(stop, offset + chunk.num_frames)
            if start < last:
                pieces.append(self._read_chunk(number, start - offset, last - offset))
                start = last
            number += 1
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_chunk(self, number: int, start: int, stop: int) -> torch.Tensor:
        """Frames of one chunk, counted from its first one in the video, with its seam."""
        chunk = self.chunks[number]
        frames = self._read_stored(chunk, number, start, stop)
        first = max(start, chunk.num_frames - chunk.seam_frames)
        if chunk.ends_like is not None and first < stop:
            other = self._read_stored(chunk.ends_like, number, first, stop)
            frames[first - start :].lerp_(other, chunk.seam_weights(first, stop)[:, None, None, None])
        return frames

    def _read_stored(self, chunk: StoredChunk, number: int, start: int, stop: int) -> torch.Tensor:
        """Frames of one file as a new tensor."""
        if chunk.has_frames:
            return to_rgb(chunk.file.read_range("frames", chunk.skip_frames + start, chunk.skip_frames + stop))
        latents = chunk.file.read("latents")
        pieces, offset = [], 0
        for index, group in enumerate(self.decoder.groups(latents.shape[self.frame_dim], chunk.skip_frames)):
            first, last = max(start - offset, 0), min(stop - offset, group.keep)
            if first < last:
                pieces.append(self._decoded((chunk.file.path.name, index), group, latents)[first:last])
            offset += group.keep
        if offset < stop:
            raise FrameError(f"the latents of chunk {number} decode to {offset} frames, {stop} were promised")
        return torch.cat(pieces)  # also the copy that protects the kept group

    def _decoded(self, key: tuple[str, int], group: LatentGroup, latents: torch.Tensor) -> torch.Tensor:
        kept = self._last_group.get(key)
        if kept is not None:
            return kept
        frames = to_rgb(self.decoder.decode(latents.narrow(self.frame_dim, group.start, group.stop - group.start)))
        if frames.shape[1:3] != (self.height, self.width):
            raise FrameError(
                f"the latents decode to {size_text(*frames.shape[1:3])}, the run is "
                f"{size_text(self.height, self.width)}; this VAE does not belong to the run"
            )
        decoded = frames.shape[0]
        frames = frames[group.skip : group.skip + group.keep]
        if frames.shape[0] != group.keep:
            raise FrameError(
                f"latents {group.start} to {group.stop} decode to {decoded} frames, "
                f"{group.skip + group.keep} were expected; this VAE does not belong to the run"
            )
        self._last_group.clear()  # one group at a time: memory stays that of one decoder call
        self._last_group[key] = frames
        return frames
