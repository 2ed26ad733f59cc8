"""Stage lvdm_ae: LVDM's 3D autoencoder, on pieces of videos.

It begins as what shrinks and enlarges colors without a loss of its own: a short training then only learns what a small
copy of a video lacks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streaming_core.models.lvdm.autoencoder import VideoAutoencoder
from streaming_core.models.lvdm.config import LATENT_SCALES, VideoAutoencoderConfig

from .configs import DEMO_LVDM_AE
from .diffusion import EXTRA_WEIGHT_OF_MOVING
from .first_weights import PIXEL_SIZE, enter_in_pairs, leave_from_pairs
from .footage import VideoSource
from .layout import CPU, Weights, initialize, silence
from .lvdm_layers import TrainingOperations
from .vae import EDGE_WEIGHT, FIRST_LOG_VARIANCE, KL_WEIGHT, WHOLE_SHARE, crop_around_movement, differences
from .videos import Variety, held_out_videos

GUIDE_WEIGHT = 0.2
"""Of the pull that keeps the first three latent channels a small copy of the video."""
VIDEO_FRAMES = 64
"""Pieces are drawn from so far into a video."""
MEASURED_VIDEOS = 4


@torch.no_grad()
def begin_as_resizer(network: nn.Module) -> None:
    """Set the first weights so that colors pass: shrunk by the mean of each 2x2x2 block, enlarged by repetition.

    Colors enter as pairs of opposite channels, which the norm in front of the encoder's last convolution keeps
    (`first_weights`). Outputs of a convolution whose kernel is 4 and whose stride is 2 see their own block with taps 1
    and 2 of each axis; so do those of a transposed one.
    """
    silence(network, ".conv2.conv")
    encoder, decoder = network.encoder, network.decoder
    enter_in_pairs(encoder.conv_first.conv, 3)
    for block in encoder.conv_blocks:
        weight = block.down.conv.weight
        weight[:6] = 0.0
        for channel in range(6):
            weight[channel, channel, 1:3, 1:3, 1:3] = 1 / 8
    channels = network.quant_conv.conv.weight.shape[0] // 2
    leave_from_pairs(encoder.final_block[2].conv, 3, PIXEL_SIZE)
    encoder.final_block[2].conv.weight[channels:] = 0.0  # log variances
    network.quant_conv.conv.weight.copy_(torch.eye(2 * channels)[:, :, None, None, None])
    network.quant_conv.conv.bias[channels:] = FIRST_LOG_VARIANCE
    network.post_quant_conv.conv.weight.copy_(torch.eye(channels)[:, :, None, None, None])
    for block in decoder.conv_blocks:
        weight = block.up.convt.weight  # [in, out, ...]
        weight[:, :3] = 0.0
        for channel in range(3):
            weight[channel, channel, 1:3, 1:3, 1:3] = 1.0
    nn.init.zeros_(decoder.conv_out.conv.weight)
    for channel in range(3):
        decoder.conv_out.conv.weight[channel, channel, 1, 1, 1] = 1.0


class LvdmAeTask:
    """Absolute error of pixels and of their differences to their neighbors, and a small pull to unit Gaussians."""

    stage = "lvdm_ae"

    def __init__(
        self,
        size: int = 64,
        variety: Variety = "calm",
        batch: int = 4,
        frames: int = 8,
        config: VideoAutoencoderConfig = DEMO_LVDM_AE,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.source, self.batch, self.frames = VideoSource(size, variety), batch, frames
        self.config, self.device = config, device
        network = VideoAutoencoder(config, operations=TrainingOperations)
        self.network = initialize(network, torch.Generator().manual_seed(seed))
        begin_as_resizer(self.network)
        self.network.to(device)

    def settings(self) -> dict[str, Any]:
        return {
            "size": self.source.size, "videos": self.source.variety, "batch": self.batch, "frames": self.frames,
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        whole = float(torch.rand((), generator=generator)) < WHOLE_SHARE
        videos = max(1, self.batch // 4) if whole else self.batch
        starts = range(VIDEO_FRAMES - self.frames + 1)
        pieces = [self.source.draw(generator, self.frames, starts, None).footage for _ in range(videos)]
        if not whole:
            pieces = [crop_around_movement(piece, self.source.size // 2, generator) for piece in pieces]
        video = torch.stack([piece.frames for piece in pieces]).to(self.device).transpose(1, 2) * 2 - 1
        moving = torch.stack([piece.moving for piece in pieces]).to(self.device).transpose(1, 2)
        weight = 1 + EXTRA_WEIGHT_OF_MOVING * moving
        mean, log_variance = self.network.moments(video)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        decoded = self.network.decode(mean + (log_variance / 2).exp() * noise)
        pixels = (weight * (decoded - video).abs()).sum() / (3 * weight.sum())
        edges = sum((differences(decoded, axis) - differences(video, axis)).abs().mean() for axis in (2, 3, 4))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        guide = F.mse_loss(mean[:, :3], F.adaptive_avg_pool3d(video, mean.shape[-3:]))
        return pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl + GUIDE_WEIGHT * guide

    def _held_out(self) -> Tensor:
        """`[videos, 3, 16, H, W]` in -1..1."""
        videos = held_out_videos(MEASURED_VIDEOS, self.source.size, self.source.variety)
        return torch.stack([video.render(0, 16).frames for video in videos]).to(self.device).transpose(1, 2) * 2 - 1

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Peak signal to noise ratio of held-out videos in dB, through posterior means."""
        video = self._held_out()
        decoded = self.network.decode(self.network.moments(video)[0]).clamp(-1, 1)
        return {"psnr": float(-10 * torch.log10(F.mse_loss(decoded, video) / 4))}

    @torch.no_grad()
    def weights(self) -> Weights:
        latents = self.network.moments(self._held_out())[0].transpose(0, 1).flatten(1)
        return scaled_weights(self.network, latents.mean(dim=1), latents.std(dim=1))


def scaled_weights(network: nn.Module, mean: Tensor, size: Tensor) -> Weights:
    """The same autoencoder with latents that the sky preset's scale and shift bring to mean 0 and deviation 1.

    Now they have `mean` and `size` `[C]`. Exact: the convolution of one pixel before the latents changes by what the
    one after them takes back.
    """
    preset = LATENT_SCALES["sky"]
    weights = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    grow = 1 / (preset.scale * size)
    move = -mean * grow - preset.shift
    channels = len(grow)
    quant, bias = weights["quant_conv.conv.weight"], weights["quant_conv.conv.bias"]
    quant[:channels] *= grow.view(-1, 1, 1, 1, 1)
    bias[:channels] = bias[:channels] * grow + move
    bias[channels:] += 2 * grow.log()
    after, offset = weights["post_quant_conv.conv.weight"], weights["post_quant_conv.conv.bias"]
    after /= grow.view(1, -1, 1, 1, 1)
    offset -= after[:, :, 0, 0, 0] @ move
    return weights
