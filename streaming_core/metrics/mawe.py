"""MAWE, the motion-aware warp error of StreamingT2V: how badly motion explains the next frame, per amount of motion.

Low is good: the video moves, and what moves stays itself. The value belongs to RAFT-large at 720x720; another flow or
size gives numbers that must not be compared with published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .splat import forward_splat

COEFFICIENT = 9.5
SIZE_PX = 720


def working_frames(frames: Tensor, size_px: int = SIZE_PX) -> Tensor:
    """Frames as MAWE sees them: 8 bit, bent to a square without antialiasing, 8 bit again.

    Args:
        frames: `[F, 3, H, W]`, float in 0..1.

    Returns:
        `[F, 3, size, size]`, float32 holding whole numbers 0..255.
    """
    frames = frames.float().mul(255).round()
    if frames.shape[-2:] == (size_px, size_px):
        return frames
    return F.interpolate(frames, (size_px, size_px), mode="bilinear", align_corners=False).round()


def mean_flow_length(flow: Tensor) -> Tensor:
    """Mean length of the flow vectors of each pair, in pixels: `[P, 2, H, W]` to `[P]` (the paper's OFS)."""
    return flow.float().square().sum(1).sqrt().mean((1, 2))


def warp_error(right: Tensor, warped: Tensor, unknown: Tensor) -> Tensor:
    """Mean squared difference over the values that are known, on the scale of the frames; 0 where nothing is known.

    Args:
        right, warped: `[P, C, H, W]`.
        unknown: `[P, H, W]`, true where `warped` holds nothing.

    Returns:
        `[P]`, float32.
    """
    known = (~unknown.bool())[:, None]
    difference = (right.double() - warped.double()).square() * known
    values = known.sum((1, 2, 3)) * right.shape[1]
    return (difference.sum((1, 2, 3)) / values.clamp(min=1)).float()


def pair_errors(left: Tensor, right: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Warp error and mean flow length of each pair, both `[P]`.

    Args:
        left, right: `[P, 3, H, W]` on the scale 0..255.
        flow: `[P, 2, H, W]` from left to right, in pixels.
    """
    return warp_error(right, *forward_splat(left, flow)), mean_flow_length(flow)


def official_mawe(errors: Tensor, lengths: Tensor, coefficient: float = COEFFICIENT) -> Tensor:
    """The script's arithmetic: the mean over pairs of error / (coefficient * length).

    One pair without any flow makes the result infinite or not a number, as there; `summarize` does not.
    Source: StreamingT2V, equation of MAWE; reference: streamingmodelscope, section 8.
    """
    return (errors / (coefficient * lengths)).mean()


@dataclass(frozen=True)
class Mawe:
    """MAWE of a video.

    Attributes:
        value: mean over the pairs that move; None when the video stands still.
        official: the script's number, still pairs included; None where the script divides by zero.
        pairs, still_pairs: neighboring frames in all, and those that left no motion to measure.
        ratios: error / (9.5 * length) per pair, None for still pairs.
        errors, lengths: warp error (gray levels squared) and mean flow (pixels at 720x720) per pair.
    """

    value: float | None
    official: float | None
    pairs: int
    still_pairs: int
    ratios: tuple[float | None, ...]
    errors: tuple[float, ...]
    lengths: tuple[float, ...]

    @property
    def is_still(self) -> bool:
        """Whether nothing moves in the whole video."""
        return self.value is None


def summarize(errors: list[float], lengths: list[float], still: list[bool], coefficient: float = COEFFICIENT) -> Mawe:
    """MAWE from the numbers of all pairs; `still` marks pairs whose frames do not differ.

    A pair is left out of `value` when it is marked still or has a mean flow of exactly 0: the ratio then says nothing
    about the video. Without such pairs `value` and `official` are the same number.
    """
    ratios = [
        None if stands or length == 0 else error / (coefficient * length)
        for error, length, stands in zip(errors, lengths, still, strict=True)
    ]
    moving = [ratio for ratio in ratios if ratio is not None]
    official = float(official_mawe(torch.tensor(errors).double(), torch.tensor(lengths).double(), coefficient))
    return Mawe(
        value=sum(moving) / len(moving) if moving else None,
        official=official if torch.tensor(official).isfinite() else None,
        pairs=len(errors),
        still_pairs=len(ratios) - len(moving),
        ratios=tuple(ratios),
        errors=tuple(errors),
        lengths=tuple(lengths),
    )
