"""Sizes that an image VAE can encode, and how frames get there."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FrameError, SettingsError
from ..frames.fitting import Fit

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Size:
    """Height and width in pixels."""

    height_px: int
    width_px: int


@dataclass(frozen=True)
class FrameTarget:
    """What a video's frames are turned into before they are encoded.

    Attributes:
        size: height and width of every frame.
        fit: how frames of another shape are brought to `size`.
        eight_bit: round to 8 bits first, as the official enhancer does.
    """

    size: Size
    fit: Fit
    eight_bit: bool = False


def fit_size(source: Size, box: Size) -> Size:
    """The largest size with the source's aspect ratio inside `box`, both sides rounded to whole latent pixels.

    Rounding changes the aspect ratio by less than one latent pixel per side; fitting with "crop" cuts that off.

    Raises:
        FrameError: a side of either is not positive.
    """
    if min(source.height_px, source.width_px, box.height_px, box.width_px) < 1:
        raise FrameError(
            f"frames of {source.width_px}x{source.height_px} cannot be brought into {box.width_px}x{box.height_px}"
        )
    scale = min(box.height_px / source.height_px, box.width_px / source.width_px)

    def snap(length: int) -> int:
        return max(PIXELS_PER_LATENT, round(length * scale / PIXELS_PER_LATENT) * PIXELS_PER_LATENT)

    return Size(min(snap(source.height_px), _floor(box.height_px)), min(snap(source.width_px), _floor(box.width_px)))


def _floor(length: int) -> int:
    return max(PIXELS_PER_LATENT, length // PIXELS_PER_LATENT * PIXELS_PER_LATENT)


def check_size(size: Size) -> None:
    """Check that both sides are whole numbers of latent pixels.

    Raises:
        SettingsError: one of them is not; the sentence names a size that is.
    """
    bad = [length for length in (size.width_px, size.height_px) if length < 1 or length % PIXELS_PER_LATENT]
    if bad:
        raise SettingsError(
            f"width and height are multiples of {PIXELS_PER_LATENT}, got {size.width_px}x{size.height_px}: "
            f"use {_floor(size.width_px)}x{_floor(size.height_px)}"
        )
