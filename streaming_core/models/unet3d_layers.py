"""Layers of the 3-D UNets that grew out of ModelScope's text-to-video model (arXiv:2308.06571).

Two families have them: StreamingModelscope (reference: streamingmodelscope, section 4) and I2VGen-XL (reference:
enhancer, section 9). Names of sub-modules are the keys of their published files. Activations are
`[batch * frames, channels, height, width]` with frames varying fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Compute
from .layers import Device, FeedForward, Operations
from .unet3d_attention import ContextAttention, KeysValues, SelfAttention, pieces
from .unet3d_hooks import NO_HOOKS, Hooks


@dataclass(frozen=True)
class Call:
    """What every layer receives in one pass through a network.

    Attributes:
        frames: of one video.
        embedding: noise level (and whatever else is added to it) of every frame, `[batch * frames, width]`.
        memory: keys and values for the cross-attentions, in the order in which they run.
        compute: the kernels.
        hooks: what the caller does on the way.
    """

    frames: int
    embedding: Tensor
    memory: Iterator[KeysValues]
    compute: Compute
    hooks: Hooks = NO_HOOKS


class Skips:
    """Outputs of the way down, for the way up: newest first, each taken once.

    Args:
        put: what is stored of a skip; default all of it, where it is.
        take: `(index, stored) -> skip`, called right before the decoder needs it. Indices count from 0 on the way down.

    Attributes:
        taken: how many the way up has taken.
    """

    def __init__(
        self, put: Callable[[Tensor], Tensor] | None = None, take: Callable[[int, Tensor], Tensor] | None = None
    ):
        self._put, self._take = put, take
        self._stored: list[Tensor] = []
        self.taken = 0

    def __len__(self) -> int:
        return len(self._stored)

    def push(self, skip: Tensor) -> None:
        self._stored.append(skip if self._put is None else self._put(skip))

    def pop(self) -> Tensor:
        stored = self._stored.pop()
        self.taken += 1
        return stored if self._take is None else self._take(len(self._stored), stored)

    def next_size(self) -> tuple[int, int]:
        """Height and width of the skip that `pop` gives next."""
        height, width = self._stored[-1].shape[-2:]
        return height, width

    def all(self) -> list[Tensor]:
        """Everything stored, oldest first."""
        return list(self._stored)


class ResBlock2D(nn.Module):
    """GroupNorm-SiLU-convolution twice, every frame on its own, with the embedding of the noise level added between."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_width: int,
        groups: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.norm1 = operations.GroupNorm(groups, channels, eps=1e-5, **options)
        self.conv1 = operations.Conv2d(channels, out_channels, 3, padding=1, **options)
        self.time_emb_proj = operations.Linear(embedding_width, out_channels, **options)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=1e-5, **options)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **options)
        same = channels == out_channels
        self.conv_shortcut = None if same else operations.Conv2d(channels, out_channels, 1, **options)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x` `[n, channels, h, w]`, `embedding` `[n, embedding_width]`; `[n, out_channels, h, w]`."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class TemporalConv(nn.Module):
    """Four times GroupNorm-SiLU-convolution over three frames, added to the input.

    Statistics run over all frames of a video together. The published networks have a dropout in all but the first,
    which is what moves the convolution to index 3 there.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}

        def layer(*dropout: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                operations.GroupNorm(groups, channels, eps=1e-5, **options),
                nn.SiLU(),
                *dropout,
                operations.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), **options),
            )

        self.conv1 = layer()
        self.conv2, self.conv3, self.conv4 = (layer(nn.Identity()) for _ in range(3))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """`x` and result `[batch * frames, channels, h, w]`."""
        clips = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
        clips = clips + self.conv4(self.conv3(self.conv2(self.conv1(clips))))
        return rearrange(clips, "b c f h w -> (b f) c h w")


class TransformerBlock(nn.Module):
    """Two attentions and a gated feed-forward, each pre-normed and added.

    The second attention looks at the context if `context_width` is given, else it is a self-attention like the first.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        context_width: int | None,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        kind = SelfAttention if context_width is None else ContextAttention
        self.norm1 = operations.LayerNorm(width, **options)
        self.attn1 = SelfAttention(width, head_width, None, operations, dtype, device)
        self.norm2 = operations.LayerNorm(width, **options)
        self.attn2 = kind(width, head_width, context_width, operations, dtype, device)
        self.norm3 = operations.LayerNorm(width, **options)
        self.ff = FeedForward(width, operations, dtype, device)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """`x` and result `[rows, n, width]`: pixels of a frame, or frames of a pixel."""
        attention, hooks = call.compute.attention, call.hooks
        if isinstance(self.attn2, ContextAttention):
            x = x + hooks.self_attention(self.attn1, self.norm1(x), attention)
            x = hooks.between_attentions(x)
            x = x + hooks.cross_attention(self.attn2, self.norm2(x), next(call.memory), attention)
        else:
            x = x + self.attn1.attend(self.norm1(x), attention)
            x = x + self.attn2.attend(self.norm2(x), attention)
        # Both halves of the gated projection are four times as wide as the input.
        slices = max(call.compute.feed_forward_slices, pieces(8 * x.numel()))
        return x + self.ff(self.norm3(x), slices)


class _Transformer(nn.Module):
    """What the two transformers have in common: a norm, projections, one block."""

    def __init__(
        self,
        channels: int,
        width: int,
        head_width: int,
        context_width: int | None,
        groups: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **options)
        self.proj_in = operations.Linear(channels, width, **options)
        block = TransformerBlock(width, head_width, context_width, operations, dtype, device)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(width, channels, **options)

    def _run(self, tokens: Tensor, call: Call) -> Tensor:
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, call)
        return self.proj_out(tokens)


class SpatialTransformer(_Transformer):
    """Every frame's pixels attend to each other and to the context."""

    def __init__(
        self,
        channels: int,
        head_width: int,
        context_width: int,
        groups: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(channels, channels, head_width, context_width, groups, operations, dtype, device)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """`x` and result `[batch * frames, channels, h, w]`."""
        call.hooks.transformer(tuple(x.shape))
        tokens = self._run(rearrange(self.norm(x), "n c h w -> n (h w) c"), call)
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[-2])


class TemporalTransformer(_Transformer):
    """Every pixel attends to itself in all frames of its video, twice; `width` is that of the attentions."""

    def __init__(
        self,
        channels: int,
        width: int,
        head_width: int,
        groups: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(channels, width, head_width, None, groups, operations, dtype, device)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """`x` and result `[batch * frames, channels, h, w]`."""
        height, width = x.shape[-2:]
        # Statistics run over all frames of a video together.
        normed = self.norm(rearrange(x, "(b f) c h w -> b c f h w", f=call.frames))
        tokens = self._run(rearrange(normed, "b c f h w -> (b h w) f c"), call)
        return x + rearrange(tokens, "(b h w) f c -> (b f) c h w", h=height, w=width)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution; `padding` of rows and columns."""

    def __init__(
        self,
        channels: int,
        padding: tuple[int, int],
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=padding, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbor enlargement and a convolution.

    `margin`: rows cut off at either end after exact doubling; None enlarges to the size that is asked for.
    """

    def __init__(
        self,
        channels: int,
        margin: int | None,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.margin = margin
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.margin is None:
            return self.conv(F.interpolate(x, size=size, mode="nearest"))
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(doubled[..., self.margin : doubled.shape[-2] - self.margin, :])
