"""Scaled dot-product attention as one function that callers may replace.

Networks take `attention: Attention = attend` in `forward`, so a host can pass its own optimized kernel (and the user's
overrides) per call without the network knowing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""`(q, k, v, heads) -> out`, all `[batch, tokens, heads * head_width]`; scale is `head_width ** -0.5`, no mask."""

MAX_ATTENTION_BATCH = 32768
"""Leading dimension above which fused kernels overflow their launch grid (reference: streamingsvd, section 11.13)."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention with torch's fused kernel: `q` `[b, n, c]`, `k`, `v` `[b, m, c]`, `heads` divides `c`; `[b, n, c]`."""
    q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


def attend_in_slices(
    q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention, max_batch: int = MAX_ATTENTION_BATCH
) -> Tensor:
    """`attention`, called on at most `max_batch` rows of the leading dimension at a time; same result."""
    if q.shape[0] <= max_batch:
        return attention(q, k, v, heads)
    parts = zip(q.split(max_batch), k.split(max_batch), v.split(max_batch), strict=True)
    return torch.cat([attention(*part, heads) for part in parts])


@dataclass(frozen=True)
class Compute:
    """How to evaluate the network; no choice here changes the result beyond rounding.

    `attention`: the kernel. `feed_forward_slices`: into how many parts feed-forwards split their leading dimension
    when memory is short (reference: streamingsvd, section 10).
    """

    attention: Attention = attend
    feed_forward_slices: int = 1


class MultiHeadAttention(nn.Module):
    """Attention of `x` `[b, n, width]` to itself or to `context` `[b, m, context_width]`; only the output has a bias.

    `inner_width`: of queries, keys and values where it is not that of `x`.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        context_width: int | None = None,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        inner_width: int | None = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        inner = inner_width or width
        self.heads = inner // head_width
        self.inner_width = inner
        self.to_q = operations.Linear(width, inner, bias=False, **options)
        self.to_k = operations.Linear(context_width or width, inner, bias=False, **options)
        self.to_v = operations.Linear(context_width or width, inner, bias=False, **options)
        self.to_out = nn.Sequential(operations.Linear(inner, width, **options), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None, attention: Attention = attend) -> Tensor:
        """`context` may have batch 1 when it has a single token; the result then broadcasts over `x`."""
        if context is not None and context.shape[1] == 1:
            # One token has softmax weight 1: the output is the same vector for every query.
            return self.to_out(self.to_v(context))
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(attend_in_slices(q, k, v, self.heads, attention))
