"""Attention over time that knows how far apart two latents are (reference: lvdm, section 4).

Relative positions are those of Shaw et al., arXiv:1803.02155.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from ..layers import Device


class RelativePositions(nn.Module):
    """One learned vector per distance; distances beyond `length` count as `length`."""

    def __init__(self, head_width: int, length: int, dtype: torch.dtype | None = None, device: Device = None):
        super().__init__()
        self.length = length
        # Drawn in float32: not every type that a host stores weights in can be drawn in.
        table = nn.init.xavier_uniform_(torch.empty(2 * length + 1, head_width, device=device))
        self.embeddings_table = nn.Parameter(table.to(dtype or table.dtype))

    def forward(self, count: int, like: Tensor) -> Tensor:
        """`[count, count, head_width]`: how far the second index is from the first; type and device of `like`."""
        steps = torch.arange(count, device=self.embeddings_table.device)
        distance = (steps[None, :] - steps[:, None]).clamp(-self.length, self.length)
        return self.embeddings_table[distance + self.length].to(like)


def attend_over_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    keys: RelativePositions | None,
    values: RelativePositions | None,
    swapped: bool,
) -> Tensor:
    """Attention with relative positions; `q`, `k`, `v` and result `[n, t, heads * head_width]`.

    swapped: what the position adds to the score of query i and key j is taken from query j and key i, and is scaled by
        the fourth root of the head's width only. The unconditional models were trained this way.
    """
    q, k, v = (rearrange(x, "n t (heads d) -> n heads t d", heads=heads) for x in (q, k, v))
    count, scale = q.shape[2], q.shape[3] ** -0.5
    scores = einsum(q * scale**0.5, k * scale**0.5, "n heads i d, n heads j d -> n heads i j")
    if keys is not None:
        position = einsum(q * (scale**0.5 if swapped else scale), keys(count, q), "n heads i d, i j d -> n heads i j")
        scores = scores + (position.transpose(-1, -2) if swapped else position)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    out = einsum(weights, v, "n heads i j, n heads j d -> n heads i d")
    if values is not None:
        out = out + einsum(weights, values(count, v), "n heads i j, i j d -> n heads i d")
    return rearrange(out, "n heads t d -> n t (heads d)")
