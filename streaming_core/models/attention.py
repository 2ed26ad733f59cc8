"""Scaled dot-product attention as one function that callers may replace.

Networks take `attention: Attention = attend` in `forward`, so a host can pass its own optimized kernel (and the user's
overrides) per call without the network knowing about it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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
