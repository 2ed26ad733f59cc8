"""The CAM branch of StreamingModelscope and its mergers (reference: streamingmodelscope, section 4.3)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import SettingsError
from ..attention import Compute
from ..cam import CamFeatures, CamMerger
from ..layers import Device, Operations, PixelEncoder
from ..unet3d import DownPath
from ..unet3d_layers import Call, Skips
from .config import ModelscopeCamConfig
from .unet import Merge, frames_of


class CamEncoder(DownPath):
    """The down path and middle of the UNet on the first frames of a chunk, plus the pixel encoder (prefix `unet.`).

    Raw features leave the module: there are no zero convolutions. It has no mixers and sees the text alone.
    """

    def __init__(
        self,
        config: ModelscopeCamConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__(config.unet, operations, dtype, device)
        self.controlnet_cond_embedding = PixelEncoder(
            config.pixel_channels, config.unet.channels[0], False, operations, dtype, device
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, memory: Tensor, control_embedding: Tensor, compute: Compute | None = None
    ) -> CamFeatures:
        """Features of the control frames.

        `x` `[b * k, in_channels, h, w]`: the noisy latent's first k frames of each video; `timesteps` `[b]`; `memory`:
        keys and values of the text from `project_context`, one row per video; `control_embedding` from the pixel
        encoder, `[k or b * k, channels, h, w]`.
        """
        batch, frames = memory.shape[0], frames_of(x, memory)
        embedding = self.embed_timesteps(timesteps, x.dtype).repeat_interleave(frames, dim=0)
        call = Call(frames, embedding, self.keys_and_values(memory), compute or Compute())
        if control_embedding.shape[-2:] != x.shape[-2:] or control_embedding.shape[0] not in (frames, batch * frames):
            raise SettingsError(
                f"control frames give features {list(control_embedding.shape)}, the latent needs {frames} frames of "
                f"{x.shape[-1]} x {x.shape[-2]}; control frames must have 8 times the latent's width and height"
            )
        clips = rearrange(self.enter(x, call), "(b k) c h w -> b k c h w", b=batch)
        control = rearrange(control_embedding, "(b k) c h w -> b k c h w", k=frames)
        h = rearrange(clips + control, "b k c h w -> (b k) c h w")
        skips = Skips()
        h = self.down(h, call, skips)
        return CamFeatures([*skips.all()], self.middle(h, call))


class ModelscopeCam(nn.Module):
    """Everything CAM adds to the UNet, under its official names (`unet.` and, without `base_model.`, the mergers)."""

    compute_dtype: torch.dtype = torch.float32
    """What its weights are cast to."""

    def __init__(
        self,
        config: ModelscopeCamConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        self.config = config
        width = config.merger_head_width
        self.unet = CamEncoder(config, operations, dtype, device)
        self.cross_attention_merger_down_blocks = nn.ModuleList(
            CamMerger(channels, width, operations, dtype, device) for channels in config.unet.skip_channels
        )
        self.cross_attention_merger_mid_block = CamMerger(config.unet.channels[-1], width, operations, dtype, device)

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
