"""Seams: how much more the video jumps where two chunks meet than it does around them.

Each pair of neighboring frames gets three jumps: what is left of the difference once the flow has been compensated, in
single pixels (detail) and in blocks (tone), and how far the flow differs from that of the pair before (motion). A jump
is judged against the pairs around it that are not joins, so fast and slow passages of a video are measured alike: 1 is
"as elsewhere".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import torch.nn.functional as F
from torch import Tensor

from ..loop.chunk_layout import ChunkLayout
from .classical_flow import lands_inside, sample

NEIGHBOUR_PAIRS = 16
# Below these a jump cannot be seen, and its ratio to another one says nothing.
FLOOR_DETAIL = 0.5
FLOOR_TONE = 0.15
FLOOR_MOTION = 1e-4
BLOCK_PX = 16


def compensated_difference(left: Tensor, right: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of the difference of each pair after the right frame is pulled back along the flow.

    Args:
        left, right: `[P, 3, H, W]` on the scale 0..255; so are the results.
        flow: `[P, 2, H, W]` from left to right, in pixels. What it takes out of the image is not counted.

    Returns:
        `[P]` each: the mean absolute difference of pixels, in which lost or new detail shows, and that of blocks of
        16x16 pixels, in which a change of light or color shows even under grain and coding noise.
    """
    inside = lands_inside(flow).float()
    difference = (sample(right, flow, "bicubic").clamp(0, 255) - left) * inside
    size = min(BLOCK_PX, *flow.shape[-2:])
    sums, counts = (F.avg_pool2d(images, size) for images in (difference, inside))
    seen = counts.sum((1, 2, 3)).clamp(min=1e-6)
    detail = difference.abs().mean(1).sum((1, 2)) / inside.sum((1, 2, 3)).clamp(min=1)
    return detail, sums.abs().mean(1).sum((1, 2)) / seen


def diagonal(flow: Tensor) -> float:
    """Length of the image's diagonal in pixels of the flow."""
    return float(flow.shape[-1] ** 2 + flow.shape[-2] ** 2) ** 0.5


def motion_change(before: Tensor, flow: Tensor) -> Tensor:
    """Mean length of the change from flow `before` to `flow`, `[P, 2, H, W]`, in diagonals of the image; `[P]`."""
    return (flow - before).square().sum(1).sqrt().mean((1, 2)) / diagonal(flow)


def against_neighbors(jumps: Sequence[float | None], joins: frozenset[int], floor: float) -> tuple[float | None, ...]:
    """Each jump divided by the median of up to 16 jumps on either side of it that are not joins, itself left out.

    Args:
        jumps: per pair; None where unknown, which stays None.
        joins: pairs that join two chunks.
        floor: the least a jump or a median counts for.
    """
    ratios: list[float | None] = []
    elsewhere = [None if pair in joins else jump for pair, jump in enumerate(jumps)]
    for pair, jump in enumerate(jumps):
        around = elsewhere[max(0, pair - NEIGHBOUR_PAIRS) : pair] + elsewhere[pair + 1 : pair + 1 + NEIGHBOUR_PAIRS]
        near = [value for value in around if value is not None]
        ratios.append(None if jump is None or not near else max(jump, floor) / max(median(near), floor))
    return tuple(ratios)


@dataclass(frozen=True)
class Seam:
    """One join. `frame` is the first frame of the later chunk; `score` is the largest of the three ratios."""

    frame: int
    score: float
    detail: float
    tone: float
    motion: float


@dataclass(frozen=True)
class Seams:
    """Joins of a video and the curve they stand out of.

    Attributes:
        ratios: per pair, the largest of its three jumps relative to those of the pairs around it; None where unknown.
        joins: one entry per boundary of the layout, in order.
        largest, typical: the largest and the median score; None without joins.
    """

    ratios: tuple[float | None, ...]
    joins: tuple[Seam, ...]
    largest: float | None
    typical: float | None


def largest_known(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def measure_seams(
    details: Sequence[float],
    tones: Sequence[float],
    changes: Sequence[float | None],
    layout: ChunkLayout,
    cuts: Collection[int] = (),
) -> Seams:
    """Seams from the jumps of all pairs.

    Args:
        details, tones: `compensated_difference` per pair.
        changes: `motion_change` per pair; None for the first, which has no pair before it.
        layout: where chunks meet.
        cuts: first frames of new scenes.
    """
    # There is no flow across a cut, so the motion after it cannot be compared with the motion before.
    changes = [None if pair in cuts else change for pair, change in enumerate(changes)]
    # Pair p lies between frames p and p + 1. The flow changes twice around a jump: into it and out of it again.
    pairs = frozenset(frame - 1 for frame in layout.boundaries)
    detail = against_neighbors(details, pairs, FLOOR_DETAIL)
    tone = against_neighbors(tones, pairs, FLOOR_TONE)
    motion = against_neighbors(changes, pairs | frozenset(pair + 1 for pair in pairs), FLOOR_MOTION)
    ratios = tuple(map(largest_known, detail, tone, motion))
    joins = tuple(
        Seam(frame, *(jump[frame - 1] or 0.0 for jump in (ratios, detail, tone, motion))) for frame in layout.boundaries
    )
    scores = [join.score for join in joins]
    return Seams(ratios, joins, largest=max(scores, default=None), typical=median(scores) if scores else None)
