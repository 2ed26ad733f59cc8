"""What makes the frames of a gap: a chunk sampler that is shown both ends, or an interpolation network.

Frames are `[F, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SettingsError
from ..frames.stream import TensorFrames
from ..interpolation.stream import CUT_THRESHOLD, InterpolatedFrames, InterpolationModel
from ..interpolation.timeline import multiplied
from .chunk import Chunk
from .hierarchy import GAP_CUES, GapPlan
from .refusals import cannot_fill
from .sampler import ChunkSampler, Progress, Size

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
LONGEST_CALL = 8
"""A model call has at most this many frames for each one that is kept."""
_STRIDES = range(2, 257)


def gap_length(sampler: ChunkSampler, stride: int) -> int:
    """Frames of the shortest model call, both ends included, that has every frame of a gap of `stride` in it.

    A model that makes other lengths only is asked for `k * stride + 1` frames, of which every k-th is kept.

    Raises:
        SettingsError: the family cannot fill gaps, or no length up to `LONGEST_CALL` times the stride fits; names the
            nearest strides that do.
    """
    if not sampler.fills:
        raise cannot_fill(sampler.family)
    length = _length(sampler, stride)
    if length is not None:
        return length
    fitting = sorted((each for each in _STRIDES if _length(sampler, each)), key=lambda each: abs(each - stride))[:3]
    way_out = f"use stride {' or '.join(map(str, sorted(fitting)))}" if fitting else "use an interpolation model"
    raise SettingsError(f"{sampler.family} makes no length that has gaps of stride {stride} in it; {way_out}")


def _length(sampler: ChunkSampler, stride: int) -> int | None:
    lengths = (times * stride + 1 for times in range(1, LONGEST_CALL + 1))
    return next((length for length in lengths if sampler.fit_gap(length) == length), None)


class Filler(ABC):
    """Makes the `stride - 1` frames between two neighbors. Instances are frozen."""

    kind: str
    """What the run folder keeps as the kind of its runs. A property where it depends on the model."""
    stride: int
    model_frames: int
    """Frames of one model call, both ends included."""

    @abstractmethod
    def accept(self, plan: GapPlan, size: Size) -> None:
        """Raise `SettingsError` for what cannot be made. Called once, before anything is loaded."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides what it makes and is the same for all gaps, as plain values."""

    @abstractmethod
    def gap_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        """What else decides this gap, besides the frames at its ends."""

    @abstractmethod
    def steps(self, chunk: Chunk) -> int:
        """Steps that the bar moves for a gap."""

    @abstractmethod
    def with_progress(self, progress: Progress) -> Self:
        """The same, moving this bar."""

    @abstractmethod
    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        """The frames `[stride - 1, 3, H, W]` between two of `[1, 3, H, W]`, without these."""


@dataclass(frozen=True)
class SampledGaps(Filler):
    """Gaps made by a chunk sampler.

    Raises `SettingsError` for a family that cannot, or not with this stride.
    """

    sampler: ChunkSampler
    stride: int
    model_frames: int = field(init=False)

    def __post_init__(self) -> None:
        length = gap_length(self.sampler, self.stride)
        object.__setattr__(self, "model_frames", length)

    @property
    def kind(self) -> str:  # type: ignore[override]
        return f"{self.sampler.family} gaps"

    @property
    def keeps_every(self) -> int:
        """One of this many frames of a model call is kept."""
        return (self.model_frames - 1) // self.stride

    def accept(self, plan: GapPlan, size: Size) -> None:
        if self.keeps_every > 1:
            log.info(
                "%s: a gap of %d frames is made as %d frames, of which one of %d is kept",
                *(self.sampler.family, self.stride + 1, self.model_frames, self.keeps_every),
            )
        chunks = {tuple(chunk.cues(*GAP_CUES).items()): chunk for chunk in reversed(plan.chunks)}
        for chunk in chunks.values():
            self.sampler.accept_gap(chunk, size)

    def identity(self) -> Mapping[str, Any]:
        return {"sampler": dict(self.sampler.identity())}

    def gap_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        return {**self.sampler.chunk_identity(chunk), "seed": chunk.seed, "index": chunk.index}

    def steps(self, chunk: Chunk) -> int:
        return self.sampler.steps(chunk)

    def with_progress(self, progress: Progress) -> Self:
        return replace(self, sampler=self.sampler.with_progress(progress))

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        frames = self.sampler.fill(first, last, chunk)
        if frames.shape != (self.model_frames, *first.shape[1:]):
            raise SettingsError(
                f"{self.sampler.family} made frames of shape {list(frames.shape)} between two keyframes, "
                f"{[self.model_frames, *first.shape[1:]]} were expected; report this to its author"
            )
        return frames[:: self.keeps_every][1:-1]


@dataclass(frozen=True)
class InterpolatedGaps(Filler):
    """Gaps made by an interpolation network, the same every time: no seed, no prompt. Scene cuts are held.

    `description`: the network by content.
    """

    model: InterpolationModel
    description: Mapping[str, Any]
    stride: int
    progress: Progress | None = None

    kind = "interpolated gaps"

    @property
    def model_frames(self) -> int:  # type: ignore[override]
        return self.stride + 1

    def accept(self, plan: GapPlan, size: Size) -> None:
        if plan.keyframes is not None:
            raise SettingsError(
                "plan has no effect with interp_model, which follows no prompt; disconnect plan, or fill with a chunk "
                "sampler"
            )

    def identity(self) -> Mapping[str, Any]:
        return {"interp_model": dict(self.description), "cut_threshold": CUT_THRESHOLD}

    def gap_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        return {"index": chunk.index}

    def steps(self, chunk: Chunk) -> int:
        return self.stride - 1

    def with_progress(self, progress: Progress) -> Self:
        return replace(self, progress=progress)

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        ends = TensorFrames(torch.cat([first, last]).movedim(1, -1), Fraction(1))
        video = InterpolatedFrames(ends, multiplied(2, Fraction(1), self.stride), self.model)
        made = []
        for frames in video.slices(start=1, stop=self.stride):
            made.append(frames.movedim(-1, 1))
            if self.progress is not None:
                self.progress.advance(len(frames))
        return torch.cat(made)
