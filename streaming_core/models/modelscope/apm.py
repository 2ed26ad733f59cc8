"""APM, the long-term memory: anchor frames become tokens after the text (reference: streamingmodelscope, section 4.2).

The mixers that bring those tokens into the UNet are part of it: `unet.mix_context`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..layers import Device, Operations
from .config import ImageProjectorConfig


class ImageProjector(nn.Module):
    """Image embeddings of a video's anchor frames to image tokens (official prefix `resampler.`)."""

    def __init__(
        self,
        config: ImageProjectorConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.config = config
        self.context_embedding = nn.ModuleList(
            [
                operations.Linear(config.width, config.inner_width, **options),
                nn.SiLU(),
                operations.Linear(config.inner_width, config.tokens * config.width, **options),
            ]
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Image tokens `[videos, tokens, width]` of `[videos, anchors, width]`; several anchors are averaged first."""
        first, _, second = self.context_embedding
        flat = second(F.silu(first(embeddings.mean(dim=1))))
        return rearrange(flat, "b (t c) -> b t c", t=self.config.tokens)


def join_context(text: Tensor, image_tokens: Tensor) -> Tensor:
    """The context of the mixers: `[b, text tokens, width]`, then `[b, image tokens, width]`."""
    return torch.cat([text, image_tokens.to(text)], dim=1)
