"""DropletVideo's transformer (reference: dropletvideo, sections 4 and 5).

Sub-modules have the names of the published keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import FrameError, SettingsError
from ..attention import Compute
from ..layers import Device, Operations, sinusoid
from .blocks import Block, Embedding, FinalNorm
from .config import SPATIAL_SCALE, DropletConfig
from .rotary import rotary_table


class PatchEmbedding(nn.Module):
    """Latents and text to tokens."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        patch, width = config.patch, config.width
        self.proj = operations.Conv2d(
            config.in_channels, width, patch, stride=patch, bias=True, dtype=dtype, device=device
        )
        self.text_proj = operations.Linear(config.text_width, width, dtype=dtype, device=device)

    def forward(self, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """`latents` `[B, F, C, h, w]` to tokens ordered frame, row, column; `text` `[B, m, text_width]` to tokens."""
        patches = self.proj(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return patches.movedim(2, -1).flatten(1, 3), self.text_proj(text)


class DropletVideo(nn.Module):
    """Noisy latents, what is known of the video, a text and a frame rate to v."""

    def __init__(
        self,
        config: DropletConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.config = config
        self.patch_embed = PatchEmbedding(config, **options)
        self.time_embedding = Embedding(config.width, config.embedding_width, **options)
        self.fps_embedding = Embedding(config.width, config.embedding_width, **options)
        self.transformer_blocks = nn.ModuleList(Block(config, **options) for _ in range(config.layers))
        self.norm_final = operations.LayerNorm(config.width, eps=config.norm_eps, dtype=dtype, device=device)
        self.norm_out = FinalNorm(config, **options)
        out = config.out_channels * config.patch**2
        self.proj_out = operations.Linear(config.width, out, dtype=dtype, device=device)

    def embed(self, timesteps: Tensor, fps: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedding `[B, embedding_width]` that modulates every norm.

        Args:
            timesteps: `[B]`, 0 to 999.
            fps: `[1]` or `[B]`, any number; lower means stronger motion (reference: dropletvideo, section 5).
            dtype: what the layers compute in. Sinusoids are always made in float32.

        Raises:
            SettingsError: another number of frame rates.
        """
        if fps.shape not in ((1,), timesteps.shape):
            raise SettingsError(
                f"{len(timesteps)} videos take one FPS value, or one each; got a tensor of shape {list(fps.shape)}"
            )
        width = self.config.width
        noise_level = self.time_embedding(sinusoid(timesteps, width).to(dtype))
        return noise_level + self.fps_embedding(sinusoid(fps, width).to(dtype))

    def forward(
        self,
        latents: Tensor,
        inpaint: Tensor,
        timesteps: Tensor,
        text: Tensor,
        fps: Tensor,
        compute: Compute | None = None,
    ) -> Tensor:
        """v, `[B, F, out_channels, h, w]`.

        Args:
            latents: noisy ones, `[B, F, out_channels, h, w]`; h and w are multiples of the patch.
            inpaint: the mask and the latents of the known frames, `[B, F, out_channels + 1, h, w]` (`conditioning.py`).
            timesteps: `[B]`, 0 to 999.
            text: encoded tokens `[B, m, text_width]`; all of them count, padding too.
            fps: `[1]` or `[B]`.
            compute: kernels; default torch's own.

        Raises:
            FrameError: a size that patches do not fill, or known frames of another size or length.
            SettingsError: neither one frame rate nor one per video.
        """
        compute = compute or Compute()
        patch = self.config.patch
        frames, height, width = latents.shape[1], *latents.shape[-2:]
        if height % patch or width % patch:
            unit = patch * SPATIAL_SCALE
            raise FrameError(
                f"DropletVideo works in blocks of {unit} pixels, and {width * SPATIAL_SCALE}x{height * SPATIAL_SCALE} "
                f"is not made of them; use multiples of {unit} for width and height"
            )
        if inpaint.shape != (len(latents), frames, self.config.in_channels - latents.shape[2], height, width):
            raise FrameError(
                f"known frames of shape {list(inpaint.shape)} do not belong to noisy latents of shape "
                f"{list(latents.shape)}; encode them for the same size and length"
            )
        rows, columns = height // patch, width // patch
        cos, sin = rotary_table(frames, rows, columns, self.config.head_width)
        rotary = cos.to(latents.device), sin.to(latents.device)
        embedding = self.embed(timesteps, fps, latents.dtype)
        video, words = self.patch_embed(torch.cat([latents, inpaint], dim=2), text)
        for block in self.transformer_blocks:
            video, words = block(video, words, embedding, rotary, compute)
        out = self.proj_out(self.norm_out(self.norm_final(video), embedding))
        # The last axis is ordered channel, row in the patch, column in the patch.
        out = out.reshape(-1, frames, rows, columns, self.config.out_channels, patch, patch)
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, frames, self.config.out_channels, height, width)
