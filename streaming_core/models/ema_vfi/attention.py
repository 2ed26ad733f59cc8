"""Transformer blocks of stages 4 and 5: attention between the two frames that also yields motion."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .windows import WindowLayout, window_layout

BLOCK_EPS = 1e-6


class InterFrameAttention(nn.Module):
    """Every token looks at the same window of the other frame (reference: ema-vfi, section 3, steps 4 and 5).

    The attended values update appearance; the attended coordinates, minus the token's own, are motion. Products are
    written out: windows have 49 tokens, values and coordinates share one set of weights, and fused kernels are slower.
    """

    def __init__(self, channels: int, motion_channels: int, num_heads: int, *, operations: Any, dtype, device):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.num_heads = num_heads
        self.q = operations.Linear(channels, channels, **options)
        self.kv = operations.Linear(channels, 2 * channels, **options)
        self.cor_embed = operations.Linear(2, motion_channels, **options)
        self.proj = operations.Linear(channels, channels, **options)
        self.motion_proj = operations.Linear(motion_channels, motion_channels, **options)

    def forward(
        self, tokens: Tensor, padding: Tensor, layout: WindowLayout, with_motion: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Normalized `tokens` `[2, B, N, C]` of both frames -> appearance update likewise, motion `[2, B, N, M]`.

        padding `[1, C]`: a padded token after normalization. Padded places are seen by shifted windows, so they get
        keys and values too; they never ask, so the linear layers run on real tokens only.
        """
        queries = self._windows(self.q(tokens) * (tokens.shape[-1] // self.num_heads) ** -0.5, None, layout)
        keys_values = self._windows(self.kv(tokens), self.kv(padding), layout)
        found = [self._look(queries[own], keys_values[1 - own], layout, with_motion) for own in (0, 1)]
        updates = self.proj(torch.stack([values for values, _ in found]))
        if not with_motion:
            return updates, None
        return updates, self._motion(torch.stack([seen for _, seen in found if seen is not None]), layout)

    def _windows(self, x: Tensor, padding: Tensor | None, layout: WindowLayout) -> Tensor:
        """Cut tokens `[2, B, N, C]` into windows `[2, B * windows, slots, C]`."""
        x = x.index_select(2, layout.gather)
        if padding is not None and layout.pad_slots is not None:
            x[:, :, layout.pad_slots] = padding[0]
        return x.reshape(2, -1, layout.num_slots, x.shape[-1])

    def _look(
        self, queries: Tensor, keys_values: Tensor, layout: WindowLayout, with_motion: bool
    ) -> tuple[Tensor, Tensor | None]:
        """One frame looks at the other: values `[B, N, C]` and coordinates `[B, N, heads, 2]` it sees."""
        queries = rearrange(queries, "b s (heads d) -> b heads s d", heads=self.num_heads)
        keys, values = rearrange(keys_values, "b s (two heads d) -> two b heads s d", two=2, heads=self.num_heads)
        logits = queries @ keys.transpose(-1, -2)
        logits = logits.unflatten(0, (-1, layout.num_windows))
        if layout.mask is not None:
            logits += layout.mask
        weights = logits.softmax(-1)
        values = values.unflatten(0, (-1, layout.num_windows))
        width = values.shape[-1]
        if with_motion:
            coordinates = layout.slot_coordinates.expand(*values.shape[:-1], 2)
            values = torch.cat((values, coordinates), dim=-1)
        seen = weights @ values
        # [B, windows, heads, slots, d] -> [B, N, heads, d]
        seen = seen.transpose(2, 3)[:, layout.window_of, layout.slot_of]
        return seen[..., :width].flatten(2), seen[..., width:] if with_motion else None

    def _motion(self, seen: Tensor, layout: WindowLayout) -> Tensor:
        """Seen coordinates `[2, B, N, heads, 2]` -> motion.

        Attention weights sum to one, so attending embedded coordinates and subtracting the own embedding equals
        embedding the difference of coordinates without the bias.
        """
        offset = seen - layout.token_coordinates[:, None]
        embedded = self.cor_embed(torch.eye(3, 2, dtype=seen.dtype, device=seen.device))  # x, y, and neither
        embed = rearrange(embedded[:2] - embedded[2:], "c (heads e) -> heads c e", heads=self.num_heads)
        motion = torch.einsum("fbnhc,hce->fbnhe", offset, embed)
        return self.motion_proj(motion.flatten(-2))


class DepthwiseConv(nn.Module):
    def __init__(self, channels: int, *, operations: Any, dtype, device):
        super().__init__()
        self.dwconv = operations.Conv2d(channels, channels, 3, padding=1, groups=channels, dtype=dtype, device=device)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Convolve tokens `[B, N, C]` of a map of `size`; they are a channels-last image, so nothing is copied."""
        image = x.unflatten(1, size).permute(0, 3, 1, 2)
        return self.dwconv(image).permute(0, 2, 3, 1).flatten(1, 2)


class ConvMlp(nn.Module):
    """Linear, depth-wise 3x3, exact GELU, linear."""

    def __init__(self, channels: int, hidden: int, *, operations: Any, dtype, device):
        super().__init__()
        self.fc1 = operations.Linear(channels, hidden, dtype=dtype, device=device)
        self.dwconv = DepthwiseConv(hidden, operations=operations, dtype=dtype, device=device)
        self.fc2 = operations.Linear(hidden, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.fc2(functional.gelu(self.dwconv(self.fc1(x), size)))


class MotionBlock(nn.Module):
    """One transformer block (reference: ema-vfi, section 3)."""

    def __init__(
        self, channels: int, motion_channels: int, num_heads: int, mlp_channels: int, window: int, shifted: bool,
        *, operations: Any, dtype, device,
    ):  # fmt: skip
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.window, self.shifted = window, shifted
        self.norm1 = operations.LayerNorm(channels, eps=BLOCK_EPS, dtype=dtype, device=device)
        self.attn = InterFrameAttention(channels, motion_channels, num_heads, **options)
        self.norm2 = operations.LayerNorm(channels, eps=BLOCK_EPS, dtype=dtype, device=device)
        self.mlp = ConvMlp(channels, mlp_channels, **options)

    def forward(self, tokens: Tensor, size: tuple[int, int], with_motion: bool) -> tuple[Tensor, Tensor | None]:
        """Tokens `[2, B, N, C]` of both frames after the block, and motion; N = rows * columns of `size`."""
        layout = window_layout(*size, self.window, self.shifted, tokens.device, tokens.dtype)
        normed = self.norm1(tokens)
        padding = self.norm1(tokens.new_zeros(1, tokens.shape[-1]))
        update, motion = self.attn(normed, padding, layout, with_motion)
        tokens = (normed + update).flatten(0, 1)
        tokens = tokens + self.mlp(self.norm2(tokens), size)
        return tokens.unflatten(0, (2, -1)), motion


def motion_blocks(config, stage: int, *, operations: Any, dtype, device) -> nn.ModuleList:
    """The blocks of stage 4 (`stage` 0) or 5 (1) of an `EmaVfiConfig`; every second one has shifted windows."""
    sizes = (config.channels[3 + stage], config.motion_channels[stage], config.num_heads[stage])
    return nn.ModuleList(
        MotionBlock(
            *sizes,
            config.mlp_channels[stage],
            config.window,
            shifted=bool(index % 2),
            operations=operations,
            dtype=dtype,
            device=device,
        )  # fmt: skip
        for index in range(config.depths[3 + stage])
    )
