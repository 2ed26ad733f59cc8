"""The CAM branch of StreamingModelscope and its mergers (reference: streamingmodelscope, section 4.3)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...errors import SettingsError
from ..attention import Compute
from ..cam import CamFeatures, CamMerger
from .config import ModelscopeCamConfig
from .unet import DownPath, Merge


class PixelEncoder(nn.Module):
    """Control frames `[n, 3, H, W]` in [-1, 1] to `[n, out_channels, H/8, W/8]`; SiLU behind all but the last."""

    def __init__(self, channels: tuple[int, ...], out_channels: int, operations=nn, dtype=None, device=None):
        super().__init__()
        options = {"padding": 1, "dtype": dtype, "device": device}
        self.conv_in = operations.Conv2d(3, channels[0], 3, **options)
        blocks = []
        for narrow, wide in pairwise(channels):
            blocks.append(operations.Conv2d(narrow, narrow, 3, **options))
            blocks.append(operations.Conv2d(narrow, wide, 3, stride=2, **options))
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = operations.Conv2d(channels[-1], out_channels, 3, **options)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.silu(self.conv_in(frames))
        for conv in self.blocks:
            x = F.silu(conv(x))
        return self.conv_out(x)


class CamEncoder(DownPath):
    """The down path and middle of the UNet on the first frames of a chunk, plus the pixel encoder (prefix `unet.`).

    Raw features leave the module: there are no zero convolutions. It has no mixers and sees the text alone.
    """

    def __init__(self, config: ModelscopeCamConfig, operations=nn, dtype=None, device=None):
        super().__init__(config.unet, (), operations, dtype, device)
        self.controlnet_cond_embedding = PixelEncoder(
            config.pixel_channels, config.unet.channels[0], operations, dtype, device
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, memory: Tensor, control_embedding: Tensor, compute: Compute | None = None
    ) -> CamFeatures:
        """Features of the control frames.

        `x` `[b * k, in_channels, h, w]`: the noisy latent's first k frames of each video; `timesteps` `[b]`; `memory`:
        keys and values of the text from `project_context`, one row per video; `control_embedding` from the pixel
        encoder, `[k or b * k, channels, h, w]`.
        """
        batch = memory.shape[0]
        frames = x.shape[0] // batch
        arguments = self._arguments(memory, compute or Compute())
        embedding = self._embed_timesteps(timesteps, frames, x.dtype)
        if control_embedding.shape[-2:] != x.shape[-2:] or control_embedding.shape[0] not in (frames, batch * frames):
            raise SettingsError(
                f"control frames give features {list(control_embedding.shape)}, the latent needs {frames} frames of "
                f"{x.shape[-1]} x {x.shape[-2]}; control frames must have 8 times the latent's width and height"
            )
        clips = rearrange(self._enter(x, frames, arguments), "(b k) c h w -> b k c h w", b=batch)
        control = rearrange(control_embedding, "(b k) c h w -> b k c h w", k=frames)
        h = rearrange(clips + control, "b k c h w -> (b k) c h w")
        skips = self._down(h, embedding, frames, arguments)
        return CamFeatures(list(skips), self._middle(skips[-1], embedding, frames, arguments))


class ModelscopeCam(nn.Module):
    """Everything CAM adds to the UNet, under its official names (`unet.` and, without `base_model.`, the mergers)."""

    def __init__(self, config: ModelscopeCamConfig, operations=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        ours = {"operations": operations, "dtype": dtype, "device": device}
        self.unet = CamEncoder(config, **ours)
        self.cross_attention_merger_down_blocks = nn.ModuleList(
            CamMerger(channels, config.merger_head_width, **ours) for channels in config.unet.skip_channels
        )
        self.cross_attention_merger_mid_block = CamMerger(config.unet.channels[-1], config.merger_head_width, **ours)

    def encode_pixels(self, control_frames: Tensor) -> Tensor:
        """Control frames `[k, 3, H, W]` in [-1, 1] to their embedding `[k, channels, H/8, W/8]`."""
        return self.unet.controlnet_cond_embedding(control_frames)

    def merging(self, features: CamFeatures, frames: int, compute: Compute | None = None) -> Merge:
        """What a UNet call over videos of `frames` frames needs; every feature is freed once it has been merged."""
        compute = compute or Compute()

        def skip(index: int, h: Tensor) -> Tensor:
            feature, features.skips[index] = features.skips[index], None
            return self.cross_attention_merger_down_blocks[index](h, feature, frames, compute)

        def middle(h: Tensor) -> Tensor:
            feature, features.middle = features.middle, None
            return self.cross_attention_merger_mid_block(h, feature, frames, compute)

        return Merge(skip, middle)
