"""Telling a scene cut, a standing image and a motion apart, from two neighboring frames alone.

A motion moves blocks of an image a little; a cut replaces them. So each block of one frame is looked for near its
place in the other, on small copies, and what cannot be found is compared with how much the block has to show at all.
Both decisions depend on the two frames only, so a video gives the same result in whatever slices it is read.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

SMALL_PX = 64
BLOCK_PX = 8
REACH_PX = 7
FLAT = 0.02
FLICKER = 0.05
BYTE_STEP = 1 / 255


def is_static(first: Tensor, second: Tensor, tolerance: float = BYTE_STEP) -> bool:
    """Whether no value of two frames of any one layout, 0..1, differs by more than `tolerance` (one byte step)."""
    return bool((first - second).abs().max() <= tolerance * 1.001)


def change(first: Tensor, second: Tensor) -> float:
    """How much of one frame `[H, W, 3]`, 0..1, cannot be found in the other: under 0.5 for motion, about 1 for cuts."""
    small = [_small(frame) for frame in (first, second)]
    return min(_unexplained(*small), _unexplained(*small[::-1]))


def is_cut(first: Tensor, second: Tensor, threshold: float) -> bool:
    """Whether `change` exceeds `threshold` (0..1); a threshold of 0 switches detection off."""
    return threshold > 0 and change(first, second) > threshold


def _small(frame: Tensor) -> Tensor:
    """`[1, 3, h, w]`, the longer side at most `SMALL_PX` and both multiples of `BLOCK_PX`, by averaging areas."""
    height, width = frame.shape[:2]
    scale = min(1.0, SMALL_PX / max(height, width))
    rows, columns = (max(BLOCK_PX, round(side * scale / BLOCK_PX) * BLOCK_PX) for side in (height, width))
    return functional.adaptive_avg_pool2d(frame.movedim(-1, 0)[None].float(), (rows, columns))


def _unexplained(target: Tensor, source: Tensor) -> float:
    """Best-match error of the blocks of `target` within reach in `source`, as a share of what the blocks show."""
    height, width = target.shape[-2:]
    light = (target.mean((2, 3), keepdim=True) - source.mean((2, 3), keepdim=True)).clamp(-FLICKER, FLICKER)
    padded = functional.pad(source + light, (REACH_PX,) * 4, mode="replicate")
    moved = padded.unfold(2, height, 1).unfold(3, width, 1)  # [1, 3, shifts, shifts, height, width], a view
    errors = (target[:, :, None, None] - moved).abs().mean(1).flatten(0, 2)
    best = functional.avg_pool2d(errors[:, None], BLOCK_PX).amin(0)
    mean = functional.avg_pool2d(target, BLOCK_PX).repeat_interleave(BLOCK_PX, 2).repeat_interleave(BLOCK_PX, 3)
    shown = functional.avg_pool2d((target - mean).abs().mean(1, keepdim=True), BLOCK_PX)
    return float(best.mean() / (shown.mean() + FLAT))
