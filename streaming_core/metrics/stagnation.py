"""Stagnation: whether the video keeps moving, or comes to rest chunk after chunk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..loop.chunk_layout import ChunkLayout
from .mawe import mean_flow_length

BLOCK_PX = 16
# Gray levels by which the most changed block may differ: what an encoder leaves of equal frames, and what it adds.
SAME_GREY_LEVELS, NOISE_GREY_LEVELS = 0.25, 2.0
# Per cent of the diagonal: the slowest motion told from noise, and what flow sees in an image that is encoded again.
STILL_MOTION, REFRESH_MOTION = 0.006, 0.1
REFRESH_SHARE = 0.1
STAGNANT_SHARE = 0.2
STAGNANT_PAIRS = 12


def motion_percent(flow: Tensor) -> Tensor:
    """Mean length of the flow `[P, 2, H, W]` of each pair, in per cent of the image's diagonal; `[P]`."""
    diagonal = (flow.shape[-1] ** 2 + flow.shape[-2] ** 2) ** 0.5
    return mean_flow_length(flow) * (100 / diagonal)


def still_pairs(left: Tensor, right: Tensor, flow: Tensor) -> Tensor:
    """Which pairs show nothing but coding noise: equal frames, or small differences without flow.

    Differences are those of the most changed block of 16x16 pixels, because a small thing that moves before a still
    background changes few pixels, but those by much.

    Args:
        left, right: `[P, 3, H, W]` on the scale 0..255.
        flow: `[P, 2, H, W]` from left to right, in pixels.

    Returns:
        `[P]`, bool.
    """
    difference = (right - left).abs().mean(1, keepdim=True)
    blocks = F.avg_pool2d(difference, min(BLOCK_PX, *difference.shape[-2:]), ceil_mode=True).amax((1, 2, 3))
    return (blocks < SAME_GREY_LEVELS) | (blocks < NOISE_GREY_LEVELS) & (motion_percent(flow) < STILL_MOTION)


def with_refreshes(still: Sequence[bool], motion: Sequence[float]) -> list[bool]:
    """Still pairs, and single pairs between them where the encoder only refreshed the image.

    At a keyframe a still video changes a little everywhere. That is not motion if it is rare and small: at most every
    tenth pair, and `motion` (per cent of the diagonal) no more than flow finds in such noise.
    """
    alone = [
        not stands and moved < REFRESH_MOTION and all([*still[max(pair - 1, 0) : pair], *still[pair + 1 : pair + 2]])
        for pair, (stands, moved) in enumerate(zip(still, motion, strict=True))
    ]
    if sum(alone) > REFRESH_SHARE * len(alone):
        return list(still)
    return [stands or refreshed for stands, refreshed in zip(still, alone, strict=True)]


@dataclass(frozen=True)
class Stagnation:
    """Motion of a video over time.

    Attributes:
        motion: mean flow length of each pair, in per cent of the image's diagonal per frame.
        chunk_motion: mean of `motion` over the pairs inside each chunk, scene cuts left out.
        kept: motion of the last chunk / motion of the first; None when the first stands still.
        still_pairs: pairs without visible change, longest_still: the longest run of them.
        stagnant_from: the frame from which on no pair moves a fifth as much as the first chunk does, to the end of the
            video and for at least 12 pairs; None where there is no such rest.
        is_still: nothing moves in the whole video.
    """

    motion: tuple[float, ...]
    chunk_motion: tuple[float, ...]
    kept: float | None
    still_pairs: int
    longest_still: int
    stagnant_from: int | None
    is_still: bool


def longest_run(flags: list[bool]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def measure_stagnation(
    motion: list[float], still: list[bool], layout: ChunkLayout, cuts: Collection[int] = ()
) -> Stagnation:
    """Stagnation from the motion of all pairs (per cent of the diagonal), the pairs that are still, and scene cuts."""
    # A still pair has no motion, whatever flow the estimator found in its noise.
    motion = [0.0 if stands else length for length, stands in zip(motion, still, strict=True)]
    # What jumps at a join or a cut is no motion of the chunk: only pairs inside a chunk and a scene count for it.
    inside = [[motion[frame - 1] for frame in chunk[1:] if frame not in cuts] for chunk in layout.chunks]
    per_chunk = [sum(pairs) / len(pairs) if pairs else 0.0 for pairs in inside]
    first = per_chunk[0]
    lively = [pair for pair, length in enumerate(motion) if first and length >= STAGNANT_SHARE * first]
    rest = len(motion) - (lively[-1] + 1) if lively else 0
    return Stagnation(
        motion=tuple(motion),
        chunk_motion=tuple(per_chunk),
        kept=per_chunk[-1] / first if first else None,
        still_pairs=sum(still),
        longest_still=longest_run(still),
        stagnant_from=lively[-1] + 1 if rest >= STAGNANT_PAIRS else None,
        is_still=all(still),
    )
