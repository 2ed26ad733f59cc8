"""The CAM network of StreamingSVD: pixel encoder, encoder branch, mergers (reference: streamingsvd, sections 5 and 6).

CAM (conditional attention module) is the short-term memory of StreamingT2V: a copy of the video UNet's encoder looks at
the first frames of the chunk together with the pixels of the last finished frames, and every skip of the UNet then
attends to its features over time.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Compute
from ..cam import CamFeatures, CamMerger
from ..layers import PixelEncoder, sinusoid
from .blocks import Downsample, SpatioTemporalTransformer, VideoResBlock
from .config import CamConfig, VideoUNetConfig


class Block(nn.ModuleList):
    """Layers of one UNet block, each called with what it takes."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, frames: int, compute: Compute) -> Tensor:
        for layer in self:
            if isinstance(layer, VideoResBlock):
                x = layer(x, embedding, frames)
            elif isinstance(layer, SpatioTemporalTransformer):
                x = layer(x, context, frames, compute)
            else:
                x = layer(x)
        return x


class CamEncoder(nn.Module):
    """The encoder half and middle of the video UNet, plus the pixel encoder (official prefix `controlnet.`).

    Raw features leave the module: there are no zero convolutions.
    """

    def __init__(self, config: CamConfig, operations=nn, dtype=None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        ours = {"operations": operations, **options}
        unet = config.unet
        self.model_channels = unet.model_channels
        embedding_width = 4 * unet.model_channels

        def embedder(width):
            return nn.Sequential(
                operations.Linear(width, embedding_width, **options),
                nn.SiLU(),
                operations.Linear(embedding_width, embedding_width, **options),
            )

        def transformer(channels, depth):
            return SpatioTemporalTransformer(channels, unet.head_width, depth, unet.context_width, **ours)

        self.time_embed = embedder(unet.model_channels)
        self.label_emb = nn.Sequential(embedder(unet.vector_width))
        channels = unet.model_channels
        blocks = [Block(operations.Conv2d(unet.in_channels, channels, 3, padding=1, **options))]
        for level in unet.levels:
            for depth in level.transformer_depths:
                layers = [VideoResBlock(channels, embedding_width, level.channels, **ours)]
                channels = level.channels
                if depth:
                    layers.append(transformer(channels, depth))
                blocks.append(Block(*layers))
            if level.downsample:
                blocks.append(Block(Downsample(channels, **ours)))
        self.input_blocks = nn.ModuleList(blocks)
        middle = [VideoResBlock(channels, embedding_width, channels, **ours)]
        if unet.middle_depth:
            middle.append(transformer(channels, unet.middle_depth))
        self.middle_block = Block(*middle, VideoResBlock(channels, embedding_width, channels, **ours))
        self.controlnet_cond_embedding = PixelEncoder(config.pixel_channels, unet.model_channels, True, **ours)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        vector: Tensor,
        control_embedding: Tensor,
        frames: int,
        compute: Compute | None = None,
    ) -> CamFeatures:
        """Features of the control frames.

        `x` `[b * frames, in_channels, h, w]`: noisy latent times c_in joined with the image latent; `timesteps`
        `[b * frames]` c_noise; `context` `[b * frames, tokens, context_width]`; `vector` `[b * frames, vector_width]`;
        `control_embedding` `[b * frames or frames, model_channels, h, w]` from the pixel encoder.
        """
        compute = compute or Compute()
        embedding = self.time_embed(sinusoid(timesteps, self.model_channels).to(x.dtype)) + self.label_emb(vector)
        skips: list[Tensor | None] = []
        h = x
        for index, block in enumerate(self.input_blocks):
            h = block(h, embedding, context, frames, compute)
            if index == 0:
                clips = rearrange(h, "(b t) c h w -> b t c h w", t=frames)
                control = rearrange(control_embedding, "(b t) c h w -> b t c h w", t=frames)
                h = rearrange(clips + control, "b t c h w -> (b t) c h w")
            skips.append(h)
        return CamFeatures(skips, self.middle_block(h, embedding, context, frames, compute))


class CamNetwork(nn.Module):
    """Everything StreamingSVD adds to SVD, under its official names (the mergers' UNet prefix removed)."""

    compute_dtype: torch.dtype = torch.float32
    """What its weights are cast to."""

    def __init__(self, config: CamConfig, operations=nn, dtype=None, device=None):
        super().__init__()
        ours = {"operations": operations, "dtype": dtype, "device": device}
        self.config = config
        self.controlnet = CamEncoder(config, **ours)
        self.cross_attention_merger_input_blocks = nn.ModuleList(
            CamMerger(channels, config.merger_head_width, **ours) for channels in skip_channels(config.unet)
        )
        self.cross_attention_merger_mid_block = CamMerger(
            config.unet.levels[-1].channels, config.merger_head_width, **ours
        )

    def encode_pixels(self, control_frames: Tensor) -> Tensor:
        """Control frames `[k, 3, H, W]` in [-1, 1] to their embedding `[k, model_channels, H/8, W/8]`."""
        return self.controlnet.controlnet_cond_embedding(control_frames)

    def merge_skip(self, index: int, skip: Tensor, features: CamFeatures, frames: int, compute: Compute) -> Tensor:
        """Merge skip `index` (the output of input block `index`) and free its feature."""
        feature, features.skips[index] = features.skips[index], None
        return self.cross_attention_merger_input_blocks[index](skip, feature, frames, compute)

    def merge_middle(self, h: Tensor, features: CamFeatures, frames: int, compute: Compute) -> Tensor:
        """Merge the running activation after the middle block and free its feature."""
        feature, features.middle = features.middle, None
        return self.cross_attention_merger_mid_block(h, feature, frames, compute)


def skip_channels(unet: VideoUNetConfig) -> list[int]:
    """Channels of every input block's output, in order."""
    channels = [unet.model_channels]
    for level in unet.levels:
        channels += [level.channels] * (len(level.transformer_depths) + level.downsample)
    return channels
