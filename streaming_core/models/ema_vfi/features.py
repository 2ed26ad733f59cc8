"""The feature extractor: what one frame shows, and what two frames show of each other.

Stages 1 to 3 and the embedding to 1/8 look at one frame only; a video computes them once per frame. From stage 4 on the
two frames look at each other (reference: ema-vfi, sections 3 and 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import BLOCK_EPS, motion_blocks
from .config import EmaVfiConfig
from .layers import PReLU, conv3x3, conv_prelu, one_format


@dataclass(frozen=True)
class FrameFeatures:
    """What is known of B frames on their own.

    image `[B, 3, H, W]` as the network wants it; maps: stages 1 to 3 at full, half, quarter size; tokens
    `[B, H/8 * W/8, C]`: input of stage 4.
    """

    image: Tensor
    maps: tuple[Tensor, Tensor, Tensor]
    tokens: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class PairFeatures:
    """What is known of B pairs: per stage the maps of the first and of the second frame.

    appearance: five stages, full size to 1/16. motion: stages 4 and 5, or empty where nobody asked.
    """

    images: tuple[Tensor, Tensor]
    appearance: tuple[tuple[Tensor, Tensor], ...]
    motion: tuple[tuple[Tensor, Tensor], ...]


class ConvStage(nn.Module):
    """`depth` times a 3x3 convolution and PReLU, size kept."""

    def __init__(self, in_channels: int, channels: int, depth: int, *, operations: Any, dtype, device):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            width = channels if index else in_channels
            layers.append(conv3x3(width, channels, operations=operations, dtype=dtype, device=device))
            layers.append(PReLU(channels, dtype=dtype, device=device))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class CrossScaleEmbedding(nn.Module):
    """Stages 1 to 3 brought to 1/8 size by strided convolutions of several dilations, joined to tokens."""

    SOURCES = ((2, 1), (1, 2), (0, 4))
    """(stage index, number of dilations): quarter size by one, half by two, full size by four convolutions."""

    def __init__(self, channels: tuple[int, ...], *, operations: Any, dtype, device):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        width, out = channels[0], channels[3]
        self.layers = nn.ModuleList(
            conv3x3(channels[stage], width, stride=2 ** (3 - stage), dilation=dilation, **options)
            for stage, dilations in self.SOURCES
            for dilation in range(1, dilations + 1)
        )
        self.proj = operations.Conv2d(width * len(self.layers), out, 1, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(out, dtype=dtype, device=device)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        sources = [maps[stage] for stage, dilations in self.SOURCES for _ in range(dilations)]
        parts = [layer(source) for layer, source in zip(self.layers, sources, strict=True)]
        return self.norm(_tokens(self.proj(torch.cat(parts, dim=1))))


class StridedEmbedding(nn.Module):
    """A map halved in size, as normalized tokens."""

    def __init__(self, in_channels: int, channels: int, *, operations: Any, dtype, device):
        super().__init__()
        self.proj = conv3x3(in_channels, channels, stride=2, operations=operations, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_tokens(self.proj(x)))


def _tokens(x: Tensor) -> Tensor:
    """A map `[B, C, h, w]` as tokens `[B, h * w, C]`; free for channels-last maps."""
    return x.flatten(2).transpose(1, 2)


def _images(tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tokens `[2, B, h * w, C]` as two channels-last maps `[B, C, h, w]`."""
    first, second = tokens.unflatten(2, size).permute(0, 1, 4, 2, 3)
    return first, second


class FeatureExtractor(nn.Module):
    """Names are those of the published weights; a stage is `blockN`, its way in `patch_embedN`."""

    def __init__(self, config: EmaVfiConfig, *, operations: Any, dtype, device):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        norm = {"eps": BLOCK_EPS, "dtype": dtype, "device": device}
        one, two, three, four, five = config.channels
        self.block1 = ConvStage(3, one, config.depths[0], **options)
        self.patch_embed2 = conv_prelu(one, two, stride=2, **options)
        self.block2 = ConvStage(two, two, config.depths[1], **options)
        self.patch_embed3 = conv_prelu(two, three, stride=2, **options)
        self.block3 = ConvStage(three, three, config.depths[2], **options)
        self.patch_embed4 = CrossScaleEmbedding(config.channels, **options)
        self.block4 = motion_blocks(config, 0, **options)
        self.norm4 = operations.LayerNorm(four, **norm)
        self.patch_embed5 = StridedEmbedding(four, five, **options)
        self.block5 = motion_blocks(config, 1, **options)
        self.norm5 = operations.LayerNorm(five, **norm)

    def frame(self, image: Tensor) -> FrameFeatures:
        """Features of frames `[B, 3, H, W]`, H and W multiples of 16, that other frames have no part in."""
        full = self.block1(one_format(image))
        half = self.block2(self.patch_embed2(full))
        quarter = self.block3(self.patch_embed3(half))
        maps = (full, half, quarter)
        return FrameFeatures(image, maps, self.patch_embed4(maps))

    def pair(self, first: FrameFeatures, second: FrameFeatures, with_motion: bool = True) -> PairFeatures:
        """Features of pairs. `with_motion` False leaves out what only the flow heads read."""
        height, width = first.size
        tokens = torch.stack((first.tokens, second.tokens))
        tokens, motion4 = self._stage(self.block4, tokens, (height // 8, width // 8), with_motion)
        maps4 = _images(self.norm4(tokens), (height // 8, width // 8))
        tokens = self.patch_embed5(torch.cat(maps4)).unflatten(0, (2, -1))
        tokens, motion5 = self._stage(self.block5, tokens, (height // 16, width // 16), with_motion)
        maps5 = _images(self.norm5(tokens), (height // 16, width // 16))
        return PairFeatures(
            images=(first.image, second.image),
            appearance=(*zip(first.maps, second.maps, strict=True), maps4, maps5),
            motion=(motion4, motion5) if with_motion else (),
        )

    def _stage(self, blocks, tokens: Tensor, size: tuple[int, int], with_motion: bool):
        motions = []
        for block in blocks:
            tokens, motion = block(tokens, size, with_motion)
            motions.append(motion)
        return tokens, _images(torch.cat(motions, dim=-1), size) if with_motion else None
