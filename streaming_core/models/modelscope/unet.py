"""The 3-D UNet of ModelScope, StreamingT2V and MS-Vid2Vid (reference: streamingmodelscope, sections 4 and 6.2).

The layers come from diffusers' public `UNet3DConditionModel`, adopted onto the caller's operations; their names are the
official keys. Running them is ours, for three reasons: skips are merged with CAM features one at a time, just before
the decoder takes them; the keys and values of the context are computed once and handed in; MS-Vid2Vid pads differently.

Activations are `[batch * frames, channels, height, width]` with frames varying fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...errors import SettingsError, StreamingError
from ..adopt import adopt
from ..attention import Compute, attend_in_slices
from .config import MixerConfig, UNet3DConfig


class MissingLibraryError(StreamingError):
    """A library that this network is built from is not installed."""


@dataclass(frozen=True)
class Merge:
    """What happens to the skips of the UNet and to its middle: `skip(index, h) -> h` and `middle(h) -> h`."""

    skip: Callable[[int, Tensor], Tensor]
    middle: Callable[[Tensor], Tensor]


class SelfAttention:
    """Attention processor of the layers that look at themselves: over space, and twice over time."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, compute=None, memory=None):
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        return _project_out(attn, attend_in_slices(q, k, v, attn.heads, compute.attention))


class ContextAttention:
    """Attention processor of the spatial cross-attention that looks at the context.

    Keys and values come ready in `memory[index]`, one row per video; the frames of a video are folded into its queries.
    """

    def __init__(self, index: int):
        self.index = index

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, compute=None, memory=None):
        k, v = memory[self.index]
        batch, pixels = k.shape[0], hidden_states.shape[1]
        q = rearrange(attn.to_q(hidden_states), "(b f) s c -> b (f s) c", b=batch)
        return _project_out(attn, rearrange(compute.attention(q, k, v, attn.heads), "b (f s) c -> (b f) s c", s=pixels))


def _project_out(attn: nn.Module, x: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](x))


def add_mixer(attn: nn.Module, config: MixerConfig, width: int, operations: Any, dtype=None, device=None) -> None:
    """Give a cross-attention the APM parameters under their official names: `conv`, `conv_ln`, `alpha`."""
    options = {"dtype": dtype, "device": device}
    attn.conv = operations.Conv1d(
        config.context_tokens, config.text_tokens, config.kernel, padding=config.kernel // 2, **options
    )
    attn.conv_ln = operations.LayerNorm(width, **options)
    attn.alpha = nn.Parameter(torch.zeros((), **options))


def mix_context(attn: nn.Module, context: Tensor, weight: float = 1.0) -> Tensor:
    """APM: text plus what a convolution over all tokens makes of text and image (section 4.2, step 6).

    `context` `[b, text + image tokens, width]` to `[b, text tokens, width]`. `weight` scales the mixed part; 1 is
    official, 0 leaves the text alone. The convolution takes tokens for channels and slides over the features.
    """
    mixed = attn.conv_ln(attn.conv(context))
    gate = weight * F.silu(attn.alpha.to(device=context.device, dtype=torch.float32)).to(context.dtype)
    return context[:, : mixed.shape[1]] + gate * mixed


def _diffusers() -> Any:
    # Here and not at the top: the import takes seconds, and users of other models need not have the library.
    try:
        import diffusers
    except ImportError as error:
        raise MissingLibraryError(
            "the ModelScope networks are built from diffusers' UNet3DConditionModel, but diffusers is not installed; "
            "install it with `pip install diffusers`"
        ) from error
    return diffusers


def _public_unet(config: UNet3DConfig) -> nn.Module:
    """diffusers' network for `config` on the meta device, with our attention processors."""
    library = _diffusers()
    down = ["CrossAttnDownBlock3D" if attention else "DownBlock3D" for attention in config.attention]
    up = ["CrossAttnUpBlock3D" if attention else "UpBlock3D" for attention in reversed(config.attention)]
    with torch.device("meta"):
        unet = library.UNet3DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.context_width,
            attention_head_dim=config.head_width,
        )
        # The class always gives its first transformer eight heads; narrow MS-Vid2Vid variants have another number.
        heads = config.input_attention_width // config.head_width
        if heads != 8:
            unet.transformer_in = library.TransformerTemporalModel(
                num_attention_heads=heads, attention_head_dim=config.head_width, in_channels=config.channels[0]
            )
    order = {name: index for index, (name, _) in enumerate(context_attentions(unet))}
    names = {key: key.removesuffix(".processor") for key in unet.attn_processors}
    unet.set_attn_processor(
        {key: ContextAttention(order[name]) if name in order else SelfAttention() for key, name in names.items()}
    )
    return unet


def materialised(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str | None) -> nn.Module:
    """`module` in `dtype` with uninitialized weights on `device` (the CPU by default; "meta" allocates nothing)."""
    # The plain module's `to`: the library's own warns about casting.
    return nn.Module.to(module, dtype).to_empty(device=device or "cpu")


def context_attentions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`(name, layer)` of every spatial cross-attention, in the order of the down path, the middle and the up path."""
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(network.down_blocks)]
    blocks.append(("mid_block", network.mid_block))
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(getattr(network, "up_blocks", ()))]
    for block_name, block in blocks:
        for i, transformer in enumerate(getattr(block, "attentions", ())):
            for j, layer in enumerate(transformer.transformer_blocks):
                yield f"{block_name}.attentions.{i}.transformer_blocks.{j}.attn2", layer.attn2


class DownPath(nn.Module):
    """The parts that the UNet and the CAM branch share: everything up to and with the middle."""

    def __init__(self, config: UNet3DConfig, parts: tuple[str, ...], operations=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        unet = _public_unet(config)
        if config.vid2vid:
            for block in unet.down_blocks[:-1]:
                block.downsamplers[0].conv.padding = (2, 1)
        adopt(unet, operations)
        for name in ("conv_in", "time_proj", "time_embedding", "transformer_in", "down_blocks", "mid_block", *parts):
            # eval: the layers carry dropout, and nothing else would switch it off.
            self.add_module(name, materialised(getattr(unet, name), dtype, device).eval())
        self._memory_widths = [2 * attn.to_k.out_features for _, attn in context_attentions(self)]

    def project_context(self, context: Tensor, anchor_weight: float = 1.0) -> Tensor:
        """Keys and values of every spatial cross-attention, `[b, tokens, 2 * sum of widths]`.

        `context` `[b, tokens, context_width]`, one row per video: text, followed by the image tokens where the network
        has mixers (`mix_context`). It depends on neither the noise level nor the frame, so one call serves a chunk.
        """
        parts = []
        for _, attn in context_attentions(self):
            tokens = mix_context(attn, context, anchor_weight) if hasattr(attn, "conv") else context
            parts += [attn.to_k(tokens), attn.to_v(tokens)]
        return torch.cat(parts, dim=-1)

    def _arguments(self, memory: Tensor, compute: Compute) -> dict[str, Any]:
        """Keyword arguments for the transformers; the attention processors pick up both."""
        if memory.shape[-1] != sum(self._memory_widths):
            raise SettingsError(
                f"projected context is {memory.shape[-1]} wide, but this network takes {sum(self._memory_widths)}; "
                "project it with the same network"
            )
        pairs = [part.chunk(2, dim=-1) for part in memory.split(self._memory_widths, dim=-1)]
        return {"cross_attention_kwargs": {"memory": pairs, "compute": compute}, "return_dict": False}

    def _embed_timesteps(self, timesteps: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
        return self.time_embedding(self.time_proj(timesteps).to(dtype)).repeat_interleave(frames, dim=0)

    def _enter(self, x: Tensor, frames: int, arguments: dict[str, Any]) -> Tensor:
        return self.transformer_in(self.conv_in(x), num_frames=frames, **arguments)[0]

    def _down(self, h: Tensor, embedding: Tensor, frames: int, arguments: dict[str, Any]) -> list[Tensor]:
        skips = [h]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                h = _layer(block, index, h, embedding, frames, arguments)
                skips.append(h)
            if block.downsamplers is not None:
                h = block.downsamplers[0].conv(h)
                skips.append(h)
        return skips

    def _middle(self, h: Tensor, embedding: Tensor, frames: int, arguments: dict[str, Any]) -> Tensor:
        block = self.mid_block
        h = block.temp_convs[0](block.resnets[0](h, embedding), num_frames=frames)
        rest = zip(block.attentions, block.temp_attentions, block.resnets[1:], block.temp_convs[1:], strict=True)
        for attention, over_time, resnet, convolution in rest:
            h = attention(h, **arguments)[0]
            h = over_time(h, num_frames=frames, **arguments)[0]
            h = convolution(resnet(h, embedding), num_frames=frames)
        return h


def _layer(block: nn.Module, index: int, h: Tensor, embedding: Tensor, frames: int, arguments: dict) -> Tensor:
    h = block.temp_convs[index](block.resnets[index](h, embedding), num_frames=frames)
    if hasattr(block, "attentions"):
        h = block.attentions[index](h, **arguments)[0]
        h = block.temp_attentions[index](h, num_frames=frames, **arguments)[0]
    return h


class VideoUNet(DownPath):
    """The denoiser: ModelScope's UNet, with APM mixers where the configuration has them."""

    def __init__(self, config: UNet3DConfig, operations=nn, dtype=None, device=None):
        super().__init__(config, ("up_blocks", "conv_norm_out", "conv_act", "conv_out"), operations, dtype, device)
        if config.mixers:
            for _, attn in context_attentions(self):
                add_mixer(attn, config.mixers, config.context_width, operations, dtype, device)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        memory: Tensor,
        merge: Merge | None = None,
        compute: Compute | None = None,
    ) -> Tensor:
        """The prediction for `x` `[b * frames, in_channels, h, w]` at `timesteps` `[b]` (0..999), shape of `x`.

        `memory`: keys and values from `project_context`, one row per video; its rows tell how many frames a video has.
        `merge` sees every skip right before the decoder takes it, and the middle; the down path never sees it.
        """
        batch = memory.shape[0]
        frames, rest = divmod(x.shape[0], batch)
        if rest:
            raise SettingsError(f"{x.shape[0]} latent frames do not divide into {batch} videos of equal length")
        self._check_size(x)
        arguments = self._arguments(memory, compute or Compute())
        embedding = self._embed_timesteps(timesteps, frames, x.dtype)
        skips = self._down(self._enter(x, frames, arguments), embedding, frames, arguments)
        h = self._middle(skips[-1], embedding, frames, arguments)
        if merge is not None:
            h = merge.middle(h)
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                skip = skips.pop()
                if merge is not None:
                    skip = merge.skip(len(skips), skip)
                h = _layer(block, index, torch.cat([h, skip], dim=1), embedding, frames, arguments)
            if block.upsamplers is not None:
                h = self._upsample(h, block.upsamplers[0].conv, skips[-1].shape[-2:])
        return self.conv_out(self.conv_act(self.conv_norm_out(h)))

    def _upsample(self, h: Tensor, conv: nn.Module, size: torch.Size) -> Tensor:
        if not self.config.vid2vid:
            return conv(F.interpolate(h, size=size, mode="nearest"))
        # The strides padded two rows, so doubling makes one too many at either end.
        return conv(F.interpolate(h, scale_factor=2.0, mode="nearest")[..., 1:-1, :])

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        factor = self.config.factor
        if self.config.vid2vid and (height % factor != 2 % factor or width % factor):
            raise SettingsError(
                f"a latent of {width} x {height} does not come back to its size in MS-Vid2Vid: its width must be a "
                f"multiple of {factor} and its height {2 % factor} more than one; in pixels, a multiple of "
                f"{8 * factor} and {16 % (8 * factor)} more than one (1280 x 720 fits)"
            )
