"""Color drift: how far the colors of later chunks have moved from those of the first, in CIE Lab (D65)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..color.lab import srgb_to_lab
from ..loop.chunk_layout import ChunkLayout

SAMPLES = 120_000


def frame_colors(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread (standard deviation) of L, a, b in each frame, from about 120 000 of its pixels.

    Args:
        frames: `[F, H, W, 3]`, sRGB in 0..1.

    Returns:
        `[F, 3]` and `[F, 3]`.
    """
    height, width = frames.shape[1:3]
    # Every n-th pixel: averaging neighbors instead would hide the spread.
    step = max(1, round((height * width / SAMPLES) ** 0.5))
    lab = srgb_to_lab(frames[:, step // 2 :: step, step // 2 :: step]).flatten(1, 2)
    return lab.mean(1), lab.std(1, correction=0)


@dataclass(frozen=True)
class ColorDrift:
    """Colors of a video against its first chunk.

    Attributes:
        chunk_means, chunk_spreads: (L, a, b) of each chunk.
        chunk_drift: distance of each chunk's mean from the first chunk's (CIE76 delta E); 0 for the first.
        chunk_spread_ratio: mean over L, a, b of spread / first chunk's spread; above 1 is more contrast or color.
        largest: the largest of `chunk_drift`, last: that of the last chunk.
        trend: change of (L, a, b) from the first frame to the last on the best straight line.
        trend_size: length of `trend`.
    """

    chunk_means: tuple[tuple[float, ...], ...]
    chunk_spreads: tuple[tuple[float, ...], ...]
    chunk_drift: tuple[float, ...]
    chunk_spread_ratio: tuple[float, ...]
    largest: float
    last: float
    trend: tuple[float, ...]
    trend_size: float


def straight_line_change(values: Tensor) -> Tensor:
    """Change from first to last of the least-squares line through `[F, N]`; 0 for a single row."""
    count = len(values)
    if count < 2:
        return torch.zeros_like(values[0])
    time = torch.linspace(-0.5, 0.5, count, dtype=torch.float64)
    return (time[:, None] * values.double()).sum(0) / time.square().sum()


def color_drift(means: Tensor, spreads: Tensor, layout: ChunkLayout) -> ColorDrift:
    """Drift from the colors of all frames, `[F, 3]` each as `frame_colors` gives them."""
    chunk_means = torch.stack([means[chunk.start : chunk.stop].mean(0) for chunk in layout.chunks])
    chunk_spreads = torch.stack([spreads[chunk.start : chunk.stop].mean(0) for chunk in layout.chunks])
    drift = (chunk_means - chunk_means[0]).square().sum(1).sqrt()
    # Half a unit of Lab is below what anyone sees, and keeps the ratio of gray videos finite.
    ratio = ((chunk_spreads + 0.5) / (chunk_spreads[0] + 0.5)).mean(1)
    trend = straight_line_change(means)
    return ColorDrift(
        chunk_means=tuple(map(tuple, chunk_means.tolist())),
        chunk_spreads=tuple(map(tuple, chunk_spreads.tolist())),
        chunk_drift=tuple(drift.tolist()),
        chunk_spread_ratio=tuple(ratio.tolist()),
        largest=float(drift.max()),
        last=float(drift[-1]),
        trend=tuple(trend.tolist()),
        trend_size=float(trend.square().sum().sqrt()),
    )
