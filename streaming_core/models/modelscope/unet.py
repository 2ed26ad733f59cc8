"""The denoiser of ModelScope, StreamingT2V and MS-Vid2Vid (reference: streamingmodelscope, sections 4 and 6.2).

It is the shared 3-D UNet, run so that skips are merged with CAM features one at a time, just before the decoder takes
them, and so that the keys and values of the context are computed once and handed in. APM's mixers lie inside its
cross-attentions.

Activations are `[batch * frames, channels, height, width]` with frames varying fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SettingsError
from ..attention import Compute
from ..layers import Device, Operations
from ..unet3d import UNet3D, context_attentions
from ..unet3d_attention import ContextAttention
from ..unet3d_hooks import NO_HOOKS, Hooks
from ..unet3d_layers import Call, Skips
from .config import MixerConfig, UNet3DConfig


@dataclass(frozen=True)
class Merge:
    """What happens to the skips of the UNet and to its middle: `skip(index, h) -> h` and `middle(h) -> h`."""

    skip: Callable[[int, Tensor], Tensor]
    middle: Callable[[Tensor], Tensor]


def add_mixer(
    attn: ContextAttention,
    config: MixerConfig,
    width: int,
    operations: Operations,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> None:
    """Give a cross-attention the APM parameters under their official names: `conv`, `conv_ln`, `alpha`."""
    options = {"dtype": dtype, "device": device}
    attn.conv = operations.Conv1d(
        config.context_tokens, config.text_tokens, config.kernel, padding=config.kernel // 2, **options
    )
    attn.conv_ln = operations.LayerNorm(width, **options)
    attn.alpha = nn.Parameter(torch.zeros((), dtype=dtype, device=device))


def mix_context(attn: Any, context: Tensor, weight: float = 1.0) -> Tensor:
    """APM: text plus what a convolution over all tokens makes of text and image (section 4.2, step 6).

    `attn` is a cross-attention that `add_mixer` has given its parameters.
    `context` `[b, text + image tokens, width]` to `[b, text tokens, width]`. `weight` scales the mixed part; 1 is
    official, 0 leaves the text alone. The convolution takes tokens for channels and slides over the features.
    """
    mixed = attn.conv_ln(attn.conv(context))
    gate = weight * F.silu(attn.alpha.to(device=context.device, dtype=torch.float32)).to(context.dtype)
    return context[:, : mixed.shape[1]] + gate * mixed


def frames_of(x: Tensor, memory: Tensor) -> int:
    """Frames of one video among those of `x` `[batch * frames, ...]`; `memory` has one row per video."""
    frames, rest = divmod(x.shape[0], memory.shape[0])
    if rest:
        raise SettingsError(
            f"{x.shape[0]} latent frames do not divide into {memory.shape[0]} videos of equal length; "
            "give every video as many frames"
        )
    return frames


class VideoUNet(UNet3D):
    """ModelScope's UNet, with APM mixers where the configuration has them."""

    def __init__(
        self,
        config: UNet3DConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(config, operations, dtype, device)
        self.config = config
        if config.mixers:
            for _, attn in context_attentions(self):
                add_mixer(attn, config.mixers, config.context_width, operations, dtype, device)

    def project_context(self, context: Tensor, anchor_weight: float = 1.0) -> Tensor:
        """Keys and values for `context`; where there are mixers, that is the text followed by the image tokens.

        `anchor_weight` scales what the mixers add to the text.
        """
        if self.config.mixers is None:
            return super().project_context(context)
        return self._project(lambda attn: mix_context(attn, context, anchor_weight))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call `denoise`; subclasses of hosts have arguments of their own."""
        return self.denoise(*args, **kwargs)

    def denoise(
        self,
        x: Tensor,
        timesteps: Tensor,
        memory: Tensor,
        merge: Merge | None = None,
        compute: Compute | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> Tensor:
        """The prediction for `x` `[b * frames, in_channels, h, w]` at `timesteps` `[b]` (0..999), shape of `x`.

        `memory`: keys and values from `project_context`, one row per video; its rows tell how many frames a video has.
        `merge` sees every skip right before the decoder takes it, and the middle; the down path never sees it. `hooks`
        get what it made.
        """
        frames = frames_of(x, memory)
        self._check_size(x)
        embedding = hooks.embedding(self.embed_timesteps(timesteps, x.dtype).repeat_interleave(frames, dim=0))
        call = Call(frames, embedding, self.keys_and_values(memory), compute or Compute(), hooks)
        skips = Skips(take=merge.skip if merge else None)
        h = self.middle(self.down(self.enter(x, call), call, skips), call)
        return self.up(h if merge is None else merge.middle(h), call, skips)

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        factor = self.config.factor
        if self.config.padded_rows and (height % factor != 2 % factor or width % factor):
            raise SettingsError(
                f"a latent of {width} x {height} does not come back to its size in MS-Vid2Vid: its width must be a "
                f"multiple of {factor} and its height {2 % factor} more than one; in pixels, a multiple of "
                f"{8 * factor} and {16 % (8 * factor)} more than one (1280 x 720 fits)"
            )
