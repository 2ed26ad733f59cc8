"""Small layers shared by the parts of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PReLU(nn.Module):
    """Per-channel leaky slope. Holds its parameter itself (the host has no casting twin), so it casts at use."""

    def __init__(self, channels: int, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return functional.prelu(x, self.weight.to(x))


def conv3x3(
    in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, *, operations: Any, dtype, device
) -> nn.Module:
    """A 3x3 convolution that keeps the size but for `stride`."""
    options = {"stride": stride, "padding": dilation, "dilation": dilation, "dtype": dtype, "device": device}
    return operations.Conv2d(in_channels, out_channels, 3, **options)


def conv_prelu(in_channels: int, out_channels: int, stride: int = 1, *, operations: Any, dtype, device) -> nn.Module:
    return nn.Sequential(
        conv3x3(in_channels, out_channels, stride, operations=operations, dtype=dtype, device=device),
        PReLU(out_channels, dtype=dtype, device=device),
    )


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear, half-pixel centers, no anti-aliasing: every resize of this network. `[B, C, H, W]`."""
    if factor == 1:
        return x
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def one_format(x: Tensor) -> Tensor:
    """Channels last in memory: what convolutions, token layers and warps here all read without copies."""
    return x.contiguous(memory_format=torch.channels_last)


def join(*maps: Tensor) -> Tensor:
    """Maps put together on channels, channels last; each is copied once, whatever its own format."""
    batch, _, height, width = maps[0].shape
    channels = sum(one.shape[1] for one in maps)
    size = (batch, channels, height, width)
    whole = torch.empty(size, dtype=maps[0].dtype, device=maps[0].device, memory_format=torch.channels_last)
    filled = 0
    for one in maps:
        # Not `split`: parts that were made together cannot be written where gradients are wanted.
        whole.narrow(1, filled, one.shape[1]).copy_(one)
        filled += one.shape[1]
    return whole
