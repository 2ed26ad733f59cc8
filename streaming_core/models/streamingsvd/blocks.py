"""Spatio-temporal blocks of the SVD video UNet, as the CAM encoder needs them (reference: streamingsvd, section 4).

Module names equal the official keys. Activations are `[batch * frames, channels, height, width]` with frames varying
fastest; `frames` is the number of frames of one video.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..attention import Compute, MultiHeadAttention
from ..layers import FeedForward, sinusoid


class Mix(nn.Module):
    """`a * spatial + (1 - a) * temporal` with one learned `a = sigmoid(mix_factor)`."""

    def __init__(self, dtype=None, device=None):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.full((1,), 0.5, dtype=dtype, device=device))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        a = torch.sigmoid(self.mix_factor.to(device=spatial.device, dtype=torch.float32)).to(spatial.dtype)
        return a * spatial + (1 - a) * temporal


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice with the time embedding added between; convolution over space or over time."""

    def __init__(self, channels, embedding_width, out_channels, temporal=False, operations=nn, dtype=None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        if temporal:
            conv, kernel, padding = operations.Conv3d, (3, 1, 1), (1, 0, 0)
        else:
            conv, kernel, padding = operations.Conv2d, 3, 1
        self.in_layers = nn.Sequential(
            operations.GroupNorm(32, channels, **options),
            nn.SiLU(),
            conv(channels, out_channels, kernel, padding=padding, **options),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(embedding_width, out_channels, **options))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, out_channels, **options),
            nn.SiLU(),
            nn.Identity(),  # the official dropout; keeps the convolution at index 3
            conv(out_channels, out_channels, kernel, padding=padding, **options),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else conv(channels, out_channels, 1, **options)

    def residual(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` must broadcast against the hidden activation once projected."""
        return self.skip_connection(x) + self.out_layers(self.in_layers(x) + embedding)


class VideoResBlock(ResBlock):
    """A spatial residual block, then a temporal one on its result, mixed."""

    def __init__(self, channels, embedding_width, out_channels, operations=nn, dtype=None, device=None):
        options = {"operations": operations, "dtype": dtype, "device": device}
        super().__init__(channels, embedding_width, out_channels, **options)
        self.time_stack = ResBlock(out_channels, embedding_width, out_channels, temporal=True, **options)
        self.time_mixer = Mix(dtype, device)

    def forward(self, x: Tensor, embedding: Tensor, frames: int) -> Tensor:
        spatial = self.residual(x, self.emb_layers(embedding)[:, :, None, None])
        clip = rearrange(spatial, "(b t) c h w -> b c t h w", t=frames)
        shift = rearrange(self.time_stack.emb_layers(embedding), "(b t) c -> b c t 1 1", t=frames)
        temporal = self.time_stack.residual(clip, shift)
        return self.time_mixer(spatial, rearrange(temporal, "b c t h w -> (b t) c h w"))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, pre-normed; `extra_feed_forward` puts one more in front."""

    def __init__(
        self, width, head_width, context_width, extra_feed_forward=False, operations=nn, dtype=None, device=None
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        ours = {"operations": operations, **options}
        if extra_feed_forward:
            self.norm_in = operations.LayerNorm(width, **options)
            self.ff_in = FeedForward(width, **ours)
        self.attn1 = MultiHeadAttention(width, head_width, **ours)
        self.attn2 = MultiHeadAttention(width, head_width, context_width, **ours)
        self.ff = FeedForward(width, **ours)
        self.norm1 = operations.LayerNorm(width, **options)
        self.norm2 = operations.LayerNorm(width, **options)
        self.norm3 = operations.LayerNorm(width, **options)
        self.extra_feed_forward = extra_feed_forward

    def forward(self, x: Tensor, context: Tensor, compute: Compute) -> Tensor:
        if self.extra_feed_forward:
            x = x + self.ff_in(self.norm_in(x), compute.feed_forward_slices)
        x = x + self.attn1(self.norm1(x), attention=compute.attention)
        if context.shape[1] == 1:
            x = x + self.attn2(x, context)
        else:
            x = x + self.attn2(self.norm2(x), context, compute.attention)
        return x + self.ff(self.norm3(x), compute.feed_forward_slices)


class SpatioTemporalTransformer(nn.Module):
    """Transformer blocks over space, each followed by one over time with frame positions added, mixed."""

    def __init__(self, channels, head_width, depth, context_width, operations=nn, dtype=None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        block = {"head_width": head_width, "context_width": context_width, "operations": operations, **options}
        self.norm = operations.GroupNorm(32, channels, eps=1e-6, **options)
        self.proj_in = operations.Linear(channels, channels, **options)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, **block) for _ in range(depth))
        self.time_stack = nn.ModuleList(
            TransformerBlock(channels, extra_feed_forward=True, **block) for _ in range(depth)
        )
        self.time_pos_embed = nn.Sequential(
            operations.Linear(channels, 4 * channels, **options),
            nn.SiLU(),
            operations.Linear(4 * channels, channels, **options),
        )
        self.time_mixer = Mix(dtype, device)
        self.proj_out = operations.Linear(channels, channels, **options)

    def forward(self, x: Tensor, context: Tensor, frames: int, compute: Compute) -> Tensor:
        """`context` `[batch * frames, tokens, context_width]`; over time each video sees its first frame's context."""
        height, width = x.shape[-2:]
        y = self.proj_in(rearrange(self.norm(x), "bt c h w -> bt (h w) c"))
        positions = sinusoid(torch.arange(frames, device=x.device), x.shape[1]).to(x.dtype)
        position = repeat(self.time_pos_embed(positions), "t c -> (b t) 1 c", b=x.shape[0] // frames)
        time_context = repeat(context[::frames], "b n c -> (b s) n c", s=height * width)
        for spatial_block, temporal_block in zip(self.transformer_blocks, self.time_stack, strict=True):
            spatial = spatial_block(y, context, compute)
            over_time = rearrange(spatial + position, "(b t) s c -> (b s) t c", t=frames)
            over_time = temporal_block(over_time, time_context, compute)
            temporal = rearrange(over_time, "(b s) t c -> (b t) s c", s=height * width)
            y = self.time_mixer(spatial, temporal)
        return x + rearrange(self.proj_out(y), "bt (h w) c -> bt c h w", h=height)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, channels, operations=nn, dtype=None, device=None):
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)
