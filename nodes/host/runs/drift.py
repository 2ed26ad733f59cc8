"""Drift control around any chunk sampler: colors kept at the anchor chunk's, and a perturbed hand-off.

Both are chunk samplers themselves, so the loop, run folders and settings hashes serve them as any family.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....streaming_core.color.drift import (
    LEAST_LAB,
    Reference,
    find_correction,
    has_cut,
    lab_planes,
    measure,
    small_frames,
)
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.state import Clip, VideoState, decode_new, make_clip
from ..progress import StepProgress

log = logging.getLogger(__name__)
COLOR_SPACES = ("lab", "latent")
REFERENCE, CUT, LAST = "color_anchor.reference", "color_anchor.cut", "color_anchor.last"


@dataclass(frozen=True)
class AroundSampler:
    """A chunk sampler that does what `inner` does, unless it says otherwise."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def with_progress(self, progress: StepProgress):
        return replace(self, inner=self.inner.with_progress(progress))

    def with_held_noise(self, level: float):
        return replace(self, inner=with_perturbed_hand_off(self.inner, level))


@dataclass(frozen=True)
class ColorAnchor(AroundSampler):
    """Brings the colors of each chunk back to those of the video's first one (`streaming_core.drift`).

    `space`: "lab" corrects the frames, "latent" the latents before they are decoded. `strength`: 0 to 1. Scene cuts
    above `cut_threshold` (0: do not look) end the correction: the video has gone elsewhere.

    The corrected frames or latents are what the next chunk continues, where it continues frames or latents.
    """

    space: str = "lab"
    strength: float = 1.0
    cut_threshold: float = 0.6

    def settings(self) -> dict:
        own = {"space": self.space, "strength": self.strength, "cut_threshold": self.cut_threshold}
        return {**self.inner.settings(), "color_anchor": own}

    def remember(self, clip: Clip) -> dict[str, Tensor]:
        inner = getattr(self.inner, "remember", None)
        kept = {**(inner(clip) if inner else {}), LAST: small_frames(clip.frames[-1:])}
        reference = self._reference(clip)
        return kept if reference is None else {**kept, REFERENCE: reference}

    def make_clip(self, chunk: Chunk, state: VideoState) -> Clip:
        clip = make_clip(self.inner, chunk, state)
        if not self.strength or CUT in state.memory:
            return clip
        small = torch.cat([state.memory[LAST], small_frames(clip.frames)])
        clip = replace(clip, memory={**clip.memory, LAST: small[-1:]})
        if has_cut(small, self.cut_threshold):
            log.info("scene cut in chunk %d: colors are left as they are from here on", chunk.index)
            return replace(clip, memory={**clip.memory, CUT: torch.ones(1)})
        if REFERENCE not in state.memory:
            # A first clip without latents cannot be the anchor of latents; the first chunk is.
            reference = self._reference(clip)
            return clip if reference is None else replace(clip, memory={**clip.memory, REFERENCE: reference})
        return self._corrected(clip, chunk, state)

    def _reference(self, clip: Clip) -> Tensor | None:
        if self.space == "lab":
            return Reference.of(measure(lab_planes(clip.frames)), LEAST_LAB).to_tensor()
        return None if clip.latents is None else Reference.of(measure(_rows(clip.latents))).to_tensor()

    def _corrected(self, clip: Clip, chunk: Chunk, state: VideoState) -> Clip:
        reference = Reference.from_tensor(state.memory[REFERENCE].to("cpu"))
        if self.space == "lab":
            found = find_correction(measure(lab_planes(clip.frames)), reference, chunk.index, self.strength)
            return replace(clip, frames=found.apply_to_frames(clip.frames))
        if clip.latents is None:
            return clip
        # The latents that are held or re-created count as measured, but stay as the chunk before left them.
        axis = 0 if clip.latents.ndim == 4 else 2
        known = clip.latents.shape[axis] - self._new_latents(clip.latents, chunk, axis)
        rows = _rows(clip.latents)
        found = find_correction(measure(rows[known:]), reference, chunk.index, self.strength)
        if found.is_nothing:
            return clip
        latents = clip.latents.clone()
        _rows(latents)[known:] = found.apply(rows[known:])
        return replace(clip, latents=latents, frames=decode_new(self.inner, latents, chunk, state))

    def _new_latents(self, latents: Tensor, chunk: Chunk, axis: int) -> int:
        layout = getattr(self.inner, "layout", None)
        if layout is None:
            return latents.shape[axis] - chunk.overlap_frames
        return layout.latents(chunk.num_frames) - layout.latents(chunk.overlap_frames)


def _rows(latents: Tensor) -> Tensor:
    """Latents of one clip as `[F, C, h, w]`, a view."""
    return latents if latents.ndim == 4 else latents[0].movedim(1, 0)


@dataclass(frozen=True)
class PerturbedHandOff(AroundSampler):
    """Shows the family its control frames with noise on them; the video keeps the clean ones.

    `level`: standard deviation of the noise for frames in 0..1. Drawn from the chunk's seed, once per chunk.
    """

    level: float = 0.0

    def settings(self) -> dict:
        return {**self.inner.settings(), "perturbed_hand_off": self.level}

    def make_clip(self, chunk: Chunk, state: VideoState) -> Clip:
        # A generator of its own: the family's noise stays what it is without.
        generator = torch.Generator("cpu").manual_seed(chunk.generator().initial_seed() ^ 0x7E57)
        noise = torch.randn(state.tail.shape, generator=generator).to(state.tail)
        tail = (state.tail + self.level * noise).clamp(0, 1)
        return make_clip(self.inner, chunk, replace(state, tail=tail))


def with_perturbed_hand_off(sampler, level: float):
    """`sampler` with noise on what it continues; families that hold latents do it themselves."""
    if not level:
        return sampler
    own = getattr(sampler, "with_held_noise", None)
    return own(level) if own is not None else PerturbedHandOff(sampler, level)
