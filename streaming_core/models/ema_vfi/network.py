"""EMA-VFI wired together (reference: ema-vfi, sections 3 to 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import EmaVfiConfig
from .features import FeatureExtractor, FrameFeatures, PairFeatures
from .flow import Flow, estimate, flow_heads
from .layers import resize
from .refine import Refinement
from .warp import warp


class EmaVfi(nn.Module):
    """The network. Frames are `[B, 3, H, W]`, 0..1, **BGR**, H and W multiples of 16.

    `frame` once per frame, `pair` once per pair, `flows` and `image` once per time; `forward` does all.
    """

    def __init__(
        self, config: EmaVfiConfig, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.config = config
        self.feature_bone = FeatureExtractor(config, **options)
        self.block = flow_heads(config, **options)
        self.unet = Refinement(config, **options)

    def frame(self, image: Tensor) -> FrameFeatures:
        return self.feature_bone.frame(image)

    def pair(self, first: FrameFeatures, second: FrameFeatures, with_motion: bool = True) -> PairFeatures:
        return self.feature_bone.pair(first, second, with_motion)

    def flows(self, pair: PairFeatures, times: Tensor) -> list[Flow]:
        """Coarse and fine flow at `times` `[B]`."""
        return estimate(self.block, pair, times)

    def image(self, pair: PairFeatures, flow: Flow) -> Tensor:
        """The frame in between, `[B, 3, H, W]` float32, 0..1."""
        change = self.unet(pair, flow).float() * 2 - 1
        return (flow.merged() + change).clamp(0, 1)

    def forward(self, first: Tensor, second: Tensor, times: Tensor) -> Tensor:
        pair = self.pair(self.frame(first), self.frame(second))
        return self.image(pair, self.flows(pair, times)[-1])


def enlarge(flow: Flow, images: tuple[Tensor, Tensor], factor: float) -> Flow:
    """A flow found on shrunk frames as a flow of `images`, `factor` times larger (section 6, high resolution).

    Flow is resized and multiplied by `factor`; the mask is only resized.
    """
    field, mask = resize(flow.flow, factor) * factor, resize(flow.mask_logit, factor)
    first, second = (image.float().expand(len(field), -1, -1, -1) for image in images)
    return Flow(field, mask, (warp(first, field[:, :2]), warp(second, field[:, 2:])))
