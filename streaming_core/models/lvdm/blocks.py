"""Blocks of LVDM's UNet. Activations are `[B, C, T, H, W]`; sub-modules have the names of the published keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import Compute, MultiHeadAttention, attend_in_slices
from ..layers import FeedForward
from .attention import RelativePositions, attend_over_time
from .config import LvdmConfig

NORM_GROUPS = 32
Options = dict[str, Any]
"""`operations`, `dtype` and `device`, which every layer is made with."""


def plain(options: Options) -> Options:
    return {key: options[key] for key in ("dtype", "device")}


def conv3(channels: int, out_channels: int, options: Options, stride: int = 1) -> nn.Module:
    """A convolution within each latent, 3 x 3; time is mixed by attention only."""
    return options["operations"].Conv3d(
        channels, out_channels, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), **plain(options)
    )


def group_norm(channels: int, options: Options, eps: float = 1e-5) -> nn.Module:
    return options["operations"].GroupNorm(NORM_GROUPS, channels, eps=eps, **plain(options))


class Residual(nn.Module):
    """Two convolutions and the noise level. Norms take their statistics over the whole video."""

    def __init__(self, channels: int, out_channels: int, config: LvdmConfig, options: Options):
        super().__init__()
        operations, embedded = options["operations"], out_channels * (2 if config.scale_shift else 1)
        self.scale_shift = config.scale_shift
        self.in_layers = nn.Sequential(group_norm(channels, options), nn.SiLU(), conv3(channels, out_channels, options))
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(4 * config.width, embedded, **plain(options)))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, options),
            nn.SiLU(),
            nn.Identity(),  # the official dropout; keeps the convolution at index 3
            conv3(out_channels, out_channels, options),
        )
        self.skip_connection = (
            nn.Identity()
            if channels == out_channels
            else operations.Conv3d(channels, out_channels, 1, **plain(options))
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x)
        level = self.emb_layers(embedding)[:, :, None, None, None]
        if self.scale_shift:
            scale, shift = level.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + level)
        return self.skip_connection(x) + h


class SpaceTimeAttention(nn.Module):
    """Attention within each latent, then over time at each place; norms see one latent, or one place."""

    def __init__(self, channels: int, config: LvdmConfig, options: Options):
        super().__init__()
        conv, width, length = options["operations"].Conv1d, channels // config.heads, config.temporal_length
        self.heads = config.heads
        self.norm_s, self.norm_t = group_norm(channels, options), group_norm(channels, options)
        self.qkv_s = conv(channels, 3 * channels, 1, **plain(options))
        self.qkv_t = conv(channels, 3 * channels, 1, **plain(options))
        self.relative_position_k = RelativePositions(width, length, **plain(options)) if length else None
        self.relative_position_v = RelativePositions(width, length, **plain(options)) if length else None
        self.proj_out_s = conv(channels, channels, 1, **plain(options))
        self.proj_out_t = conv(channels, channels, 1, **plain(options))

    def forward(self, x: Tensor, _context: Tensor | None, compute: Compute) -> Tensor:
        batch, _, _, height, _ = x.shape
        x = rearrange(x, "b c t h w -> (b t) c (h w)")
        q, k, v = rearrange(self.qkv_s(self.norm_s(x)), "n (three c) m -> three n m c", three=3)
        h = attend_in_slices(q, k, v, self.heads, compute.attention)
        x = x + self.proj_out_s(h.transpose(1, 2))
        pixels = x.shape[-1]
        x = rearrange(x, "(b t) c m -> (b m) c t", b=batch)
        q, k, v = rearrange(self.qkv_t(self.norm_t(x)), "n (three c) t -> three n t c", three=3)
        h = attend_over_time(q, k, v, self.heads, self.relative_position_k, self.relative_position_v, swapped=True)
        x = x + self.proj_out_t(h.transpose(1, 2))
        return rearrange(x, "(b h w) c t -> b c t h w", b=batch, h=height, w=pixels // height)


class TimeAttention(MultiHeadAttention):
    """Attention over time at each place, with relative positions."""

    def __init__(self, width: int, config: LvdmConfig, options: Options):
        head_width, length = width // config.heads, config.temporal_length
        super().__init__(width, head_width, **options)
        self.relative_position_k = RelativePositions(head_width, length, **plain(options)) if length else None
        self.relative_position_v = RelativePositions(head_width, length, **plain(options)) if length else None

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """`x` and result `[b * frames, pixels, width]`."""
        pixels = x.shape[1]
        x = rearrange(x, "(b t) m c -> (b m) t c", t=frames)
        tables = self.relative_position_k, self.relative_position_v
        h = attend_over_time(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, *tables, swapped=False)
        return rearrange(self.to_out(h), "(b m) t c -> (b t) m c", m=pixels)


class TransformerBlock(nn.Module):
    """Within a latent, over time, to the text, over time again, feed-forward."""

    def __init__(self, width: int, config: LvdmConfig, options: Options):
        super().__init__()
        head_width = width // config.heads
        self.attn1 = MultiHeadAttention(width, head_width, **options)
        self.attn2 = MultiHeadAttention(width, head_width, config.context_width, **options)
        self.ff = FeedForward(width, **options)
        norm = partial(options["operations"].LayerNorm, width, **plain(options))
        self.norm1, self.norm2, self.norm3, self.norm4, self.norm5 = norm(), norm(), norm(), norm(), norm()
        self.attn1_tmp = TimeAttention(width, config, options)
        self.attn2_tmp = TimeAttention(width, config, options)

    def forward(self, x: Tensor, context: Tensor, frames: int, compute: Compute) -> Tensor:
        """`x` and result `[b * frames, pixels, width]`; `context` `[b, tokens, context_width]`."""
        x = x + self.attn1(self.norm1(x), attention=compute.attention)
        x = x + self.attn1_tmp.over_time(self.norm4(x), frames)
        x = x + self.attn2(self.norm2(x), context.repeat_interleave(frames, dim=0), compute.attention)
        x = x + self.attn2_tmp.over_time(self.norm5(x), frames)
        return x + self.ff(self.norm3(x), compute.feed_forward_slices)


class TextTransformer(nn.Module):
    """Transformer blocks between two projections."""

    def __init__(self, channels: int, config: LvdmConfig, options: Options):
        super().__init__()
        operations = options["operations"]
        self.norm = group_norm(channels, options, eps=1e-6)
        self.proj_in = operations.Conv3d(channels, channels, 1, **plain(options))
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, config, options) for _ in range(config.depth)
        )
        self.proj_out = operations.Conv3d(channels, channels, 1, **plain(options))

    def forward(self, x: Tensor, context: Tensor, compute: Compute) -> Tensor:
        frames, height = x.shape[2:4]
        h = rearrange(self.proj_in(self.norm(x)), "b c t h w -> (b t) (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context, frames, compute)
        h = rearrange(h, "(b t) (h w) c -> b c t h w", t=frames, h=height)
        return x + self.proj_out(h)


class Shrink(nn.Module):
    """Half the height and width."""

    def __init__(self, channels: int, options: Options):
        super().__init__()
        self.op = conv3(channels, channels, options, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Grow(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels: int, options: Options):
        super().__init__()
        self.conv = conv3(channels, channels, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
