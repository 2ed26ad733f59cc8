"""What is carried from chunk to chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import SettingsError
from .chunk import Chunk
from .plan import VideoPlan


@dataclass(frozen=True)
class Anchor:
    """The frame that stands for the appearance of the whole video.

    `frame` `[n, 3, H, W]`, one frame unless the family averages several; `embedding`: what
    `ChunkSampler.embed_anchor` made of it, computed once per video.
    """

    frame: Tensor
    embedding: Any = None


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk adds.

    Attributes:
        frames: `[n, 3, H, W]` in [0, 1], the new ones.
        latents: of all frames of the model call, where it has them.
        carry: what later chunks need to know of this one besides the tail, small tensors by name.
        lead: what it made of the last `ChunkSampler.lead_frames` frames before it, into which they pass over when the
            video is read; None where the chunk begins without.
    """

    frames: Tensor
    latents: Tensor | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    lead: Tensor | None = None


@dataclass(frozen=True)
class VideoState:
    """A video so far.

    Attributes:
        plan: the plan it follows.
        anchor: the frame it keeps looking like.
        tail: what the next chunk continues, its last frames (at most `plan.overlap_frames`) or latents.
        num_chunks: chunks made so far, the first one included.
        carry: what samplers noted of earlier chunks (`ChunkResult.carry`).
        lead: `ChunkResult.lead` of the last chunk; what continues the video has no use for it.
    """

    plan: VideoPlan
    anchor: Anchor
    tail: Tensor
    num_chunks: int
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    lead: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are made."""
        return self.num_chunks >= self.plan.num_chunks

    @property
    def next_chunk(self) -> Chunk:
        """The chunk that `continue_video` makes; raises `SettingsError` when the video is complete."""
        if self.is_complete:
            raise SettingsError(
                f"the video already has its {self.plan.num_frames} frames; plan a longer one to continue"
            )
        return self.plan.chunk(self.num_chunks)
