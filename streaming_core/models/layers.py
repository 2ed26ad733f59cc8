"""Layers that several families have in common: sinusoids, feed-forwards, the encoder of control frames.

Names of sub-modules are those of the published keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Operations = Any
"""A namespace with torch's layer names: `torch.nn`, or a host's layers, which it can cast, offload and quantize."""
Device = torch.device | str | None


def sinusoid(positions: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids `[n, width]` float32 of positions or timesteps `[n]`, cosine half first."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=positions.device)
    angles = positions[:, None].float() * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def in_parts(compute: Callable[[Tensor], Tensor], x: Tensor, parts: int, dim: int = 0) -> Tensor:
    """`compute(x)` on `parts` parts of axis `dim` of `x`, one after the other; `compute` keeps shapes."""
    parts = min(parts, x.shape[dim])
    if parts < 2:
        return compute(x)
    out, done = torch.empty_like(x), 0
    for part in x.tensor_split(parts, dim):
        length = part.shape[dim]
        out.narrow(dim, done, length).copy_(compute(part))
        done += length
    return out


class GatedLinear(nn.Module):
    """GEGLU (Shazeer, arXiv:2002.05202): one projection to value and gate; `[..., width]` to `[..., inner_width]`."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner_width, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class LinearGelu(nn.Module):
    """A projection and a GELU, or its approximation by a `tanh`; `[..., width]` to `[..., inner_width]`."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
        tanh: bool = False,
    ):
        super().__init__()
        self.approximate = "tanh" if tanh else "none"
        self.proj = operations.Linear(width, inner_width, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    """Feed-forward, four times as wide inside; `gated`: GEGLU, or else a plain GELU."""

    def __init__(
        self,
        width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
        gated: bool = True,
    ):
        super().__init__()
        enter = GatedLinear if gated else LinearGelu
        self.net = nn.Sequential(
            enter(width, 4 * width, operations, dtype, device),
            nn.Identity(),  # the official dropout; keeps the projection at index 2
            operations.Linear(4 * width, width, dtype=dtype, device=device),
        )

    def forward(self, x: Tensor, slices: int = 1) -> Tensor:
        """`x` `[b, n, width]`; `slices`: into how many parts its first axis is cut to save memory."""
        return in_parts(self.net, x, slices)


class PixelEncoder(nn.Module):
    """Control frames `[n, 3, H, W]` in [-1, 1] to `[n, out_channels, H/8, W/8]`; SiLU after all but the last.

    `normed`: StreamingSVD normalizes the channels of every pixel after each inner convolution (reference:
    streamingsvd, section 5), StreamingModelscope does not (reference: streamingmodelscope, section 4.3).
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        out_channels: int,
        normed: bool = False,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.conv_in = operations.Conv2d(3, channels[0], 3, padding=1, **options)
        blocks, norms = [], []
        for narrow, wide in pairwise(channels):
            blocks += [
                operations.Conv2d(narrow, narrow, 3, padding=1, **options),
                operations.Conv2d(narrow, wide, 3, stride=2, padding=1, **options),
            ]
            norms += [operations.LayerNorm(width, eps=1e-5, **options) for width in (narrow, wide)]
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ModuleList(norms) if normed else None
        self.conv_out = operations.Conv2d(channels[-1], out_channels, 3, padding=1, **options)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.silu(self.conv_in(frames))
        for index, conv in enumerate(self.blocks):
            x = conv(x)
            if self.norms is not None:
                x = rearrange(self.norms[index](rearrange(x, "n c h w -> n h w c")), "n h w c -> n c h w")
            x = F.silu(x)
        return self.conv_out(x)
