"""Scores from CLIP embeddings: how well frames fit a text, and how like the anchor they stay.

Where embeddings come from is the caller's business: the host's CLIP and CLIP_VISION in nodes, a local folder on the
command line. Both scores are cosines; publications often print 100 times the text score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FrameError, SettingsError
from ..loop.chunk_layout import ChunkLayout

EmbedFrames = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClipTools:
    """What CLIP scores need.

    Attributes:
        embed_frames: frames `[F, H, W, 3]` in 0..1 to projected image embeddings `[F, D]`.
        text: projected text embedding `[D]`, or None for no text score.
        anchor: image `[1, H, W, 3]` in 0..1 to compare with, or None for the first frame of the video.
        name: what reports call the model.
    """

    embed_frames: EmbedFrames
    text: Tensor | None = None
    anchor: Tensor | None = None
    name: str = "CLIP"


def cosines(embeddings: Tensor, reference: Tensor) -> Tensor:
    """Cosine of every row of `[F, D]` with `reference` `[D]`, `[F]` in -1..1.

    Raises:
        SettingsError: widths differ: the embeddings come from two different CLIP models.
    """
    if embeddings.shape[-1] != reference.shape[-1]:
        raise SettingsError(
            f"image embeddings are {embeddings.shape[-1]} wide, text or anchor embeddings {reference.shape[-1]}; "
            "use the text and the vision part of the same CLIP model"
        )
    return F.cosine_similarity(embeddings.float(), reference.float()[None], dim=-1)


class ClipCurves:
    """Collects both curves slice by slice; at most one embedding, the anchor's, is kept."""

    def __init__(self, tools: ClipTools) -> None:
        self._tools = tools
        self._anchor = None if tools.anchor is None else self._embed(tools.anchor)[0]
        self.text: list[float] = []
        self.anchor: list[float] = []

    def _embed(self, frames: Tensor) -> Tensor:
        embeddings = self._tools.embed_frames(frames)
        if embeddings.ndim != 2 or len(embeddings) != len(frames):
            raise FrameError(f"{len(frames)} frames should give as many embeddings, got shape {list(embeddings.shape)}")
        return embeddings.float().cpu()

    def add(self, frames: Tensor) -> None:
        embeddings = self._embed(frames)
        if self._anchor is None:
            self._anchor = embeddings[0]
        self.anchor += cosines(embeddings, self._anchor).tolist()
        if self._tools.text is not None:
            self.text += cosines(embeddings, self._tools.text.flatten().cpu()).tolist()


@dataclass(frozen=True)
class Curve:
    """A score over the video: `mean` over all frames, `chunk_means` over those of each chunk, `worst` and its frame."""

    values: tuple[float, ...]
    mean: float
    chunk_means: tuple[float, ...]
    worst: float
    worst_frame: int


def curve(values: list[float], layout: ChunkLayout) -> Curve:
    """The curve of one value per frame."""
    scores = torch.tensor(values, dtype=torch.float64)
    return Curve(
        values=tuple(values),
        mean=float(scores.mean()),
        chunk_means=tuple(float(scores[chunk.start : chunk.stop].mean()) for chunk in layout.chunks),
        worst=float(scores.min()),
        worst_frame=int(scores.argmin()),
    )
