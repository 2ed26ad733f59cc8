"""Videos made from a seed: textured shapes that move, turn, bounce and hide each other, with captions.

    video = make_video(7)
    video.render(0, 24).frames        # [24, 3, 128, 128] in 0..1
    video.caption(0)                  # "a red ball moving up left"

Every position is a closed formula of the frame number, so any frame of a video of any length is made by itself, and a
video is a pure function of (seed, size, variety). The half of a sprite that looks ahead is white: one frame tells the
heading, without which image-to-video would be a guess.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

Option = TypeVar("Option")
Variety = Literal["narrow", "paced", "slow", "calm", "wide"]
VARIETIES: tuple[Variety, ...] = ("narrow", "paced", "slow", "calm", "wide")
SHAPES = ("ball", "square", "triangle")
TEXTURES = ("plain", "stripes", "dots")
COLORS = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "magenta": 5 / 6}
"""Hue of each named color, 0..1."""
HEADINGS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
"""In steps of an eighth turn, clockwise on the screen (y grows downwards)."""
HELD_OUT = 2**40
"""Seeds from here on are never drawn for training."""
NARROW_SPEED = 3.5 / 64
"""Frame sizes per frame; a video of this speed has motion bucket 127."""
PACES: dict[Variety, tuple[float, float]] = {"paced": (0.25, 2.0), "slow": (0.1, 1.2), "calm": (0.05, 0.3)}
"""Slowest and fastest of the videos that are narrow but for their speeds, in narrow speeds."""


@dataclass(frozen=True)
class Pose:
    """Where a sprite is: center in pixels, heading in radians clockwise from "right"; each `[F]`."""

    x: Tensor
    y: Tensor
    heading: Tensor


@dataclass(frozen=True)
class Bounce:
    """Straight at constant speed between walls `low` and `high` (pixels), reflected without loss."""

    start: tuple[float, float]
    velocity: tuple[float, float]
    low: float
    high: float

    def pose(self, times: Tensor) -> Pose:
        span = self.high - self.low
        places, speeds = [], []
        for start, velocity in zip(self.start, self.velocity, strict=True):
            unfolded = torch.remainder(start - self.low + velocity * times, 2 * span)
            back = unfolded >= span
            places.append(self.low + torch.where(back, 2 * span - unfolded, unfolded))
            speeds.append(torch.where(back, -velocity, velocity))
        return Pose(places[0], places[1], torch.atan2(speeds[1], speeds[0]))


@dataclass(frozen=True)
class Orbit:
    """Around `center` at `radius` pixels, `turn` radians per frame (negative: anticlockwise); turns as it goes."""

    center: tuple[float, float]
    radius: float
    phase: float
    turn: float

    def pose(self, times: Tensor) -> Pose:
        angle = self.phase + self.turn * times
        ahead = angle + math.copysign(math.pi / 2, self.turn)
        return Pose(
            self.center[0] + self.radius * angle.cos(),
            self.center[1] + self.radius * angle.sin(),
            torch.remainder(ahead + math.pi, 2 * math.pi) - math.pi,
        )


@dataclass(frozen=True)
class Sprite:
    """One thing that moves. `rgb` is the color of its rear half."""

    shape: str
    color: str
    texture: str
    rgb: tuple[float, float, float]
    radius_px: float
    path: Bounce | Orbit

    def coverage(self, times: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """How much of each pixel it covers, and its color there: `[F, 1, size, size]`, `[F, 3, size, size]`."""
        pose = self.path.pose(times)
        grid = torch.arange(size, dtype=torch.float64) + 0.5
        dx = grid.view(1, 1, -1) - pose.x.view(-1, 1, 1)
        dy = grid.view(1, -1, 1) - pose.y.view(-1, 1, 1)
        cos, sin = pose.heading.cos().view(-1, 1, 1), pose.heading.sin().view(-1, 1, 1)
        ahead, aside = (cos * dx + sin * dy).float(), (cos * dy - sin * dx).float()
        cover = (0.5 - outline(self.shape, ahead, aside, self.radius_px)).clamp(0, 1)[:, None]
        front = (0.5 + ahead).clamp(0, 1)[:, None]
        shade = pattern(self.texture, ahead, aside, self.radius_px)[:, None]
        rear = torch.tensor(self.rgb).view(1, 3, 1, 1) * shade
        return cover, front + (1 - front) * rear


def outline(shape: str, ahead: Tensor, aside: Tensor, radius: float) -> Tensor:
    """Distance to the edge in pixels, negative inside; `ahead`, `aside` in pixels from the center along the heading."""
    if shape == "ball":
        return ((ahead / radius) ** 2 + (aside / (0.8 * radius)) ** 2).sqrt().sub(1) * (0.85 * radius)
    if shape == "square":
        return torch.maximum(ahead.abs(), aside.abs()) - 0.75 * radius
    if shape == "triangle":  # its tip, at (radius, 0), points ahead; its base is 0.7 radius back and 1.7 radius long
        steep = math.hypot(0.85, 1.7)
        sides = (0.85 * ahead + 1.7 * aside.abs() - 0.85 * radius) / steep
        return torch.maximum(-ahead - 0.7 * radius, sides)
    raise ValueError(f"shape is one of {', '.join(SHAPES)}, got {shape!r}")


def pattern(texture: str, ahead: Tensor, aside: Tensor, radius: float) -> Tensor:
    """Brightness of the rear half, 0.55..1."""
    if texture == "plain":
        return torch.ones_like(ahead)
    wave = torch.sin(aside * (3 * math.pi / radius))
    if texture == "dots":
        wave = wave * torch.sin(ahead * (3 * math.pi / radius))
    elif texture != "stripes":
        raise ValueError(f"texture is one of {', '.join(TEXTURES)}, got {texture!r}")
    return 0.775 + 0.225 * wave


@dataclass(frozen=True)
class Wave:
    """One periodic component of a background: cycles per image, phase, strength per color channel."""

    cycles: tuple[int, int]
    phase: float
    strength: tuple[float, float, float]


@dataclass(frozen=True)
class Background:
    """A smooth periodic texture that slides by `pan` pixels per frame, as when a camera follows the sprites."""

    base: tuple[float, float, float]
    waves: tuple[Wave, ...]
    pan: tuple[float, float] = (0.0, 0.0)

    def render(self, times: Tensor, size: int) -> Tensor:
        """`[F, 3, size, size]`; one image, expanded, where nothing slides."""
        still = self.pan == (0.0, 0.0)
        moments = torch.zeros(1, dtype=torch.float64) if still else times
        grid = torch.arange(size, dtype=torch.float64) + 0.5
        x = (grid.view(1, 1, -1) + self.pan[0] * moments.view(-1, 1, 1)) / size
        y = (grid.view(1, -1, 1) + self.pan[1] * moments.view(-1, 1, 1)) / size
        image = torch.tensor(self.base).view(1, 3, 1, 1)
        for wave in self.waves:
            value = torch.sin(2 * math.pi * (wave.cycles[0] * x + wave.cycles[1] * y) + wave.phase).float()[:, None]
            image = image + torch.tensor(wave.strength).view(1, 3, 1, 1) * value
        return image.clamp(0, 1).expand(len(times), 3, size, size)


@dataclass(frozen=True)
class Footage:
    """Frames `[F, 3, H, W]` in 0..1 and, for each pixel, how much of it moves `[F, 1, H, W]` in 0..1."""

    frames: Tensor
    moving: Tensor


@dataclass(frozen=True)
class Video:
    """What a seed stands for; endless. The last sprite is in front."""

    seed: int
    size: int
    background: Background
    sprites: tuple[Sprite, ...]

    def render(self, start: int, stop: int) -> Footage:
        """Frames `start` to `stop` (not included), all on the CPU."""
        if not 0 <= start < stop:
            raise ValueError(f"a video has frames from 0 on, got {start} to {stop}")
        return self.at(torch.arange(start, stop, dtype=torch.float64))

    def at(self, times: Tensor) -> Footage:
        """Frames at `times` `[F]` float64, in frames from the start of the video; fractions lie between two frames."""
        frames = self.background.render(times, self.size)
        moving = torch.zeros(len(times), 1, self.size, self.size)
        for sprite in self.sprites:
            cover, color = sprite.coverage(times, self.size)
            frames = torch.lerp(frames, color, cover)
            moving = torch.maximum(moving, cover)
        return Footage(frames, moving)

    def heading(self, frame: int, sprite: int = -1) -> float:
        """Where a sprite moves, radians clockwise from "right"."""
        return float(self.sprites[sprite].path.pose(torch.tensor([float(frame)], dtype=torch.float64)).heading)

    def caption(self, frame: int) -> str:
        """What frame `frame` shows: shape, color and heading of every sprite, from the back to the front."""
        parts = []
        for index, sprite in enumerate(self.sprites):
            texture = "" if sprite.texture == "plain" else f" with {sprite.texture}"
            heading = heading_name(self.heading(frame, index))
            parts.append(f"a {sprite.color} {sprite.shape}{texture} moving {heading}")
        return " and ".join(parts)

    @property
    def motion_bucket_id(self) -> int:
        """Speed of the front sprite in SVD's words, 1..255."""
        path = self.sprites[-1].path
        speed = math.hypot(*path.velocity) if isinstance(path, Bounce) else abs(path.turn) * path.radius
        return min(255, max(1, round(127 * speed / (NARROW_SPEED * self.size))))


def heading_name(angle: float) -> str:
    """The nearest of `HEADINGS`; `angle` in radians clockwise from "right"."""
    return HEADINGS[round(angle / (math.pi / 4)) % 8]


class _Dice:
    """Draws that stay the same on every version of Python: only `random()` promises that."""

    def __init__(self, *seed: object):
        self._draw = random.Random("/".join(map(str, seed))).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._draw()

    def pick(self, options: Sequence[Option]) -> Option:
        return options[int(self._draw() * len(options))]


def make_video(seed: int, size: int = 128, variety: Variety = "narrow") -> Video:
    """The video of a seed, `size` pixels squared.

    "narrow": one large plain ball of six hues at one speed on a dark, calm, standing background. "paced", "slow" and
    "calm": the same at a speed within `PACES`, which no single frame tells. "wide": one or two sprites of all shapes,
    textures and speeds, bouncing or turning, one passing before the other, on colorful backgrounds that may slide.
    """
    if variety not in VARIETIES:
        raise ValueError(f"variety is one of {', '.join(VARIETIES)}, got {variety!r}")
    dice = _Dice("film", variety, seed)
    wide = variety == "wide"
    base = tuple(dice.between(0.2, 0.5) if wide else dice.between(0.15, 0.35) for _ in range(3))
    waves = tuple(_wave(dice, index, wide) for index in range(3 if wide else 2))
    pan = (0.0, 0.0)
    if wide and dice.between(0, 1) < 0.5:
        angle, speed = dice.between(0, 2 * math.pi), dice.between(0.004, 0.016) * size
        pan = (speed * math.cos(angle), speed * math.sin(angle))
    count = dice.pick((1, 2)) if wide else 1
    return Video(seed, size, Background(base, waves, pan), tuple(_sprite(dice, size, variety) for _ in range(count)))


def held_out_videos(count: int, size: int, variety: Variety) -> list[Video]:
    """What stages measure themselves on: the first videos that none is trained on."""
    return [make_video(HELD_OUT + number, size, variety) for number in range(count)]


def _wave(dice: _Dice, index: int, wide: bool) -> Wave:
    most = 1 + (wide and index > 0)
    cycles = (dice.pick(range(-most, most + 1)), dice.pick(range(1, most + 1)))
    strength = 0.16 if wide else 0.07
    return Wave(cycles, dice.between(0, 2 * math.pi), tuple(dice.between(-strength, strength) for _ in range(3)))


def _sprite(dice: _Dice, size: int, variety: Variety) -> Sprite:
    wide = variety == "wide"
    shape = dice.pick(SHAPES) if wide else "ball"
    texture = dice.pick(TEXTURES) if wide else "plain"
    color = dice.pick(tuple(COLORS))
    hue = COLORS[color] + (dice.between(-0.03, 0.03) if wide else 0.0)
    rgb = colorsys.hsv_to_rgb(hue % 1, 1.0, dice.between(0.8, 1.0) if wide else 1.0)
    radius = size * (dice.between(0.11, 0.2) if wide else dice.between(0.14, 0.2))
    speed = size * (dice.between(0.03, 0.08) if wide else NARROW_SPEED)
    if wide and dice.between(0, 1) < 0.35:
        around = dice.between(0.14, 0.26) * size
        center = tuple(dice.between(around + radius, size - around - radius) for _ in range(2))
        turn = dice.pick((-1, 1)) * speed / around
        path: Bounce | Orbit = Orbit(center, around, dice.between(0, 2 * math.pi), turn)
    else:
        angle = dice.between(0, 2 * math.pi)
        start = tuple(dice.between(radius, size - radius) for _ in range(2))
        speed *= dice.between(*PACES[variety]) if variety in PACES else 1
        path = Bounce(start, (speed * math.cos(angle), speed * math.sin(angle)), radius, size - radius)
    return Sprite(shape, color, texture, rgb, radius, path)
