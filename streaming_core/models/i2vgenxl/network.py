"""diffusers' public `I2VGenXLUNet`, adopted onto the caller's layers and attention, with two memory savers.

diffusers is imported when a network is built, never before: the pack works without it, only this network does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StreamingError
from ..adopt import adopt
from ..attention import MAX_ATTENTION_BATCH, Attention, attend
from .detect import I2VGenXLConfig

Move = Callable[[Tensor], Tensor]

MAX_VALUES = 2**27
"""Intermediate values that one layer makes at a time. Whole feed-forward layers would set the peak of all memory."""


class MissingLibraryError(StreamingError):
    """A library that this one network needs is not installed."""


def _in_parts(compute: Callable[..., Tensor], parts: int, *inputs: Tensor) -> Tensor:
    """`compute` on `parts` parts of the first axis of `inputs`, joined; it keeps the shape of its first input."""
    parts = min(parts, len(inputs[0]))
    if parts < 2:
        return compute(*inputs)
    out, done = torch.empty_like(inputs[0]), 0
    for part in zip(*(tensor.tensor_split(parts) for tensor in inputs), strict=True):
        out[done : done + len(part[0])] = compute(*part)
        done += len(part[0])
    return out


class AttentionThrough:
    """Attention processor that computes queries, keys and values itself and leaves the rest to `attention`.

    The callable travels with each call (`cross_attention_kwargs`), so one network serves callers with different
    kernels at the same time. Large batches go in parts: kernels have a limit, and memory too.
    """

    def __call__(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        attention: Attention = attend,
    ) -> Tensor:
        project, dropout = layer.to_out

        def attend_part(states: Tensor, context: Tensor | None = None) -> Tensor:
            context = states if context is None else context
            q, k, v = layer.to_q(states), layer.to_k(context), layer.to_v(context)
            return dropout(project(attention(q, k, v, layer.heads)))

        batch, inputs = len(hidden_states), [hidden_states]
        values = 4 * hidden_states.numel()
        if encoder_hidden_states is not None:
            inputs.append(encoder_hidden_states)
        parts = max(-(-values // MAX_VALUES), -(-batch * layer.heads // MAX_ATTENTION_BATCH))
        return _in_parts(attend_part, parts, *inputs)


@cache
def _split_feed_forward(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind`, a feed-forward layer, that works on parts of its first axis when the whole is too wide; same result."""

    class SplitFeedForward(kind):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # Eight times the width: both halves of the gated projection are four times as wide as the input.
            parts = -(-8 * hidden_states.numel() // MAX_VALUES)
            whole = super().forward
            return _in_parts(lambda part: whole(part, *args, **kwargs), parts, hidden_states)

    return SplitFeedForward


def position_ramp(first: Tensor, num_frames: int) -> Tensor:
    """Image latents of a clip: the encoded image in frame 0, constant planes of k/(F-1) in frame k.

    `first` `[rows, C, h, w]`, result `[rows, C, num_frames, h, w]` (reference: enhancer, section 2).
    """
    frames = first.unsqueeze(2).repeat(1, 1, num_frames, 1, 1)
    for frame in range(1, num_frames):
        frames[:, :, frame] = frame / (num_frames - 1)
    return frames


def _library_unet() -> type[nn.Module]:
    try:
        from diffusers import I2VGenXLUNet
    except ImportError as error:
        raise MissingLibraryError(
            "the I2VGen-XL enhancer needs the diffusers library, which is not installed or does not load "
            f"({error}): install it into ComfyUI's Python with `python -m pip install diffusers`"
        ) from error
    return I2VGenXLUNet


@cache
def network_class() -> type[nn.Module]:
    """The network's class. Raises `MissingLibraryError` without diffusers."""

    class I2VGenXL(_library_unet()):
        """`I2VGenXLUNet` that knows its storage and compute types apart and can keep its skips elsewhere."""

        weight_dtype: torch.dtype = torch.float32
        compute_dtype: torch.dtype = torch.float32

        @property
        def dtype(self) -> torch.dtype:
            """What it computes in. The library asks the weights, which may be stored in a type nothing computes in."""
            return self.compute_dtype

        def denoise(
            self,
            sample: Tensor,
            timestep: Tensor,
            context: Tensor,
            image_latents: Tensor,
            image_embeddings: Tensor,
            fps: Tensor,
            attention: Attention = attend,
            frugal: bool = False,
        ) -> Tensor:
            """v-prediction of a clip, `[rows, C, F, h, w]` like `sample`; one row per guidance branch.

            `timestep` and `fps` `[rows]`; `context` `[rows, tokens, width]`; `image_latents` of all frames (see
            `position_ramp`); `image_embeddings` `[rows, 1, width]`. `frugal` runs row after row and keeps skips in
            system memory; the result is the same.
            """
            inputs = (sample, timestep, fps, image_latents, image_embeddings, context)
            if not frugal:
                return self._row(*inputs, attention)
            with skips_kept_elsewhere(self):
                rows = [self._row(*(part[row : row + 1] for part in inputs), attention) for row in range(len(sample))]
            return torch.cat(rows)

        def _row(self, sample, timestep, fps, image_latents, image_embeddings, context, attention) -> Tensor:
            return self.forward_clip(
                sample,
                timestep,
                fps,
                image_latents,
                image_embeddings=image_embeddings,
                encoder_hidden_states=context,
                cross_attention_kwargs={"attention": attention},
                return_dict=False,
            )[0]

        def forward_clip(self, *args: Any, **kwargs: Any) -> Any:
            """The library's forward, under a name that survives a subclass with a forward of its own."""
            return super().forward(*args, **kwargs)

    return I2VGenXL


class Fetched:
    """Stored skips of one up block, which takes them from the end: each is fetched when it is taken."""

    def __init__(self, stored: Sequence[Tensor], fetch: Move):
        self.stored, self.fetch = stored, fetch

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int | slice) -> Tensor | Fetched:
        if isinstance(index, slice):
            return Fetched(self.stored[index], self.fetch)
        return self.fetch(self.stored[index])


@contextmanager
def skips_kept_elsewhere(
    network: nn.Module, away: Move = lambda skip: skip.to("cpu"), back: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Iterator[None]:
    """Inside, what `network`'s down blocks hand across to its up blocks is stored by `away` and fetched by `back`.

    `back(stored, like)` returns the stored tensor on the device of `like`. One skip is fetched at a time.
    """
    back = back or (lambda stored, like: stored.to(like.device))

    def put_away(_block: nn.Module, _args: Any, _kwargs: Any, output: tuple) -> tuple:
        sample, skips = output
        return sample, tuple(away(skip) for skip in skips)

    def fetch(_block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        fetched = partial(back, like=kwargs["hidden_states"].new_empty(0))
        return args, {**kwargs, "res_hidden_states_tuple": Fetched(kwargs["res_hidden_states_tuple"], fetched)}

    with ExitStack() as hooks:
        for block in network.down_blocks:
            hooks.callback(block.register_forward_hook(put_away, with_kwargs=True).remove)
        for block in network.up_blocks:
            hooks.callback(block.register_forward_pre_hook(fetch, with_kwargs=True).remove)
        yield


def build(
    config: I2VGenXLConfig,
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    kind: type[nn.Module] | None = None,
) -> nn.Module:
    """The network with uninitialized weights, in evaluation mode; `kind` is a subclass of `network_class()`.

    The library prints a note for each unusual size; those are silenced while it is built.
    """
    kind = kind or network_class()
    levels = config.attention_levels
    with torch.device("meta"), _quiet("diffusers"):
        network = kind(
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            down_block_types=tuple("CrossAttnDownBlock3D" if there else "DownBlock3D" for there in levels),
            up_block_types=tuple("CrossAttnUpBlock3D" if there else "UpBlock3D" for there in reversed(levels)),
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=config.cross_attention_dim,
            attention_head_dim=config.head_width,
        )
    adopt(network, operations)
    network.set_attn_processor(AttentionThrough())
    for name, module in network.named_modules():
        if name.endswith(".ff"):
            module.__class__ = _split_feed_forward(type(module))
    dtype = dtype or torch.get_default_dtype()
    # torch's own .to: the library's wraps it with checks for quantized models that say nothing here.
    nn.Module.to(network, dtype=dtype)
    network.to_empty(device=device or "cpu")
    network.weight_dtype = network.compute_dtype = dtype
    return network.requires_grad_(False).eval()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
