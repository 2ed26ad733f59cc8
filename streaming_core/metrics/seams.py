"""Seams: how much more the film jumps where two chunks meet than it does around them.

Each pair of neighbouring frames gets two jumps: what is left of the difference once the flow has been compensated
(appearance), and how far the flow itself differs from that of the pair before (motion). A jump is judged against the
pairs around it that are no joins, so fast and slow passages of a film are measured alike: 1 is "as elsewhere".
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from torch import Tensor

from .classical_flow import lands_inside, sample
from .layout import Layout

NEIGHBOUR_PAIRS = 16
# Below these a jump cannot be seen, and its ratio to another one says nothing.
FLOOR_GREY_LEVELS = 0.5
FLOOR_MOTION = 1e-4


def compensated_difference(left: Tensor, right: Tensor, flow: Tensor) -> Tensor:
    """Mean absolute difference of each pair after the right frame is pulled back along the flow, `[P]`.

    Args:
        left, right: `[P, 3, H, W]` on the scale 0..255; so is the result.
        flow: `[P, 2, H, W]` from left to right, in pixels. What it takes out of the picture is not counted.
    """
    inside = lands_inside(flow)
    difference = (sample(right, flow, "bicubic").clamp(0, 255) - left).abs().mean(1, keepdim=True) * inside
    return difference.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)


def diagonal(flow: Tensor) -> float:
    """Length of the picture's diagonal in pixels of the flow."""
    return float(flow.shape[-1] ** 2 + flow.shape[-2] ** 2) ** 0.5


def motion_change(before: Tensor, flow: Tensor) -> Tensor:
    """Mean length of the change from flow `before` to `flow`, `[P, 2, H, W]`, in diagonals of the picture; `[P]`."""
    return (flow - before).square().sum(1).sqrt().mean((1, 2)) / diagonal(flow)


def against_neighbours(jumps: list[float | None], joins: frozenset[int], floor: float) -> tuple[float | None, ...]:
    """Each jump divided by the median of up to 16 jumps on either side of it that are no joins, itself left out.

    Args:
        jumps: per pair; None where unknown, which stays None.
        joins: pairs that join two chunks.
        floor: the least a jump or a median counts for.
    """
    ratios: list[float | None] = []
    elsewhere = [None if pair in joins else jump for pair, jump in enumerate(jumps)]
    for pair, jump in enumerate(jumps):
        near = elsewhere[max(0, pair - NEIGHBOUR_PAIRS) : pair] + elsewhere[pair + 1 : pair + 1 + NEIGHBOUR_PAIRS]
        near = [value for value in near if value is not None]
        known = jump is not None and near
        ratios.append(max(jump, floor) / max(median(near), floor) if known else None)
    return tuple(ratios)


@dataclass(frozen=True)
class Seam:
    """One join. `frame` is the first frame of the later chunk; `score` is the larger of the two ratios."""

    frame: int
    score: float
    appearance: float
    motion: float


@dataclass(frozen=True)
class Seams:
    """Joins of a film and the curve they stand out of.

    Attributes:
        ratios: per pair, the larger of appearance and motion jump relative to the pairs around it; None where unknown.
        joins: one entry per boundary of the layout, in order.
        largest, typical: the largest and the median score; None without joins.
    """

    ratios: tuple[float | None, ...]
    joins: tuple[Seam, ...]
    largest: float | None
    typical: float | None


def larger(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return max(known, default=None)


def measure_seams(differences: list[float], changes: list[float | None], layout: Layout) -> Seams:
    """Seams from the jumps of all pairs.

    Args:
        differences: `compensated_difference` per pair.
        changes: `motion_change` per pair; None for the first, which has no pair before it.
        layout: where chunks meet.
    """
    # Pair p lies between frames p and p + 1. The flow changes twice around a jump: into it and out of it again.
    pairs = frozenset(frame - 1 for frame in layout.boundaries)
    appearance = against_neighbours(differences, pairs, FLOOR_GREY_LEVELS)
    motion = against_neighbours(changes, pairs | frozenset(pair + 1 for pair in pairs), FLOOR_MOTION)
    joins = tuple(
        Seam(frame, larger(of_picture, of_motion) or 0.0, of_picture or 0.0, of_motion or 0.0)
        for frame in layout.boundaries
        for of_picture, of_motion in [(appearance[frame - 1], motion[frame - 1])]
    )
    scores = [join.score for join in joins]
    return Seams(
        ratios=tuple(map(larger, appearance, motion)),
        joins=joins,
        largest=max(scores, default=None),
        typical=median(scores) if scores else None,
    )
