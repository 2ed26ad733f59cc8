"""The two flow heads, coarse to fine (reference: ema-vfi, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import EmaVfiConfig
from .features import PairFeatures
from .layers import conv_prelu, join, resize
from .warp import warp


@dataclass(frozen=True)
class Flow:
    """Where the frame in between comes from.

    flow `[B, 4, H, W]` float32: (x, y) in pixels into the first frame, then into the second. mask_logit
    `[B, 1, H, W]`: sigmoid is the share of the first frame. warped: both frames moved by the flow.
    """

    flow: Tensor
    mask_logit: Tensor
    warped: tuple[Tensor, Tensor]

    def merged(self) -> Tensor:
        """Both warped frames mixed by the mask, `[B, 3, H, W]`."""
        share = self.mask_logit.sigmoid()
        return self.warped[0] * share + self.warped[1] * (1 - share)


def warp_pair(maps: tuple[Tensor, Tensor], flow: Tensor) -> tuple[Tensor, Tensor]:
    return warp(maps[0], flow[:, :2]), warp(maps[1], flow[:, 2:])


def unfold(x: Tensor) -> Tensor:
    """Two pixel shuffles by 2 in one copy: `[B, 16 C, h, w]` -> channels-last `[B, C, 4 h, 4 w]`."""
    x = rearrange(x, "b (c i2 j2 i j) h w -> b (h i i2) (w j j2) c", i2=2, j2=2, i=2, j=2)
    return x.permute(0, 3, 1, 2)


class FlowHead(nn.Module):
    def __init__(self, in_channels: int, hidden: int, scale: int, *, operations: Any, dtype, device):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.scale = scale
        self.conv = nn.Sequential(
            conv_prelu(in_channels, hidden, **options),
            conv_prelu(hidden, hidden, **options),
            conv_prelu(hidden, 5, **options),
        )

    def forward(self, features: Tensor, planes: Tensor, flow: Tensor | None) -> tuple[Tensor, Tensor]:
        """Flow and mask logit to add to what is known.

        features: motion and appearance at 4/scale of full size; images at full size; flow: the current one, or None.
        """
        parts = [features, resize(planes, 4 / self.scale)]
        if flow is not None:
            parts.append(resize(flow, 4 / self.scale) * (4 / self.scale))
        out = self.conv(join(*(part.to(features.dtype) for part in parts)))
        out = resize(out.float(), self.scale / 4)
        return out[:, :4] * (self.scale / 4), out[:, 4:]


def flow_heads(config: EmaVfiConfig, *, operations: Any, dtype, device) -> nn.ModuleList:
    """Coarse head on stage 5, fine head on stage 4. 6 and 17 more channels: images; warped planes, mask, flow."""
    options = {"operations": operations, "dtype": dtype, "device": device}
    inputs = []
    for stage, extra in ((1, 6), (0, 17)):
        motion = config.motion_channels[stage] * config.depths[3 + stage]
        inputs.append((motion + config.channels[3 + stage]) * 2 // 16 + extra)
    return nn.ModuleList(
        FlowHead(inputs[head], config.flow_channels[head], scale, **options) for head, scale in ((0, 16), (1, 8))
    )


def estimate(heads: nn.ModuleList, pair: PairFeatures, times: Tensor) -> list[Flow]:
    """The flow after the coarse and after the fine head.

    times `[B]` float32 in 0..1, one per pair; a single pair serves any number of times.
    """
    first, second = (image.float().expand(len(times), -1, -1, -1) for image in pair.images)
    images = (first, second)
    estimates: list[Flow] = []
    for head, stage in zip(heads, (1, 0), strict=True):
        features = _at(pair, stage, times)
        if not estimates:
            flow, mask = head(features, torch.cat(images, dim=1), None)
        else:
            last = estimates[-1]
            planes = torch.cat((*images, *last.warped, last.mask_logit), dim=1)
            flow, mask = head(features, planes, last.flow)
            flow, mask = last.flow + flow, last.mask_logit + mask
        estimates.append(Flow(flow, mask, warp_pair(images, flow)))
    return estimates


def _at(pair: PairFeatures, stage: int, times: Tensor) -> Tensor:
    """Motion weighted by the time (the only place it enters) and appearance, unfolded."""
    first, second = pair.motion[stage]
    weight = times.to(first.dtype).view(-1, 1, 1, 1)
    appearance = [x.expand(len(times), -1, -1, -1) for x in pair.appearance[3 + stage]]
    return unfold(torch.cat((first * weight, second * (1 - weight), *appearance), dim=1))
