"""Color anchoring around any chunk sampler: the colors of every chunk are kept at the first one's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError
from ..loop.chunk import Chunk
from ..loop.sampler import Size, WrappedSampler
from ..loop.state import ChunkResult, VideoState
from .drift import LEAST_LAB, Reference, find_correction, has_cut, lab_planes, measure, small_frames

log = logging.getLogger(__name__)
COLOR_SPACES = ("lab", "latent")
CUT, LAST = "color_anchor.cut", "color_anchor.last"


@dataclass(frozen=True)
class ColorAnchor(WrappedSampler):
    """Brings the colors of each chunk back to those of the video's first one (`streaming_core.color.drift`).

    `space`: "lab" corrects the frames, "latent" the latents before they are decoded. `strength`: 0 to 1. Scene cuts
    above `cut_threshold` (0: do not look) end the correction: the video shows something else from there on.

    The corrected frames or latents are what the next chunk continues, where it continues frames or latents.

    Raises `SettingsError` around another one: the two would measure into one place.
    """

    space: str = "lab"
    strength: float = 1.0
    cut_threshold: float = 0.6

    def __post_init__(self) -> None:
        inner = self.inner
        while isinstance(inner, WrappedSampler):
            if isinstance(inner, ColorAnchor):
                raise SettingsError("this chunk sampler already has a Color Anchor; use one of them")
            inner = inner.inner

    def identity(self) -> Mapping[str, Any]:
        own = {"space": self.space, "strength": self.strength, "cut_threshold": self.cut_threshold}
        return {**self.inner.identity(), "color_anchor": own}

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        raise SettingsError(
            "Color Anchor has no effect between two keyframes, whose colors stay; connect the chunk sampler without it"
        )

    def carry(self, first: ChunkResult) -> Mapping[str, Tensor]:
        kept = {**self.inner.carry(first), LAST: small_frames(first.frames[-1:])}
        reference = self._reference(first)
        return kept if reference is None else {**kept, self._reference_key: reference}

    @property
    def _reference_key(self) -> str:
        # Steps of one video may use anchors of different spaces, whose references are of different sizes.
        return f"color_anchor.reference.{self.space}"

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        result = self.inner.next_chunk(chunk, state)
        if not self.strength or CUT in state.carry:
            return result
        small = small_frames(result.frames)
        if LAST in state.carry:
            small = torch.cat([state.carry[LAST], small])
        result = replace(result, carry={**result.carry, LAST: small[-1:]})
        if has_cut(small, self.cut_threshold):
            log.info("scene cut in chunk %d: colors are left as they are from here on", chunk.index)
            return replace(result, carry={**result.carry, CUT: torch.ones(1)})
        if self._reference_key not in state.carry:
            # A first chunk without latents cannot be the anchor of latents, nor one that was made without this one.
            reference = self._reference(result)
            if reference is None:
                return result
            log.info("Color Anchor: colors are kept at those of chunk %d, the first that it can measure", chunk.index)
            return replace(result, carry={**result.carry, self._reference_key: reference})
        return self._corrected(result, chunk, state)

    def _reference(self, result: ChunkResult) -> Tensor | None:
        if self.space == "lab":
            return Reference.of(measure(lab_planes(result.frames)), LEAST_LAB).to_tensor()
        return None if result.latents is None else Reference.of(measure(_rows(result.latents))).to_tensor()

    def _corrected(self, result: ChunkResult, chunk: Chunk, state: VideoState) -> ChunkResult:
        reference = Reference.from_tensor(state.carry[self._reference_key].to("cpu"))
        if self.space == "lab":
            found = find_correction(measure(lab_planes(result.frames)), reference, chunk.index, self.strength)
            corrected = replace(result, frames=found.apply_to_frames(result.frames))
            if result.lead is None:
                return corrected
            # As the frame that follows them: what fades in must meet it.
            lead = [found.apply_to_frames(frame, total=len(result.frames)) for frame in result.lead.split(1)]
            return replace(corrected, lead=torch.cat(lead))
        if result.latents is None:
            return result
        # The latents that are held or re-created count as measured, but stay as the chunk before left them.
        axis = 0 if result.latents.ndim == 4 else 2
        new = self._new_latents(result, chunk, axis)
        if not new:
            return result
        known = result.latents.shape[axis] - new
        rows = _rows(result.latents)
        found = find_correction(measure(rows[known:]), reference, chunk.index, self.strength)
        if found.is_nothing:
            return result
        latents = result.latents.clone()
        _rows(latents)[known:] = found.apply(rows[known:])
        return replace(result, latents=latents, frames=self.inner.decode(latents, chunk, state.tail))

    def _new_latents(self, result: ChunkResult, chunk: Chunk, axis: int) -> int:
        """How many of a later chunk's latents show none of the frames that the chunk before left."""
        if self.layout is None:
            count = 0 if result.latents is None else result.latents.shape[axis]
            # The first latent stands for one frame; the others for as many as the model call shows.
            called = chunk.overlap_frames + len(result.frames)
            frames_per_latent = max(1, round((called - 1) / max(1, count - 1)))
            return max(0, count - 1 - -(-(chunk.overlap_frames - 1) // frames_per_latent))
        return self.layout.latents(chunk.num_frames) - self.layout.latents(chunk.overlap_frames)


def _rows(latents: Tensor) -> Tensor:
    """Latents of one chunk as `[F, C, h, w]`, a view."""
    return latents if latents.ndim == 4 else latents[0].movedim(1, 0)
