"""The 3-D UNet of ModelScope's kind, which StreamingModelscope, MS-Vid2Vid and I2VGen-XL share.

References: streamingmodelscope, sections 4.1 and 6.2, and enhancer, section 9. Names of sub-modules are the keys of
the published files in the diffusers layout. Layers are in `unet3d_layers`; families add what they condition on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingsError
from .layers import Device, Operations, sinusoid
from .unet3d_attention import ContextAttention, KeysValues
from .unet3d_layers import (
    Call,
    Downsample,
    ResBlock2D,
    Skips,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
    Upsample,
)


@dataclass(frozen=True)
class UNet3DSizes:
    """Sizes of one network. Released models: 320, 640, 1280, 1280 channels, context 1024, heads of 64, 32 groups.

    Attributes:
        attention: whether each level has transformers.
        input_attention_width: inner width of the temporal transformer after the first convolution.
        padded_rows: strides pad two rows and upsampling drops two, as in MS-Vid2Vid.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_block: int
    context_width: int
    input_attention_width: int
    head_width: int = 64
    norm_groups: int = 32
    padded_rows: bool = False

    @property
    def embedding_width(self) -> int:
        return 4 * self.channels[0]


@dataclass(frozen=True)
class Make:
    """How layers are made: sizes that all have in common, and where from."""

    sizes: UNet3DSizes
    operations: Operations
    options: dict = field(default_factory=dict)

    def resnet(self, channels: int, out_channels: int) -> ResBlock2D:
        sizes = self.sizes
        return ResBlock2D(
            channels, out_channels, sizes.embedding_width, sizes.norm_groups, self.operations, **self.options
        )

    def temporal_conv(self, channels: int) -> TemporalConv:
        return TemporalConv(channels, self.sizes.norm_groups, self.operations, **self.options)

    def spatial(self, channels: int) -> SpatialTransformer:
        sizes = self.sizes
        return SpatialTransformer(
            channels, sizes.head_width, sizes.context_width, sizes.norm_groups, self.operations, **self.options
        )

    def temporal(self, channels: int, width: int | None = None) -> TemporalTransformer:
        sizes = self.sizes
        return TemporalTransformer(
            channels, width or channels, sizes.head_width, sizes.norm_groups, self.operations, **self.options
        )

    def downsample(self, channels: int) -> Downsample:
        return Downsample(channels, (2, 1) if self.sizes.padded_rows else (1, 1), self.operations, **self.options)

    def upsample(self, channels: int) -> Upsample:
        return Upsample(channels, 1 if self.sizes.padded_rows else None, self.operations, **self.options)


class TimestepEmbedding(nn.Module):
    """Sinusoids of the noise level through two linear layers."""

    def __init__(
        self,
        channels: int,
        width: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.linear_1 = operations.Linear(channels, width, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Embed sinusoids `[b, channels]` as `[b, width]`."""
        return self.linear_2(F.silu(self.linear_1(x)))


class Block(nn.Module):
    """Layers of one level: residual block, convolution over frames and, with `attention`, both transformers."""

    def __init__(self, inputs: list[int], channels: int, attention: bool, make: Make):
        super().__init__()
        count = len(inputs)
        self.resnets = nn.ModuleList(make.resnet(width, channels) for width in inputs)
        self.temp_convs = nn.ModuleList(make.temporal_conv(channels) for _ in range(count))
        self.attentions = nn.ModuleList(make.spatial(channels) for _ in range(count if attention else 0))
        self.temp_attentions = nn.ModuleList(make.temporal(channels) for _ in range(count if attention else 0))

    def _layer(self, index: int, h: Tensor, call: Call) -> Tensor:
        h = self.temp_convs[index](self.resnets[index](h, call.embedding), call.frames)
        if self.attentions:
            h = self.temp_attentions[index](self.attentions[index](h, call), call)
        return h


def as_skip(h: Tensor, call: Call, skips: Skips) -> Tensor:
    """Store what an input block made; returns what the next one gets."""
    h = call.hooks.after_input(h)
    skips.push(h)
    return call.hooks.after_skip(h)


class DownBlock(Block):
    """One level of the way down; every layer's output is a skip, the strided convolution's too."""

    def __init__(self, channels: int, out_channels: int, layers: int, attention: bool, last: bool, make: Make):
        super().__init__([channels] + [out_channels] * (layers - 1), out_channels, attention, make)
        self.downsamplers = None if last else nn.ModuleList([make.downsample(out_channels)])

    def forward(self, h: Tensor, call: Call, skips: Skips) -> Tensor:
        for index in range(len(self.resnets)):
            call.hooks.at("input", len(skips))
            h = as_skip(self._layer(index, h, call), call, skips)
        for downsample in self.downsamplers or ():
            call.hooks.at("input", len(skips))
            h = as_skip(downsample(h), call, skips)
        return h


class MidBlock(nn.Module):
    """A residual block, both transformers, another residual block; a convolution over frames after each."""

    def __init__(self, channels: int, make: Make):
        super().__init__()
        self.resnets = nn.ModuleList(make.resnet(channels, channels) for _ in range(2))
        self.temp_convs = nn.ModuleList(make.temporal_conv(channels) for _ in range(2))
        self.attentions = nn.ModuleList([make.spatial(channels)])
        self.temp_attentions = nn.ModuleList([make.temporal(channels)])

    def forward(self, h: Tensor, call: Call) -> Tensor:
        h = self.temp_convs[0](self.resnets[0](h, call.embedding), call.frames)
        h = self.temp_attentions[0](self.attentions[0](h, call), call)
        return self.temp_convs[1](self.resnets[1](h, call.embedding), call.frames)


class UpBlock(Block):
    """One level of the way up; every layer takes one skip, and the enlargement comes to the size of the next."""

    def __init__(self, channels: int, skips: list[int], out_channels: int, attention: bool, last: bool, make: Make):
        inputs = [
            width + skip for width, skip in zip([channels] + [out_channels] * (len(skips) - 1), skips, strict=True)
        ]
        super().__init__(inputs, out_channels, attention, make)
        self.upsamplers = None if last else nn.ModuleList([make.upsample(out_channels)])

    def forward(self, h: Tensor, call: Call, skips: Skips) -> Tensor:
        for index in range(len(self.resnets)):
            call.hooks.at("output", skips.taken)
            h, skip = call.hooks.before_output(h, skips.pop())
            _check_sizes(h, skip)
            h = self._layer(index, torch.cat([h, skip], dim=1), call)
        for upsample in self.upsamplers or ():
            h = upsample(h, skips.next_size())
        return h


def _check_sizes(h: Tensor, skip: Tensor) -> None:
    """Raise `SettingsError` where hooks left sizes that cannot be joined; the network's own always can."""
    if h.shape[-2:] != skip.shape[-2:]:
        (height, width), (wanted_height, wanted_width) = h.shape[-2:], skip.shape[-2:]
        raise SettingsError(
            f"a patch of this model changed its features to {width}x{height} and did not bring them back to the "
            f"{wanted_width}x{wanted_height} of the block that they are joined with; remove that patch, or let it "
            "divide both sides of the video evenly"
        )


class DownPath(nn.Module):
    """Everything up to and with the middle: the encoder branch of CAM, and half of every UNet."""

    def __init__(
        self,
        sizes: UNet3DSizes,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.sizes = sizes
        options = {"dtype": dtype, "device": device}
        make = Make(sizes, operations, options)
        self.conv_in = operations.Conv2d(sizes.in_channels, sizes.channels[0], 3, padding=1, **options)
        self.time_embedding = TimestepEmbedding(sizes.channels[0], sizes.embedding_width, operations, dtype, device)
        self.transformer_in = make.temporal(sizes.channels[0], sizes.input_attention_width)
        blocks, width = [], sizes.channels[0]
        for level, (channels, attention) in enumerate(zip(sizes.channels, sizes.attention, strict=True)):
            last = level == len(sizes.channels) - 1
            blocks.append(DownBlock(width, channels, sizes.layers_per_block, attention, last, make))
            width = channels
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = MidBlock(width, make)

    def embed_timesteps(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """`timesteps` `[b]` (0..999) to `[b, embedding_width]`."""
        return self.time_embedding(sinusoid(timesteps, self.sizes.channels[0]).to(dtype))

    def project_context(self, context: Tensor) -> Tensor:
        """Keys and values of every cross-attention for `context` `[b, tokens, context_width]`, one row per video.

        `[b, tokens, memory_width]`. It depends on neither noise level nor frame, so one call serves a whole run.
        """
        return self._project(lambda _: context)

    def _project(self, tokens: Callable[[ContextAttention], Tensor]) -> Tensor:
        parts = [part for _, attn in context_attentions(self) for part in attn.project(tokens(attn))]
        return torch.cat(parts, dim=-1)

    def keys_and_values(self, memory: Tensor) -> Iterator[KeysValues]:
        """`memory`, made by `project_context`, layer by layer, in the order in which they run."""
        widths = [2 * attn.inner_width for _, attn in context_attentions(self)]
        if memory.shape[-1] != sum(widths):
            raise SettingsError(
                f"projected context is {memory.shape[-1]} wide, but this network takes {sum(widths)}; "
                "project it with the same network"
            )
        halves = (part.chunk(2, dim=-1) for part in memory.split(widths, dim=-1))
        return iter([(keys, values) for keys, values in halves])

    def enter(self, x: Tensor, call: Call) -> Tensor:
        """The first features of `x` `[b * frames, in_channels, h, w]`."""
        call.hooks.at("input", 0)
        return self.transformer_in(self.conv_in(x), call)

    def down(self, h: Tensor, call: Call, skips: Skips) -> Tensor:
        """From the first features to what goes into the middle; skips are pushed on the way."""
        h = as_skip(h, call, skips)
        for block in self.down_blocks:
            h = block(h, call, skips)
        return h

    def middle(self, h: Tensor, call: Call) -> Tensor:
        """From what leaves the way down to what enters the way up."""
        call.hooks.at("middle", 0)
        return call.hooks.after_middle(self.mid_block(h, call))


class UNet3D(DownPath):
    """The whole UNet; families say what its context and embedding are."""

    def __init__(
        self,
        sizes: UNet3DSizes,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(sizes, operations, dtype, device)
        options = {"dtype": dtype, "device": device}
        make = Make(sizes, operations, options)
        skips, width, blocks = skip_channels(sizes), sizes.channels[-1], []
        for level in reversed(range(len(sizes.channels))):
            taken = [skips.pop() for _ in range(sizes.layers_per_block + 1)]
            channels = sizes.channels[level]
            blocks.append(UpBlock(width, taken, channels, sizes.attention[level], level == 0, make))
            width = channels
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_norm_out = operations.GroupNorm(sizes.norm_groups, sizes.channels[0], eps=1e-5, **options)
        self.conv_out = operations.Conv2d(sizes.channels[0], sizes.out_channels, 3, padding=1, **options)

    @property
    def transformers(self) -> frozenset[tuple[str, int]]:
        """The blocks that have spatial transformers, as `Hooks.at` counts them."""
        found, sizes = {("middle", 0)}, self.sizes
        for level, has_them in enumerate(sizes.attention):
            if has_them:
                down = 1 + level * (sizes.layers_per_block + 1)  # the first convolution, and a stride after every level
                up = (len(sizes.channels) - 1 - level) * (sizes.layers_per_block + 1)
                found |= {("input", down + layer) for layer in range(sizes.layers_per_block)}
                found |= {("output", up + layer) for layer in range(sizes.layers_per_block + 1)}
        return frozenset(found)

    def up(self, h: Tensor, call: Call, skips: Skips) -> Tensor:
        """From what leaves the middle to the prediction `[b * frames, out_channels, h, w]`."""
        for block in self.up_blocks:
            h = block(h, call, skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def skip_channels(sizes: UNet3DSizes) -> list[int]:
    """Channels of the skips, in the order in which the way down makes them."""
    skips = [sizes.channels[0]]
    for level, channels in enumerate(sizes.channels):
        downsampler = level < len(sizes.channels) - 1
        skips += [channels] * (sizes.layers_per_block + downsampler)
    return skips


def context_attentions(network: nn.Module) -> Iterator[tuple[str, ContextAttention]]:
    """`(name, layer)` of every cross-attention below `network`, in the order in which they run."""
    order = ("down_blocks.", "mid_block.", "up_blocks.")
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, ContextAttention)]
    for prefix in order:
        yield from ((name, module) for name, module in found if name.startswith(prefix))
