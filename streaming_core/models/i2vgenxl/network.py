"""I2VGen-XL's network: the shared 3-D UNet, conditioned on an image and a frame rate (reference: enhancer, section 9).

Sub-modules have the names of the published keys. Widths below that are not in the configuration are the same at every
size of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention, Compute, attend
from ..layers import Device, FeedForward, Operations, sinusoid
from ..unet3d import UNet3D, context_attentions
from ..unet3d_attention import SelfAttention
from ..unet3d_hooks import NO_HOOKS, Hooks
from ..unet3d_layers import Call, Skips
from .detect import I2VGenXLConfig

SkipsOf = Callable[[Tensor], Skips]
"""Makes the store of one pass; it is given the pass's input."""

IMAGE_GRID = 32
"""Side of the grid that the image's latents are averaged to before they become tokens, a sixteenth as many."""
IMAGE_ENCODER_HEADS = 2


def position_ramp(first: Tensor, num_frames: int) -> Tensor:
    """Image latents of a video: the encoded image in frame 0, constant planes of k/(F-1) in frame k.

    `first` `[rows, C, h, w]`, result `[rows, C, num_frames, h, w]` (reference: enhancer, section 2).
    """
    frames = first.unsqueeze(2).repeat(1, 1, num_frames, 1, 1)
    for frame in range(1, num_frames):
        frames[:, :, frame] = frame / (num_frames - 1)
    return frames


def skips_in_system_memory(sample: Tensor) -> Skips:
    """Skips that wait in system memory until the decoder takes them, one at a time."""
    return Skips(put=lambda skip: skip.to("cpu"), take=lambda _, stored: stored.to(sample.device))


class ImageEncoder(nn.Module):
    """Attention of every pixel of the image's latents over the frames, and a feed-forward without a norm before it."""

    def __init__(
        self,
        channels: int,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.norm1 = operations.LayerNorm(channels, dtype=dtype, device=device)
        self.attn1 = SelfAttention(
            channels, channels, None, operations, dtype, device, inner_width=IMAGE_ENCODER_HEADS * channels
        )
        self.ff = FeedForward(channels, operations, dtype, device, gated=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `[pixels, frames, channels]`; the shape stays."""
        # Heads are as narrow as the latents have channels, which fused kernels of hosts need not take.
        x = x + self.attn1.attend(self.norm1(x), attend)
        return x + self.ff(x)


class I2VGenXL(UNet3D):
    """Noisy latents, an image and a frame rate to v."""

    def __init__(
        self,
        config: I2VGenXLConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(config.sizes, operations, dtype, device)
        self.config = config
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        channels, width, embedding = config.latent_channels, config.cross_attention_dim, self.sizes.embedding_width

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            return operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **options)

        def linear(inputs: int, outputs: int) -> nn.Module:
            return operations.Linear(inputs, outputs, **options)

        wide = 4 * channels
        self.image_latents_proj_in = nn.Sequential(
            conv(channels, wide), nn.SiLU(), conv(wide, wide), nn.SiLU(), conv(wide, channels)
        )
        self.image_latents_temporal_encoder = ImageEncoder(channels, operations, dtype, device)
        self.image_latents_context_embedding = nn.Sequential(
            conv(channels, 8 * channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(IMAGE_GRID),
            conv(8 * channels, 16 * channels, stride=2),
            nn.SiLU(),
            conv(16 * channels, width, stride=2),
        )
        self.context_embedding = nn.Sequential(linear(width, embedding), nn.SiLU(), linear(embedding, channels * width))
        self.fps_embedding = nn.Sequential(
            linear(self.sizes.channels[0], embedding), nn.SiLU(), linear(embedding, embedding)
        )

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
        skips_of: SkipsOf | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> Tensor:
        """v-prediction of a video, `[rows, C, F, h, w]` like `sample`; one row per guidance branch.

        `timestep` and `fps` `[rows]`; `context` `[rows, tokens, width]`; `image_latents` of all frames (see
        `position_ramp`); `image_embeddings` `[rows, 1, width]`. `frugal` runs row after row and keeps skips in
        system memory, or where `skips_of` keeps them; the result is the same. `hooks` see each of these passes.
        """
        inputs = (sample, timestep, context, image_latents, image_embeddings, fps)
        if not frugal:
            return self._rows(inputs, attention, skips_of or (lambda _: Skips()), hooks)
        store = skips_of or skips_in_system_memory
        rows = ([part[row : row + 1] for part in inputs] for row in range(len(sample)))
        return torch.cat([self._rows(row, attention, store, hooks) for row in rows])

    def _rows(self, inputs: Sequence[Tensor], attention: Attention, skips_of: SkipsOf, hooks: Hooks) -> Tensor:
        sample, timestep, context, image_latents, image_embeddings, fps = inputs
        frames = sample.shape[2]
        rate = self.fps_embedding(sinusoid(fps, self.sizes.channels[0]).to(sample.dtype))
        level = self.embed_timesteps(timestep, sample.dtype).repeat_interleave(frames, dim=0)
        embedding = hooks.embedding(level) + rate.repeat_interleave(frames, dim=0)
        tokens = self._tokens(context, image_latents[:, :, 0], image_embeddings)
        memory = (attn.project(tokens) for _, attn in context_attentions(self))
        call = Call(frames, embedding, memory, Compute(attention), hooks)
        x = torch.cat([sample, self._image_features(image_latents)], dim=1)
        h, skips = self.enter(rearrange(x, "b c f h w -> (b f) c h w"), call), skips_of(sample)
        del x
        h = self.middle(self.down(h, call, skips), call)
        return rearrange(self.up(h, call, skips), "(b f) c h w -> b c f h w", f=frames)

    def _tokens(self, text: Tensor, image_latent: Tensor, image_embeddings: Tensor) -> Tensor:
        """Context `[rows, tokens, width]`: text, then the image's latents `[rows, C, h, w]`, then its embedding."""
        from_latents = rearrange(self.image_latents_context_embedding(image_latent), "b c h w -> b (h w) c")
        from_clip = self.context_embedding(image_embeddings)
        from_clip = rearrange(from_clip, "b 1 (t c) -> b t c", c=text.shape[-1])
        return torch.cat([text, from_latents, from_clip], dim=1)

    def _image_features(self, image_latents: Tensor) -> Tensor:
        """What joins the noisy latents: `image_latents` `[rows, C, F, h, w]` encoded, the same shape."""
        rows, _, _, height, width = image_latents.shape
        planes = self.image_latents_proj_in(rearrange(image_latents, "b c f h w -> (b f) c h w"))
        pixels = self.image_latents_temporal_encoder(rearrange(planes, "(b f) c h w -> (b h w) f c", b=rows))
        return rearrange(pixels, "(b h w) f c -> b c f h w", h=height, w=width)


def build(
    config: I2VGenXLConfig,
    *,
    operations: Operations = nn,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> I2VGenXL:
    """The network with weights yet to be loaded, in evaluation mode, without gradients."""
    return I2VGenXL(config, operations, dtype, device).requires_grad_(False).eval()
