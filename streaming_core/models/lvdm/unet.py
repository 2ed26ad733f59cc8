"""LVDM's UNet in all its forms (reference: lvdm, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FrameError, SettingsError
from ..attention import Compute
from ..layers import Device, Operations, sinusoid
from .blocks import Grow, Residual, Shrink, SpaceTimeAttention, TextTransformer, conv3, group_norm
from .config import LvdmConfig


class LvdmUNet(nn.Module):
    """Noisy latents to the noise in them."""

    def __init__(
        self,
        config: LvdmConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        typed, embedded = {"dtype": dtype, "device": device}, 4 * config.width
        self.config = config
        self.time_embed = nn.Sequential(
            operations.Linear(config.width, embedded, **typed),
            nn.SiLU(),
            operations.Linear(embedded, embedded, **typed),
        )
        self.label_emb = operations.Embedding(config.labels, embedded, **typed) if config.labels else None
        last = len(config.multipliers) - 1
        skips = [config.width]

        def attention(width: int) -> nn.Module:
            return (SpaceTimeAttention if config.context_width is None else TextTransformer)(width, config, options)

        def layer(channels: int, width: int, level: int) -> list[nn.Module]:
            return [
                Residual(channels, width, config, options),
                *([attention(width)] if config.attention[level] else []),
            ]

        inputs = [nn.ModuleList([conv3(config.in_channels, config.width, options)])]
        channels = config.width
        for level in range(last + 1):
            for _ in range(config.blocks_per_level):
                inputs.append(nn.ModuleList(layer(channels, config.level_width(level), level)))
                channels = config.level_width(level)
                skips.append(channels)
            if level < last:
                inputs.append(nn.ModuleList([Shrink(channels, options)]))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(inputs)
        self.middle_block = nn.ModuleList(
            [
                Residual(channels, channels, config, options),
                attention(channels),
                Residual(channels, channels, config, options),
            ]
        )
        outputs = []
        for level in reversed(range(last + 1)):
            for number in range(config.blocks_per_level + 1):
                block = layer(channels + skips.pop(), config.level_width(level), level)
                channels = config.level_width(level)
                if level and number == config.blocks_per_level:
                    block.append(Grow(channels, options))
                outputs.append(nn.ModuleList(block))
        self.output_blocks = nn.ModuleList(outputs)
        self.out = nn.Sequential(
            group_norm(channels, options), nn.SiLU(), conv3(channels, config.out_channels, options)
        )

    def embed(self, timesteps: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The noise level of the latents, and of the known ones where `labels` says it: `[B, 4 * width]`."""
        embedding = self.time_embed(sinusoid(timesteps, self.config.width).to(dtype))
        if labels is None:
            return embedding
        if self.label_emb is None:
            raise SettingsError(
                "this LVDM model was not trained to be told the noise level of known latents; use a prediction or "
                "interpolation model"
            )
        told = (labels >= 0).unsqueeze(1).to(dtype)
        return embedding + told * self.label_emb(labels.clamp(min=0)).to(dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call `denoise`; subclasses of hosts have arguments of their own."""
        return self.denoise(*args, **kwargs)

    def denoise(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        labels: Tensor | None = None,
        compute: Compute | None = None,
    ) -> Tensor:
        """The noise in `x`, `[B, out_channels, T, h, w]`.

        Args:
            x: `[B, in_channels, T, h, w]`, T any number of latents; h and w are multiples of `config.factor`. A model
                of known latents reads a mask as last channel: 1 where a latent is known.
            timesteps: `[B]`, 0 to 999.
            context: encoded text `[B, tokens, context_width]`, for a model of text.
            labels: `[B]` int64, noise level of the known latents, or -1 for one that is not told; None for all such.
            compute: kernels; default torch's own.

        Raises:
            FrameError: a size that does not come back to itself, or another number of channels.
            SettingsError: a text or a label where the model takes none, or no text where it does.
        """
        self._check(x, context)
        compute = compute or Compute()
        embedding = self.embed(timesteps, labels, x.dtype)
        skips: list[Tensor] = []
        h = x
        for block in self.input_blocks:
            h = self._through(block, h, embedding, context, compute)
            skips.append(h)
        h = self._through(self.middle_block, h, embedding, context, compute)
        for block in self.output_blocks:
            h = self._through(block, torch.cat([h, skips.pop()], dim=1), embedding, context, compute)
        return self.out(h)

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        height, width = x.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise FrameError(
                f"a latent of {width} x {height} does not come back to its size in LVDM; use multiples of {8 * factor} "
                "pixels for width and height"
            )
        if x.shape[1] != self.config.in_channels:
            raise FrameError(f"this LVDM model reads {self.config.in_channels} channels, got {x.shape[1]}")
        if (context is None) != (self.config.context_width is None):
            raise SettingsError(
                "this LVDM model needs an encoded text" if context is None else "this LVDM model takes no text"
            )

    @staticmethod
    def _through(layers: Any, h: Tensor, embedding: Tensor, context: Tensor | None, compute: Compute) -> Tensor:
        for layer in layers:
            if isinstance(layer, Residual):
                h = layer(h, embedding)
            elif isinstance(layer, SpaceTimeAttention | TextTransformer):
                h = layer(h, context, compute)
            else:
                h = layer(h)
        return h
