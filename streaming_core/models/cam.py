"""What the CAM networks of all families share: features of the branch, mergers (reference: streamingsvd, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from .attention import Compute, MultiHeadAttention, attend_in_slices


@dataclass
class CamFeatures:
    """What the encoder branch hands to the mergers: one feature per input block, and the middle one.

    Each is `[batch * control_frames, C, h, w]`. Consumers set entries to None once merged, so memory is freed early.
    """

    skips: list[Tensor | None]
    middle: Tensor | None


class TemporalMerger(nn.Module):
    """One merger: every pixel of a UNet feature attends over time to the CAM feature at the same pixel."""

    def __init__(self, channels: int, head_width: int, operations=nn, dtype=None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(32, channels, eps=1e-6, **options)
        self.proj_in = operations.Linear(channels, channels, **options)
        self.attention = MultiHeadAttention(channels, head_width, operations=operations, **options)
        self.proj_out = operations.Linear(channels, channels, **options)

    def forward(self, sample: Tensor, features: Tensor, frames: int, compute: Compute) -> Tensor:
        clips = rearrange(sample, "(b t) c h w -> b c t h w", t=frames)
        batch, height, width = clips.shape[0], *clips.shape[-2:]
        # Statistics run over frames and space together; keys and values stay un-normalized. Both are official.
        queries = self.proj_in(rearrange(self.norm(clips), "b c t h w -> (b h w) t c"))
        memory = rearrange(features, "(b k) c h w -> (b h w) k c", b=batch)
        attn = self.attention
        q, k, v = attn.to_q(queries), attn.to_k(memory), attn.to_v(memory)
        merged = self.proj_out(attn.to_out(attend_in_slices(q, k, v, attn.heads, compute.attention)))
        return sample + rearrange(merged, "(b h w) t c -> (b t) c h w", b=batch, h=height, w=width)


class CamMerger(nn.Module):
    """`sample` `[b * frames, C, h, w]` with `features` `[b * control_frames, C, h, w]` merged in; shape of `sample`."""

    def __init__(self, channels: int, head_width: int, operations=nn, dtype=None, device=None):
        super().__init__()
        self.temporal_transformer = TemporalMerger(channels, head_width, operations, dtype, device)

    def forward(self, sample: Tensor, features: Tensor, frames: int, compute: Compute | None = None) -> Tensor:
        return self.temporal_transformer(sample, features, frames, compute or Compute())
