"""Sizes of LVDM's networks and what their latents are scaled by. Defaults are the published sky model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["unconditional", "conditional", "text"]
"""Short videos from noise; prediction and interpolation, which are shown known latents; short videos from a text."""
NOISE_LEVELS = 250
"""Levels of noise on known latents that the long models were trained with, so theirs is 0 to 250."""


@dataclass(frozen=True)
class LvdmConfig:
    """The UNet.

    Attributes:
        width: channels at full resolution.
        multipliers: of `width`, one per level, finest first.
        blocks_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention: per level, whether its blocks attend.
        heads: of every attention.
        in_channels: of what it reads: noisy latents, and for prediction and interpolation a mask.
        out_channels: channels of a latent.
        temporal_length: latents it was trained with; positions further apart than that count as that far. None for one
            without relative positions.
        scale_shift: whether the noise level scales and shifts a norm, or is added.
        context_width: channels of an encoded text token; None for one without text.
        depth: transformer blocks of an attention over text.
        labels: rows of the embedded noise level of known latents; None for one that is not told.
    """

    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks_per_level: int = 3
    attention: tuple[bool, ...] = (False, True, True, True)
    heads: int = 4
    in_channels: int = 4
    out_channels: int = 4
    temporal_length: int | None = 4
    scale_shift: bool = True
    context_width: int | None = None
    depth: int = 1
    labels: int | None = None

    @property
    def kind(self) -> Kind:
        if self.context_width is not None:
            return "text"
        return "conditional" if self.masked else "unconditional"

    @property
    def masked(self) -> bool:
        """Whether the last channel it reads says which latents are known."""
        return self.in_channels == self.out_channels + 1

    @property
    def factor(self) -> int:
        """Latents along an edge that one of the coarsest level stands for."""
        return 2 ** (len(self.multipliers) - 1)

    def level_width(self, level: int) -> int:
        return self.width * self.multipliers[level]


@dataclass(frozen=True)
class VideoAutoencoderConfig:
    """The 3-D autoencoder.

    Attributes:
        base_channels: of the first convolution; every level has twice as many as the one before it.
        hidden_channels: of what encoder and decoder exchange, before and after the convolutions between.
        latent_channels: channels of a latent.
        scales: frames, rows and columns of pixels that one latent stands for, powers of 2. The weights know the number
            of levels, so the largest of them; how many levels halve time leaves no trace.
    """

    base_channels: int = 32
    hidden_channels: int = 4
    latent_channels: int = 4
    scales: tuple[int, int, int] = (4, 8, 8)

    @property
    def levels(self) -> int:
        return max(self.scales).bit_length() - 1

    def strides(self, level: int) -> tuple[int, int, int]:
        """Along frames, rows and columns, of a change of level; both encoder and decoder begin with level 0."""
        frames, rows, columns = (2 if scale >> (level + 1) else 1 for scale in self.scales)
        return frames, rows, columns


@dataclass(frozen=True)
class LatentScale:
    """What lies between latents of an autoencoder and of a UNet (reference: lvdm, section 2)."""

    scale: float
    shift: float

    def to_model(self, latents: Tensor) -> Tensor:
        return self.scale * (latents + self.shift)

    def to_autoencoder(self, latents: Tensor) -> Tensor:
        return latents / self.scale - self.shift


LATENT_SCALES = {
    "sky": LatentScale(0.33422927, 1.4606637),
    "taichi": LatentScale(0.175733933, 0.03291025),
    "ucf": LatentScale(0.220142075, 0.5837740898),
    "text": LatentScale(0.18215, 0.0),
}
"""Of the official models, by what they were trained on."""
