"""The refinement UNet: repairs the merged image with warped features (reference: ema-vfi, section 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import EmaVfiConfig
from .features import PairFeatures
from .flow import Flow, warp_pair
from .layers import PReLU, conv3x3, conv_prelu, join, resize


class Down(nn.Module):
    """Halves the size."""

    def __init__(self, in_channels: int, channels: int, *, operations: Any, dtype, device):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.conv1 = conv_prelu(in_channels, channels, stride=2, **options)
        self.conv2 = conv_prelu(channels, channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


def _up(in_channels: int, channels: int, *, operations: Any, dtype, device) -> nn.Module:
    """Doubles the size."""
    return nn.Sequential(
        operations.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, dtype=dtype, device=device),
        PReLU(channels, dtype=dtype, device=device),
    )


class Refinement(nn.Module):
    """What to add to the merged image, from images, flow and the warped features of five stages."""

    IMAGES = 17
    """Both frames, both warped frames, mask logit and flow."""

    def __init__(self, config: EmaVfiConfig, *, operations: Any, dtype, device):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        base = config.refine_channels
        pairs = [2 * channels for channels in config.channels]
        self.down0 = Down(self.IMAGES + pairs[0], 2 * base, **options)
        self.down1 = Down(2 * base + pairs[1], 4 * base, **options)
        self.down2 = Down(4 * base + pairs[2], 8 * base, **options)
        self.down3 = Down(8 * base + pairs[3], 16 * base, **options)
        self.up0 = _up(16 * base + pairs[4], 8 * base, **options)
        self.up1 = _up(16 * base, 4 * base, **options)
        self.up2 = _up(8 * base, 2 * base, **options)
        self.up3 = _up(4 * base, base, **options)
        self.conv = conv3x3(base, 3, **options)

    def forward(self, pair: PairFeatures, estimate: Flow) -> Tensor:
        """The correction `[B, 3, H, W]` in 0..1, where 0.5 means no change."""
        dtype = pair.appearance[0][0].dtype
        images = [image.expand_as(estimate.warped[0]) for image in pair.images]
        planes = torch.cat((*images, *estimate.warped, estimate.mask_logit, estimate.flow), dim=1).to(dtype)
        flow, x, skips = estimate.flow, planes, []
        for level, maps in enumerate(pair.appearance):
            first, second = (one.expand(len(flow), -1, -1, -1) for one in maps)
            x = join(x, *warp_pair((first, second), flow))
            if level < 4:
                x = getattr(self, f"down{level}")(x)
                skips.append(x)
                flow = resize(flow, 0.5) * 0.5
        x = self.up0(x)
        for level in (1, 2, 3):
            x = getattr(self, f"up{level}")(join(x, skips[3 - level]))
        return self.conv(x).sigmoid()
