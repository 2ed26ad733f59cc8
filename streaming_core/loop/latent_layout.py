"""Chunks of models that work on latents of several frames: valid lengths, the latent tail, decoding without seams.

Causal video autoencoders give the first latent of a video one frame and every other one `frames_per_latent` frames, so
valid lengths are `1 + n * frames_per_latent` frames (4n+1, 8n+1, or any length where a latent is a frame). A video is a
long row of latents: a chunk of N latents that holds the last k of them adds N - k, and `(N - k) * frames_per_latent`
frames, whatever chunk it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingsError

CONTEXT_LATENTS = 8
"""Latents before the new ones that a temporal decoder is shown again, so that it does not see a beginning."""
GROUP_LATENTS = 24
"""Most new latents that are decoded in one call."""


@dataclass(frozen=True)
class LatentLayout:
    """How the latents of a model stand for frames.

    Attributes:
        frames_per_latent: frames of every latent but the first of a video.
        axis: dimension of latents that counts them, 0 for `[F, C, h, w]`, 2 for `[1, C, F, h, w]`.
        first_frames: frames of the first latent; one with causal autoencoders.
    """

    frames_per_latent: int
    axis: int
    first_frames: int = 1

    @property
    def context(self) -> int:
        """Latents that are kept for the decoder beyond those that the next chunk holds."""
        return CONTEXT_LATENTS if self.axis == 2 else 0

    def frames(self, latents: int) -> int:
        """Frames of that many latents, decoded together."""
        return self.first_frames + (latents - 1) * self.frames_per_latent

    def latents(self, frames: int) -> int:
        """Latents of a chunk of that many frames.

        Raises `SettingsError`, naming the nearest lengths, where no number of latents has this length.
        """
        below = self.valid_below(frames)
        first = self.first_frames
        if frames < first or below != frames:
            above = max(below, first - self.frames_per_latent) + self.frames_per_latent
            raise SettingsError(
                f"this model makes chunks of {self.words}, not of {frames} frames; {max(below, first)} and {above} are "
                "nearest"
            )
        return 1 + (frames - first) // self.frames_per_latent

    @property
    def words(self) -> str:
        if self.frames_per_latent == 1:
            return "any length"
        rest = self.first_frames % self.frames_per_latent
        return f"{self.frames_per_latent}n{f'+{rest}' if rest else ''} frames"

    def valid_below(self, frames: int) -> int:
        """The longest valid length of at most `frames`."""
        return frames - (frames - self.first_frames) % self.frames_per_latent

    def nearest(self, frames: int) -> int:
        """The nearest valid length; the longer one of two."""
        below = self.valid_below(max(self.first_frames, frames))
        above = below + self.frames_per_latent
        return below if frames - below < above - frames else above

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        """The nearest lengths of chunk and overlap that the model has, at least one latent apart."""
        overlap = self.nearest(overlap_frames)
        return max(self.nearest(chunk_frames), overlap + self.frames_per_latent), overlap

    def last(self, latents: Tensor, count: int) -> Tensor:
        """The last `count` latents (fewer where there are not so many), in memory of their own."""
        size = latents.shape[self.axis]
        return latents.narrow(self.axis, max(0, size - count), min(count, size)).clone()

    def after(self, latents: Tensor, count: int) -> Tensor:
        """All latents but the first `count`."""
        return latents.narrow(self.axis, count, latents.shape[self.axis] - count)


@dataclass(frozen=True)
class ClipGroup:
    """Latents `start..stop` are decoded together; the last `keep` frames of the result are used."""

    start: int
    stop: int
    keep: int


def clip_groups(layout: LatentLayout, num_latents: int, known: int, group: int = GROUP_LATENTS) -> list[ClipGroup]:
    """Decoder calls for the frames of all latents but the first `known`, which are context.

    Groups depend on these numbers alone, never on free memory. Every group but one at a video's beginning is shown
    latents before its own; the frames of those are dropped, with the single frame of the first latent that is decoded.
    """
    groups: list[ClipGroup] = []
    start = known
    while start < num_latents:
        stop = min(start + group, num_latents)
        begin = max(0, start - max(layout.context, 1))
        keep = layout.frames(stop) if start == 0 else (stop - start) * layout.frames_per_latent
        groups.append(ClipGroup(begin, stop, keep))
        start = stop
    return groups


def decode_clip(
    layout: LatentLayout, latents: Tensor, known: int, decode: Callable[[Tensor], Tensor], group: int = GROUP_LATENTS
) -> Iterator[Tensor]:
    """Frames of all latents but the first `known`, group by group.

    `decode` takes latents as one video and returns its frames, the first dimension counting them.

    Raises `SettingsError` where it returns another number of frames than the layout says.
    """
    for part in clip_groups(layout, latents.shape[layout.axis], known, group):
        count = part.stop - part.start
        frames = decode(latents.narrow(layout.axis, part.start, count))
        if frames.shape[0] != layout.frames(count):
            raise SettingsError(
                f"{count} latents decode to {frames.shape[0]} frames, {layout.frames(count)} were expected; "
                "this VAE does not belong to the model"
            )
        yield frames[frames.shape[0] - part.keep :]


def perturb(latents: Tensor, level: float, noise: Tensor) -> Tensor:
    """Latents of unit variance with noise of `level` times their size, at unit variance again.

    Conditional latent perturbation (LVDM, arXiv 2211.13221; reference: lvdm, section 6.3): `level` is its
    sqrt((1 - a) / a).
    """
    size: float = (1 + level**2) ** 0.5
    return (latents + level * noise) / size


def held_mask(layout: LatentLayout, num_latents: int, held: int) -> Tensor:
    """Denoise mask of a chunk: 0 for the first `held` latents, 1 for what is to be made; 1 in all other dimensions."""
    shape = [1] * (4 if layout.axis == 0 else 5)
    shape[layout.axis] = num_latents
    mask = torch.ones(shape)
    mask.narrow(layout.axis, 0, held).zero_()
    return mask
