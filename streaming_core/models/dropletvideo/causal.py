"""Layers of the causal 3-D VAE: no frame sees a later one, and what earlier groups of frames left is handed along.

A video passes in groups of frames. `Tails` holds the last frames of the input of every convolution; it belongs to
one pass over one video and ends with it, so that nothing of a video can reach the next one (reference: dropletvideo,
section 6; CogVideoX, arXiv:2408.06072). Activations are `[B, C, F, h, w]`. Names of sub-modules are the published keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Device, Operations, in_parts

Tails = dict[nn.Module, Tensor]
"""Per convolution the last frames of what it has seen in this pass."""

MAX_VALUES = 2**30
"""Values in a convolution's input above which it takes the frames in parts; kernels count them in 32 bits."""


def pieces(values: int) -> int:
    return -(-values // MAX_VALUES)


class CausalConv3d(nn.Module):
    """A convolution over time and space whose window ends at the current frame."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int = 3,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.earlier = kernel - 1
        side = kernel // 2
        self.conv = operations.Conv3d(
            channels, out_channels, kernel, padding=(0, side, side), dtype=dtype, device=device
        )

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        """`x` `[B, C, F, h, w]` to as many frames; before a first group stands its first frame, repeated."""
        frames = x.shape[2]
        if self.earlier:
            before = tails.get(self)
            if before is None:
                before = x[:, :, :1].expand(-1, -1, self.earlier, -1, -1)
            x = torch.cat([before, x], dim=2)
            tails[self] = x[:, :, -self.earlier :].clone()
        step = -(-frames // pieces(x.numel()))
        if step >= frames:
            return self.conv(x)
        starts = range(0, frames, step)
        return torch.cat([self.conv(x[:, :, start : start + step + self.earlier]) for start in starts], dim=2)


class LatentNorm(nn.Module):
    """A group norm whose scale and shift come from the latents that are being decoded."""

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        groups: int,
        eps: float,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.norm_layer = operations.GroupNorm(groups, channels, eps=eps, dtype=dtype, device=device)
        self.conv_y = CausalConv3d(latent_channels, channels, 1, operations, dtype, device)
        self.conv_b = CausalConv3d(latent_channels, channels, 1, operations, dtype, device)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        # A convolution of single pixels may as well run before pixels are repeated, on far fewer of them.
        scaled = self.norm_layer(x) * repeated(self.conv_y(latents, {}), x)
        return scaled + repeated(self.conv_b(latents, {}), x)


def repeated(latents: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbor enlargement to the size of `like`; of an odd number of frames, the first stands alone."""
    frames, height, width = like.shape[2:]
    if frames == 1 or frames % 2 == 0:
        return F.interpolate(latents, size=(frames, height, width))
    first = F.interpolate(latents[:, :, :1], size=(1, height, width))
    return torch.cat([first, F.interpolate(latents[:, :, 1:], size=(frames - 1, height, width))], dim=2)


MakeNorm = Callable[[int], nn.Module]
"""The norm of so many channels: a group norm in the encoder, a `LatentNorm` in the decoder."""


def normed(norm: nn.Module, x: Tensor, latents: Tensor | None) -> Tensor:
    return norm(x) if latents is None else norm(x, latents)


class Residual(nn.Module):
    """Norm, SiLU and causal convolution twice, added to the input."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        make_norm: MakeNorm,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.norm1, self.norm2 = make_norm(channels), make_norm(out_channels)
        self.conv1 = CausalConv3d(channels, out_channels, **options)
        self.conv2 = CausalConv3d(out_channels, out_channels, **options)
        same = channels == out_channels
        self.conv_shortcut = None if same else operations.Conv3d(channels, out_channels, 1, dtype=dtype, device=device)

    def forward(self, x: Tensor, tails: Tails, latents: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(normed(self.norm1, x, latents)), tails)
        h = self.conv2(F.silu(normed(self.norm2, h, latents)), tails)
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Halve(nn.Module):
    """Halves height and width, and with `time` also the frames: a first one alone, the others in means of two."""

    def __init__(
        self,
        channels: int,
        time: bool,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.time = time
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=0, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        if self.time and x.shape[2] > 1:
            alone = x.shape[2] % 2
            pairs = x[:, :, alone:].unflatten(2, (-1, 2)).mean(3)
            x = torch.cat([x[:, :, :alone], pairs], dim=2)
        frames = F.pad(x.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
        return self.conv(frames).unflatten(0, (len(x), -1)).transpose(1, 2)


class Double(nn.Module):
    """Doubles height and width, and with `time` also the frames, except a first one that stands alone."""

    def __init__(
        self,
        channels: int,
        time: bool,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.time = time
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        if self.time and x.shape[2] > 1:
            alone = x.shape[2] % 2
            x = torch.cat([x[:, :, :alone], x[:, :, alone:].repeat_interleave(2, dim=2)], dim=2)
        frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0)
        return in_parts(self.conv, frames, pieces(frames.numel())).unflatten(0, (len(x), -1)).transpose(1, 2)
