"""VAEs for the tiny models: Wan's own class with few channels, and one of plain arithmetic in place of huge ones.

Import the host first (`hosting.inprocess.import_host`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import comfy.ldm.wan.vae
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from tiny_models import native


def wan_vae(dim: int = 8, seed: int = 3) -> comfy.sd.VAE:
    """The host's VAE of Wan 2.1 with `dim` instead of 96 channels and seeded weights."""
    network = comfy.ldm.wan.vae.WanVAE(
        dim=dim,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    native.randomize(network, seed)
    return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


@dataclass
class PlainVae:
    """A causal video VAE in number and size of frames; latents are averages of frames, channels repeat their colors.

    As the host's VAE, `encode` takes `[F, H, W, 3]` and `decode` gives `[1, F, H, W, 3]`.
    """

    latent_channels: int
    frames_per_latent: int
    side: int
    encoded: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    output_device = torch.device("cpu")

    def __post_init__(self) -> None:
        c, side = self.frames_per_latent, self.side
        self.upscale_ratio = (lambda a: max(0, a * c - (c - 1)), side, side)
        self.downscale_ratio = (lambda a: max(0, math.floor((a + c - 1) / c)), side, side)
        module = torch.nn.Linear(1, 1)
        native.randomize(module, self.latent_channels)
        self.patcher = comfy.model_patcher.ModelPatcher(module, mm.get_torch_device(), torch.device("cpu"))

    def spacial_compression_encode(self) -> int:
        return self.side

    def spacial_compression_decode(self) -> int:
        return self.side

    def temporal_compression_decode(self) -> int:
        return self.frames_per_latent

    def encode(self, images: Tensor) -> Tensor:
        self.encoded.append(images.shape[0])
        c = self.frames_per_latent
        count = (images.shape[0] - 1) // c + 1
        small = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), self.side)
        groups = [small[:1]] + [small[1 + k * c : 1 + (k + 1) * c].mean(0, keepdim=True) for k in range(count - 1)]
        colors = torch.cat(groups).movedim(0, 1) * 2 - 1
        repeats = -(-self.latent_channels // 3)
        return colors.repeat(repeats, 1, 1, 1)[None, : self.latent_channels]

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(latents.shape[2])
        colors = latents[:, :3].div(4).sigmoid()
        frames = torch.cat([colors[:, :, :1], colors[:, :, 1:].repeat_interleave(self.frames_per_latent, 2)], 2)
        frames = frames.repeat_interleave(self.side, -1).repeat_interleave(self.side, -2)
        return frames.movedim(1, -1)


def plain_vae(kind: native.Tiny) -> PlainVae:
    """For a tiny model of the host whose frames are not the batch."""
    sizes = {"wan": (4, 8), "ltx": (8, 32), "hunyuan": (4, 8), "cosmos": (8, 8)}
    frames, side = sizes[kind.name.split("_")[0]]
    return PlainVae(kind.channels, frames, side)
