"""The two attentions of the 3-D UNets: of every row to itself, and of all frames of a video to one context.

Layers of `unet3d_layers` are built from them; `unet3d_hooks` lets callers act around them.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from .attention import MAX_ATTENTION_BATCH, Attention, MultiHeadAttention
from .layers import in_parts

MAX_VALUES = 2**27
"""Intermediate values that one layer makes at a time. Whole feed-forward layers would set the peak of all memory."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention, `[batch, tokens, width]` each: one row per video, not per frame."""


def pieces(values: int) -> int:
    """Into how many parts work is cut that makes so many intermediate values."""
    return -(-values // MAX_VALUES)


class SelfAttention(MultiHeadAttention):
    """Attention of every row to itself; large batches go in parts: kernels have a limit, and memory too."""

    def attend(self, x: Tensor, attention: Attention) -> Tensor:
        """`x` and result `[rows, n, width]`."""

        def part(rows: Tensor) -> Tensor:
            return self.to_out(attention(self.to_q(rows), self.to_k(rows), self.to_v(rows), self.heads))

        return in_parts(part, x, max(pieces(4 * x.numel()), -(-len(x) * self.heads // MAX_ATTENTION_BATCH)))


class ContextAttention(MultiHeadAttention):
    """Attention of all frames of a video to one context.

    Keys and values depend on neither frame nor noise level: they are made once (`project`) and handed in, and the
    frames of a video are folded into its queries.
    """

    def project(self, context: Tensor) -> KeysValues:
        """Keys and values of `context` `[batch, tokens, context_width]`."""
        return self.to_k(context), self.to_v(context)

    def attend(self, x: Tensor, memory: KeysValues, attention: Attention) -> Tensor:
        """`x` and result `[batch * frames, pixels, width]`."""
        k, v = memory

        def part(clips: Tensor) -> Tensor:
            frames = clips.shape[1]
            q = rearrange(self.to_q(clips), "b f s c -> b (f s) c")
            return self.to_out(rearrange(attention(q, k, v, self.heads), "b (f s) c -> b f s c", f=frames))

        clips = rearrange(x, "(b f) s c -> b f s c", b=k.shape[0])
        return rearrange(in_parts(part, clips, pieces(4 * x.numel()), dim=1), "b f s c -> (b f) s c")
