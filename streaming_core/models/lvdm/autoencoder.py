"""LVDM's 3-D autoencoder (reference: lvdm, section 3). It is not causal; norms see all frames of a call.

Sub-modules have the names of the published keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import FrameError
from ..layers import Device, Operations
from .blocks import NORM_GROUPS, Options, plain
from .config import VideoAutoencoderConfig

Stride = tuple[int, int, int]
_KERNEL = 4
"""Of convolutions between levels, along every axis, also where it does not change the size."""


def _replicated(x: Tensor, kernel: int, stride: Stride) -> Tensor:
    """`x` with its edges repeated, so that a convolution of stride 1 keeps the size; the larger half is in front."""
    edges: list[int] = []
    for step in reversed(stride):
        total = kernel - step
        edges += [total - total // 2, total // 2]
    return F.pad(x, edges, mode="replicate") if any(edges) else x


class Conv(nn.Module):
    """A convolution of repeated edges."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, options: Options, stride: Stride = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = options["operations"].Conv3d(channels, out_channels, kernel, stride=stride, **plain(options))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_replicated(x, self.kernel, self.stride))


class Grow(nn.Module):
    """A transposed convolution of repeated edges; `stride` says how much larger the result is."""

    def __init__(self, channels: int, out_channels: int, options: Options, stride: Stride):
        super().__init__()
        self.stride = stride
        # Hosts have no such layer of their own; they load this one whole, without casting.
        make = getattr(options["operations"], "ConvTranspose3d", nn.ConvTranspose3d)
        self.convt = make(channels, out_channels, _KERNEL, stride=stride, padding=_KERNEL - 1, **plain(options))

    def forward(self, x: Tensor) -> Tensor:
        return self.convt(_replicated(x, _KERNEL, self.stride))


class Residual(nn.Module):
    """Two normed convolutions and a way around."""

    def __init__(self, channels: int, options: Options):
        super().__init__()
        self.norm1, self.norm2 = _norm(channels, options), _norm(channels, options)
        self.conv1, self.conv2 = Conv(channels, channels, 3, options), Conv(channels, channels, 3, options)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def _norm(channels: int, options: Options) -> nn.Module:
    return options["operations"].GroupNorm(NORM_GROUPS, channels, eps=1e-6, **plain(options))


class EncoderLevel(nn.Module):
    """Smaller, then one residual block."""

    def __init__(self, channels: int, out_channels: int, stride: Stride, options: Options):
        super().__init__()
        self.down = Conv(channels, out_channels, _KERNEL, options, stride)
        self.res = Residual(out_channels, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.res(self.down(x))


class DecoderLevel(nn.Module):
    """Larger, then two residual blocks."""

    def __init__(self, channels: int, out_channels: int, stride: Stride, options: Options):
        super().__init__()
        self.up = Grow(channels, out_channels, options, stride)
        self.res1, self.res2 = Residual(out_channels, options), Residual(out_channels, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.res1(self.up(x)))


class Encoder(nn.Module):
    """Frames to mean and log variance, before the convolution that follows."""

    def __init__(self, config: VideoAutoencoderConfig, options: Options):
        super().__init__()
        widths = [config.base_channels << level for level in range(config.levels + 1)]
        self.conv_blocks = nn.ModuleList(
            EncoderLevel(widths[level], widths[level + 1], config.strides(level), options)
            for level in range(config.levels)
        )
        self.conv_first = Conv(3, widths[0], 3, options)
        self.final_block = nn.Sequential(
            _norm(widths[-1], options), nn.SiLU(), Conv(widths[-1], 2 * config.hidden_channels, 3, options)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        for level in self.conv_blocks:
            x = level(x)
        return self.final_block(x)


class Decoder(nn.Module):
    """Latents to frames. Time grows at the first levels, and nothing is normed at the end."""

    def __init__(self, config: VideoAutoencoderConfig, options: Options):
        super().__init__()
        widths = [config.base_channels << level for level in range(config.levels, 0, -1)]
        self.conv_blocks = nn.ModuleList(
            DecoderLevel(widths[level - 1] if level else config.hidden_channels, width, config.strides(level), options)
            for level, width in enumerate(widths)
        )
        self.conv_out = Conv(widths[-1], 3, 3, options)

    def forward(self, x: Tensor) -> Tensor:
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(x)


class VideoAutoencoder(nn.Module):
    """Videos to latents and back."""

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        hidden, latents = config.hidden_channels, config.latent_channels
        self.config = config
        self.encoder = Encoder(config, options)
        self.decoder = Decoder(config, options)
        self.quant_conv = Conv(2 * hidden, 2 * latents, 1, options)
        self.post_quant_conv = Conv(latents, hidden, 1, options)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, `[B, latent_channels, T, H/8, W/8]` each, not scaled.

        Args:
            video: `[B, 3, 4T, H, W]` in [-1, 1]; lengths and sizes are multiples of `config.scales`.

        Raises:
            FrameError: another number of frames, or another size.
        """
        frames, rows, columns = self.config.scales
        if video.shape[2] % frames or not video.shape[2]:
            raise FrameError(f"LVDM's autoencoder takes frames in groups of {frames}, got {video.shape[2]}")
        if video.shape[3] % rows or video.shape[4] % columns:
            raise FrameError(
                f"LVDM's autoencoder takes sizes in multiples of {columns} x {rows} pixels, got "
                f"{video.shape[4]}x{video.shape[3]}"
            )
        mean, log_variance = self.quant_conv(self.encoder(video)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, video: Tensor) -> Tensor:
        """The most likely latents; arguments, shape and errors are those of `moments`."""
        return self.moments(video)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Frames `[B, 3, 4T, 8h, 8w]`, about in [-1, 1], of latents as `encode` gives them, all at once."""
        return self.decoder(self.post_quant_conv(latents))
