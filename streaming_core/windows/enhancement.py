"""The enhancement stage around the network: defaults, sizes, the two passes, preparation of condition images.

Reference: enhancer, sections 1, 2, 5. Condition images are Pillow images, video frames tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import FrameError, SettingsError
from ..models.streamingsvd.conditioning import CLIP_MEAN, CLIP_STD
from .blending import Window, Windows, keyframes, plan_official_windows, plan_windows

PROMPT = "High Quality, HQ, detailed."
NEGATIVE_PROMPT = (
    "Distorted, blurry, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
PIXELS_PER_LATENT = 8
OFFICIAL_SEED, OFFICIAL_CUT_SEED = 8888, 33


@dataclass(frozen=True)
class EnhanceSettings:
    """What the user chooses. Defaults are the official ones (reference: enhancer, section 2)."""

    strength: float = 0.97
    steps: int = 30
    guidance: float = 9.0
    window_frames: int = 38
    overlap_frames: int = 12
    seed: int = OFFICIAL_SEED
    fps_condition: int = 38
    prompt: str = PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    official: bool = False
    """Official behavior: whole strides only (the tail is dropped), cuts and noise drawn as the release does."""


@dataclass(frozen=True)
class EnhancePlan:
    """Which frames the two passes work on. `num_frames` is the length of the result."""

    num_frames: int
    windows: Windows
    keyframes: tuple[int, ...]


def plan_enhancement(num_frames: int, settings: EnhanceSettings) -> EnhancePlan:
    """Windows of the main pass and the frames of the keyframe pass (reference: enhancer, section 5).

    No frame is dropped, unless `settings.official` asks for the official layout.
    """
    layout = plan_official_windows if settings.official else plan_windows
    windows = layout(num_frames, settings.window_frames, settings.overlap_frames)
    return EnhancePlan(windows[-1].stop, windows, keyframes(windows))


def keyframe_windows(num_keyframes: int, settings: EnhanceSettings) -> Windows:
    """Windows of the keyframe pass: one clip, as long as a window of the main pass holds it.

    More keyframes than that are blended over windows too, so memory does not grow with the video; the official code
    always takes one clip.
    """
    if settings.official:
        return (Window(0, num_keyframes),)
    return plan_windows(num_keyframes, settings.window_frames, settings.overlap_frames)


def keyframe_settings(num_keyframes: int, settings: EnhanceSettings) -> EnhanceSettings:
    """Settings of the keyframe pass: those of the main pass, with the window grown to the clip where official."""
    if not settings.official:
        return settings
    return replace(settings, window_frames=num_keyframes, overlap_frames=0)


@dataclass(frozen=True)
class Size:
    """Height and width in pixels."""

    height_px: int
    width_px: int


def fit_size(source: Size, box: Size) -> Size:
    """The largest size with the source's aspect ratio inside `box`, both sides rounded to whole latent pixels.

    Rounding changes the aspect by less than one latent pixel; `fit_scale` cuts that off instead of squeezing.
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
    """Raise `SettingsError` unless both sides are whole numbers of latent pixels."""
    bad = [length for length in (size.width_px, size.height_px) if length < 1 or length % PIXELS_PER_LATENT]
    if bad:
        raise SettingsError(
            f"width and height are multiples of {PIXELS_PER_LATENT}, got {size.width_px}x{size.height_px}: "
            f"{_floor(size.width_px)}x{_floor(size.height_px)} would do"
        )


def resize_frames(frames: Tensor, size: Size, keep_aspect: bool = True) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1 brought to `size`: bicubic with antialiasing, clamped.

    With `keep_aspect` they cover the size and what stands over is cut off equally on both sides; otherwise they are
    stretched, as the official code does.
    """
    height, width = frames.shape[-2:]
    if (height, width) == (size.height_px, size.width_px):
        return frames
    target = (size.height_px, size.width_px)
    if keep_aspect:
        scale = max(size.height_px / height, size.width_px / width)
        target = (max(size.height_px, round(height * scale)), max(size.width_px, round(width * scale)))
    frames = torch.nn.functional.interpolate(frames, target, mode="bicubic", antialias=True, align_corners=False)
    top, left = (target[0] - size.height_px) // 2, (target[1] - size.width_px) // 2
    return frames[..., top : top + size.height_px, left : left + size.width_px].clamp(0, 1)


def to_image(frame: Tensor) -> Image.Image:
    """One frame `[3, H, W]` in 0..1 as an 8-bit image: condition images are 8 bit in the official code."""
    return Image.fromarray((frame.float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy(), "RGB")


def to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """An 8-bit image as `[3, H, W]` in 0..1."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def cover_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to cover `size`, its middle cut out (reference: enhancer, section 2).

    Sides are floor-divided by the scale and box-filtered, as the official code does.
    """
    scale = min(image.width / size.width_px, image.height / size.height_px)
    # Float floor division may fall one short of the side that fits exactly; the crop needs at least the whole size.
    covering = [
        max(target, math.floor(side // scale))
        for side, target in ((image.width, size.width_px), (image.height, size.height_px))
    ]
    image = image.resize(tuple(covering), Image.Resampling.BOX, reducing_gap=None)
    left, top = (covering[0] - size.width_px) // 2, (covering[1] - size.height_px) // 2
    return image.crop((left, top, left + size.width_px, top + size.height_px))


def clip_square(image: Image.Image, size: Size, clip_px: int) -> Image.Image:
    """What the vision tower sees: a square as wide as the video, then bilinear to `clip_px`."""
    square = cover_and_crop(image, Size(size.width_px, size.width_px))
    return square.resize((clip_px, clip_px), Image.Resampling.BILINEAR)


def clip_pixel_values(image: Image.Image) -> Tensor:
    """`[1, 3, H, W]` normalized with CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((to_pixels(image) - mean) / std).unsqueeze(0)


def official_encode_slices(num_frames: int) -> list[int]:
    """Lengths of the pieces in which the official code encodes a clip (reference: enhancer, section 4)."""
    if num_frames <= 16:
        return [num_frames]
    piece = math.ceil(num_frames / (num_frames // 16))
    return [min(piece, num_frames - start) for start in range(0, num_frames, piece)]
