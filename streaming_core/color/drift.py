"""Color anchoring: each chunk's colors are brought back to those of the anchor chunk, never to the chunk before.

Drift is what happens to the whole image: every part of it gets lighter, greener, flatter. What moves through the
image changes averages too, and must not be taken for drift. So a chunk is measured twice, on a coarse grid:

* place by place: the median over the grid of how much each place has changed against the anchor chunk. Something that
  moves through some places does not change the median of all;
* as a whole: how much the average has changed. A camera that moves changes all places but, in one scene, not the whole.

Each measure comes with its own uncertainty: how much the places disagree, and how much the average moves within the
anchor chunk, where nothing has drifted: what sways there sways later, what has gone one way continues as a random walk,
with the square root of the distance in chunks. Places that agree are believed. Where they do not, the whole is believed
if both say the same, and else the smaller of the two. What remains is corrected in full if it is four times its
uncertainty and more than the least change, not at all at half of that, with a slope between. Contrast is measured in
the same way. The correction is a straight line over the frames of a chunk, so a chunk that begins right and drifts by
its end is corrected where it drifts.

The same arithmetic serves pixels in CIE Lab and latents, channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..frames.scene_cuts import is_cut
from .lab import lab_to_srgb, srgb_to_lab

GRID = 12
SMALL_PX = 96
LEAST_LAB = 0.4
"""Least shift in Lab units that is corrected: one step of 8-bit gray."""
LEAST_SHARE = 0.02
"""Least shift of latents, and least change of contrast, as a share of the spread."""
MOST_CONTRAST = 0.7
"""Most change of contrast, as a logarithm: doubled or halved."""
CERTAIN = 2.0
"""A change counts from this many times its uncertainty on."""


@dataclass(frozen=True)
class Colors:
    """What is measured of the frames of one chunk, channel by channel.

    Attributes:
        grids: `[F, B, C]`, averages of the places of each frame.
        spreads: `[F, C]`, standard deviation within each frame.
    """

    grids: Tensor
    spreads: Tensor

    @property
    def means(self) -> Tensor:
        """Mean of each frame and channel, `[F, C]`."""
        return self.grids.mean(1)


def measure(planes: Tensor) -> Colors:
    """Colors of `planes` `[F, C, H, W]`: Lab of small images, or latents."""
    planes = planes.float()
    height, width = planes.shape[-2:]
    grids = functional.adaptive_avg_pool2d(planes, (min(GRID, height), min(GRID, width)))
    return Colors(grids.flatten(2).movedim(1, -1), planes.flatten(2).std(2, correction=0))


def lab_planes(frames: Tensor) -> Tensor:
    """Small Lab images `[F, 3, h, w]` of frames `[F, 3, H, W]` in 0..1."""
    return srgb_to_lab(small_frames(frames).movedim(1, -1)).movedim(-1, 1)


def small_frames(frames: Tensor) -> Tensor:
    """Frames `[F, 3, H, W]` at most `SMALL_PX` wide and high, by averaging areas."""
    height, width = frames.shape[-2:]
    scale = min(1.0, SMALL_PX / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return torch.stack([functional.adaptive_avg_pool2d(frame.float(), size) for frame in frames]).cpu()


def has_cut(frames: Tensor, threshold: float) -> bool:
    """Whether any two neighbors of small frames `[F, 3, h, w]` are of different scenes; a threshold of 0: never."""
    images = frames.movedim(1, -1)
    return any(is_cut(one, two, threshold) for one, two in zip(images[:-1], images[1:], strict=True))


@dataclass(frozen=True)
class Wander:
    """How a value `[C]` moves over the frames of a chunk: `sway`, standard deviation around its line; `trend`, change
    from the first frame to the last."""

    sway: Tensor
    trend: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Wander:
        """Measure `values` `[F, C]`, one row per frame."""
        first, last = _line(values)
        time = torch.linspace(0, 1, values.shape[0]).unsqueeze(1)
        return cls((values - torch.lerp(first, last, time)).square().mean(0).sqrt(), (last - first).abs())

    def after(self, distance: int, other: Wander) -> Tensor:
        """Uncertainty of a difference between two chunks, `distance` chunks apart."""
        return (self.sway.square() + other.sway.square() + self.trend.square() * distance).sqrt()


@dataclass(frozen=True)
class Reference:
    """The anchor chunk: medians over its frames, and how much they move without being drift.

    Attributes:
        grid: `[B, C]`; mean, spread: `[C]`.
        wander, contrast: of the average, and of the logarithm of the spread.
        least: `[C]`, least shift that is corrected.
    """

    grid: Tensor
    mean: Tensor
    spread: Tensor
    wander: Wander
    contrast: Wander
    least: Tensor

    @classmethod
    def of(cls, colors: Colors, least: float | None = None) -> Reference:
        """`least`: in units of the channels; None for a share of their spread."""
        spread = colors.spreads.median(0).values
        return cls(
            colors.grids.median(0).values,
            colors.means.mean(0),
            spread,
            Wander.of(colors.means),
            Wander.of(_log(colors.spreads)),
            spread * LEAST_SHARE if least is None else torch.full_like(spread, least),
        )

    def to_tensor(self) -> Tensor:
        """All of it as `[B + 7, C]`, to be kept with a video."""
        moves = (self.wander.sway, self.wander.trend, self.contrast.sway, self.contrast.trend)
        return torch.stack([self.mean, self.spread, *moves, self.least, *self.grid])

    @classmethod
    def from_tensor(cls, kept: Tensor) -> Reference:
        mean, spread, sway, trend, contrast_sway, contrast_trend, least = kept[:7]
        return cls(kept[7:], mean, spread, Wander(sway, trend), Wander(contrast_sway, contrast_trend), least)


@dataclass(frozen=True)
class Correction:
    """`center + gain * (x - center) + shift` per channel, the shift a straight line over the frames of a chunk.

    Attributes:
        center, gain: `[C]`.
        first, last: `[C]`, shift of the first and the last frame.
    """

    center: Tensor
    gain: Tensor
    first: Tensor
    last: Tensor

    @property
    def is_nothing(self) -> bool:
        return bool((self.gain == 1).all() and (self.first == 0).all() and (self.last == 0).all())

    def shifts(self, num_frames: int) -> Tensor:
        """What is added to each frame and channel, `[F, C]`."""
        time = torch.linspace(0, 1, num_frames).unsqueeze(1) if num_frames > 1 else torch.full((1, 1), 0.5)
        return torch.lerp(self.first, self.last, time)

    def apply(self, planes: Tensor) -> Tensor:
        """Corrected `[F, C, H, W]`."""
        center, gain = (value.to(planes).view(1, -1, 1, 1) for value in (self.center, self.gain))
        shifts = self.shifts(planes.shape[0]).to(planes)[:, :, None, None]
        return center + gain * (planes - center) + shifts

    def apply_to_frames(self, frames: Tensor, start: int = 0, total: int | None = None) -> Tensor:
        """Corrected frames `[F, 3, H, W]` in 0..1 by a correction in Lab; the very same where there is none.

        `start`, `total`: which of the chunk's frames they are, and how many it has; default all.
        """
        if self.is_nothing:
            return frames
        shifts = self.shifts(total or frames.shape[0])[start : start + frames.shape[0]]
        corrected = []
        for frame, shift in zip(frames, shifts, strict=True):  # one by one: Lab takes four times the memory
            lab = srgb_to_lab(frame.movedim(0, -1))
            lab = self.center.to(lab) + self.gain.to(lab) * (lab - self.center.to(lab)) + shift.to(lab)
            corrected.append(lab_to_srgb(lab).movedim(-1, 0).to(frame))
        return torch.stack(corrected)


def find_correction(chunk: Colors, reference: Reference, distance: int = 1, strength: float = 1.0) -> Correction:
    """What brings `chunk`, `distance` chunks after the anchor chunk, to `reference`, times `strength` (0 to 1)."""
    center = chunk.means.mean(0)
    log_gain = _contrast(chunk, reference, distance)
    # What remains after contrast: shifts of the places and of the average, frame by frame.
    grids = center + torch.exp(log_gain) * (chunk.grids - center)
    by_place = reference.grid - grids
    places = by_place.median(1).values
    sway = 2 * Wander.of(places).sway / len(places) ** 0.5  # of the ends of a line through so many frames
    spread = _deviation(by_place.flatten(0, 1)) * _median_error(reference.grid.shape[0])
    disagreement = (spread.square() + sway.square()).sqrt()
    whole = reference.mean - grids.mean(1)
    wander = reference.wander.after(distance, Wander.of(whole))
    shifts = [
        _believed(*_agreed(place, disagreement, average, wander, reference.least), reference.least)
        for place, average in zip(_line(places), _line(whole), strict=True)
    ]
    return Correction(center, torch.exp(strength * log_gain), strength * shifts[0], strength * shifts[1])


def _contrast(chunk: Colors, reference: Reference, distance: int) -> Tensor:
    """Logarithm of the believed change of contrast, `[C]`."""
    spread = chunk.spreads.median(0).values
    whole = _log(reference.spread) - _log(spread)
    wander = reference.contrast.after(distance, Wander.of(_log(chunk.spreads)))
    grid = chunk.grids.median(0).values
    slopes, errors = map(
        torch.stack, zip(*(_slope(grid[:, c], reference.grid[:, c]) for c in range(grid.shape[1])), strict=True)
    )
    # A flat channel has no contrast to speak of.
    flat = torch.minimum(spread, reference.spread) < reference.least
    least = torch.full_like(whole, LEAST_SHARE)
    believed = _believed(*_agreed(slopes, errors, whole, wander, least), least)
    return torch.where(flat, 0.0, believed.clamp(-MOST_CONTRAST, MOST_CONTRAST))


def _slope(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the median slope between places of two grids `[B]` (Theil and Sen), and its uncertainty."""
    rise, run = (value[:, None] - value[None, :] for value in (there, here))
    far = run.abs() > 0.1 * _deviation(here.unsqueeze(1))[0].clamp(min=1e-6)
    slopes = rise[far] / run[far]
    if slopes.numel() < 16 or (slope := slopes.median()) <= 0.2:
        return torch.zeros(()), torch.full((), torch.inf)  # not the same image: only the whole can tell
    unexplained = _deviation((there - slope * here).unsqueeze(1))[0]
    error = unexplained / _deviation(here.unsqueeze(1))[0].clamp(min=1e-6) * _median_error(len(here)) / slope
    return torch.log(slope), error


def _deviation(values: Tensor) -> Tensor:
    """Robust standard deviation along the first dimension, from the median of distances to the median."""
    return 1.4826 * (values - values.median(0).values).abs().median(0).values


def _median_error(count: int) -> float:
    """Standard error of a median of `count` places, of which four neighbors tell about as much as one."""
    return 1.2533 / max(1.0, count / 4) ** 0.5


def _log(spread: Tensor) -> Tensor:
    return torch.log(spread.clamp(min=1e-6))


def _line(values: Tensor) -> tuple[Tensor, Tensor]:
    """First and last value of the least-squares line through `[F, C]`."""
    count, mean = values.shape[0], values.mean(0)
    if count < 3:
        return mean, mean
    time = torch.linspace(-0.5, 0.5, count).unsqueeze(1)
    change = (time * values).sum(0) / time.square().sum()
    return mean - change / 2, mean + change / 2


def _agreed(
    places: Tensor, places_error: Tensor, whole: Tensor, whole_error: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """What two measures of one thing say together, and its uncertainty."""
    certain = places_error <= torch.maximum(whole_error, least / CERTAIN)
    agree = (places - whole).abs() <= CERTAIN * (places_error + whole_error)
    smaller = torch.where(places.abs() <= whole.abs(), places, whole)
    smaller = torch.where(places.sign() == whole.sign(), smaller, torch.zeros_like(smaller))
    value = torch.where(certain, places, torch.where(agree, whole, smaller))
    return value, torch.where(certain, places_error, torch.minimum(places_error, whole_error))


def _believed(value: Tensor, error: Tensor, least: Tensor) -> Tensor:
    """All of a value that is twice its dead zone, nothing inside it, with a slope between."""
    zone = torch.maximum(least / 2, CERTAIN * error)
    return value * ((value.abs() - zone) / zone.clamp(min=1e-9)).clamp(0, 1)
