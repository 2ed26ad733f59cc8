"""Layers of the transformer: text and video in one attention, each modulated by the embedding of the noise level.

Names of sub-modules are those of the published keys (reference: dropletvideo, section 4; CogVideoX, arXiv:2408.06072).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Compute
from ..layers import Device, LinearGelu, Operations, in_parts
from .config import DropletConfig
from .rotary import Rotary, rotate

QK_EPS = 1e-6
MAX_VALUES = 2**28
"""Inner values of a feed-forward that are made at a time; all tokens of a large video at once would set the peak."""


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x` `[B, n, width]` with `scale` and `shift` `[B, width]` of its sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Embedding(nn.Module):
    """A sinusoid `[n, width]` to an embedding `[n, embedding_width]`; one for the timestep, one for the frame rate."""

    def __init__(
        self,
        width: int,
        embedding_width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.linear_1 = operations.Linear(width, embedding_width, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(embedding_width, embedding_width, dtype=dtype, device=device)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class ModulatedNorm(nn.Module):
    """One layer norm for video and text, each with a shift, a scale and a gate of its own."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        width = config.width
        self.linear = operations.Linear(config.embedding_width, 6 * width, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(width, eps=config.norm_eps, dtype=dtype, device=device)

    def forward(self, video: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(video, text, video_gate, text_gate)`, gates `[B, 1, width]`."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(embedding)).chunk(6, dim=-1)
        video, text = modulated(self.norm(video), scale, shift), modulated(self.norm(text), text_scale, text_shift)
        return video, text, gate[:, None], text_gate[:, None]


class FinalNorm(nn.Module):
    """The last modulated norm, of the video alone."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.linear = operations.Linear(config.embedding_width, 2 * config.width, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(config.width, eps=config.norm_eps, dtype=dtype, device=device)

    def forward(self, video: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(embedding)).chunk(2, dim=-1)
        return modulated(self.norm(video), scale, shift)


class JointAttention(nn.Module):
    """Attention of text and video to each other and to themselves; only the video has positions."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.heads, width = config.heads, config.width
        self.norm_q = operations.LayerNorm(config.head_width, eps=QK_EPS, **options)
        self.norm_k = operations.LayerNorm(config.head_width, eps=QK_EPS, **options)
        self.to_q = operations.Linear(width, width, **options)
        self.to_k = operations.Linear(width, width, **options)
        self.to_v = operations.Linear(width, width, **options)
        self.to_out = nn.Sequential(operations.Linear(width, width, **options), nn.Identity())

    def forward(self, video: Tensor, text: Tensor, rotary: Rotary, compute: Compute) -> tuple[Tensor, Tensor]:
        """`video` `[B, n, width]` and `text` `[B, m, width]`, and both again after the attention."""
        words = text.shape[1]
        both = torch.cat([text, video], dim=1)
        q = self._placed(self.norm_q, self.to_q(both), words, rotary)
        k = self._placed(self.norm_k, self.to_k(both), words, rotary)
        out = self.to_out(compute.attention(q, k, self.to_v(both), self.heads))
        return out[:, words:], out[:, :words]

    def _placed(self, norm: nn.Module, x: Tensor, words: int, rotary: Rotary) -> Tensor:
        """Queries or keys, normed per head, those of the video turned to their position."""
        x = norm(x.unflatten(-1, (self.heads, -1)))
        return torch.cat([x[:, :words], rotate(x[:, words:], rotary)], dim=1).flatten(2)


class FeedForward(nn.Module):
    """The feed-forward that text and video share; works per token, so long sequences go in parts."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.inner_width = inner_width
        self.net = nn.Sequential(
            LinearGelu(width, inner_width, operations, dtype, device, tanh=True),
            nn.Identity(),  # the official dropout; keeps the projection at index 2
            operations.Linear(inner_width, width, dtype=dtype, device=device),
        )

    def forward(self, x: Tensor, slices: int = 1) -> Tensor:
        """`x` `[B, n, width]`; `slices`: at least so many parts."""
        values = x.shape[0] * x.shape[1] * self.inner_width
        return in_parts(self.net, x, max(slices, -(-values // MAX_VALUES)), dim=1)


class Block(nn.Module):
    """Attention and feed-forward over text and video, both added through gates."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.norm1 = ModulatedNorm(config, operations, dtype, device)
        self.attn1 = JointAttention(config, operations, dtype, device)
        self.norm2 = ModulatedNorm(config, operations, dtype, device)
        self.ff = FeedForward(config.width, config.feed_forward_width, operations, dtype, device)

    def forward(
        self, video: Tensor, text: Tensor, embedding: Tensor, rotary: Rotary, compute: Compute
    ) -> tuple[Tensor, Tensor]:
        """`video` `[B, n, width]` and `text` `[B, m, width]`; the same two again."""
        normed, normed_text, gate, text_gate = self.norm1(video, text, embedding)
        attended, attended_text = self.attn1(normed, normed_text, rotary, compute)
        video, text = video + gate * attended, text + text_gate * attended_text
        normed, normed_text, gate, text_gate = self.norm2(video, text, embedding)
        slices = compute.feed_forward_slices
        return video + gate * self.ff(normed, slices), text + text_gate * self.ff(normed_text, slices)
