"""Layers of LVDM's networks while they are trained."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FrameConv(nn.Conv3d):
    """A convolution of frames one by one is computed as one of images, at which the CPU is several times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] != 1 or self.stride[0] != 1:
            return super().forward(x)
        batch, _, frames = x.shape[:3]
        images = x.transpose(1, 2).flatten(0, 1)
        images = F.conv2d(images, self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return images.unflatten(0, (batch, frames)).transpose(1, 2)


class TrainingOperations:
    """The plain layers of torch, but for `FrameConv`."""

    Linear, Embedding = nn.Linear, nn.Embedding
    Conv1d, Conv2d, Conv3d, ConvTranspose3d = nn.Conv1d, nn.Conv2d, FrameConv, nn.ConvTranspose3d
    GroupNorm, LayerNorm = nn.GroupNorm, nn.LayerNorm
