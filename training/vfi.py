"""Stage vfi: EMA-VFI frame interpolation at any time, on videos; needs no other stage.

A step sees pairs of frames up to two video frames apart and the true frame at a random time between them, which videos
can render because every position is a closed formula of time; so is every displacement, and the flow learns from it,
which the published weights had to do without. The network is the pack's own, narrower than the published ones; the file
has their keys (reference: ema-vfi, section 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming_core.models.ema_vfi.attention import InterFrameAttention
from streaming_core.models.ema_vfi.config import EmaVfiConfig
from streaming_core.models.ema_vfi.detect import PREFIX
from streaming_core.models.ema_vfi.layers import PReLU
from streaming_core.models.ema_vfi.network import EmaVfi

from .configs import DEMO_VFI
from .diffusion import EXTRA_WEIGHT_OF_MOVING
from .footage import pick
from .layout import CPU, Weights, silence
from .videos import HELD_OUT, Variety, Video, held_out_videos, make_video

NARROWEST_GAP, WIDEST_GAP = 0.5, 2.0
LAST_START = 64
WHOLE_SHARE = 0.3
"""Share of steps on frames of full size, repaired ones too. The others see four times as many pairs of half the size,
up to the merged frame: motion is learned from many videos, not from many pixels."""
MERGED_WEIGHT = 0.5
FLOW_WEIGHT = 0.5
"""Of a pixel of flow, against a whole step from black to white."""
PYRAMID_LEVELS = 4
COORDINATE_GAIN = 8.0
"""What moves passes about an eighth of a frame, of which -1 to 1 is the whole."""
MEASURED_VIDEOS = 12
MEASURED_GAPS = (1, 2)


@dataclass(frozen=True)
class Triplet:
    """B pairs and what lies between: `first`, `second`, `target` `[B, 3, H, W]` BGR in 0..1; `times` `[B]` in 0..1;
    `moving` `[B, 1, H, W]`, 0 to 1: where something that moves is in any of the three. `flow` `[B, 4, H, W]`: as
    `true_flow` says. `steady` `[B]`: 1, or 0 where something turned round, so that no flow can be right.
    """

    first: Tensor
    second: Tensor
    target: Tensor
    times: Tensor
    moving: Tensor
    flow: Tensor
    steady: Tensor

    @classmethod
    def of(cls, shots: list[tuple[Video, float, float, float]], device: torch.device = CPU) -> Triplet:
        """Each shot is a video, the video time of the first frame, the gap to the second and the share of it."""
        moments = [
            torch.tensor([start, start + gap, start + share * gap], dtype=torch.float64)
            for _, start, gap, share in shots
        ]
        videos = [video for video, *_ in shots]
        footage = [video.at(moment) for video, moment in zip(videos, moments, strict=True)]
        flow = torch.stack([true_flow(video, moment) for video, moment in zip(videos, moments, strict=True)])
        first, second, target = torch.stack([shot.frames for shot in footage], dim=1).flip(2).to(device)
        moving = torch.stack([shot.moving.amax(dim=0) for shot in footage]).to(device)
        times = torch.tensor([share for *_, share in shots], dtype=torch.float32, device=device)
        steady = torch.tensor([float(is_steady(video, moment)) for video, moment in zip(videos, moments, strict=True)])
        return cls(first, second, target, times, moving, flow.to(device), steady.to(device))


def is_steady(video: Video, moments: Tensor) -> bool:
    """Whether every sprite still heads about where it did, so that none has met a wall on the way."""
    headings = [sprite.path.pose(moments).heading for sprite in video.sprites]
    return all(bool(((heading - heading[:1]).cos() > 0.8).all()) for heading in headings)


def true_flow(video: Video, moments: Tensor) -> Tensor:
    """Where each pixel of the frame at `moments[2]` is at `moments[0]` and at `moments[1]`, whether to be seen or not.

    moments `[3]` float64, video time. Result `[4, H, W]`: (x, y) in pixels to the first, then to the second.
    """
    size, target = video.size, moments[2:]
    grid = torch.arange(size, dtype=torch.float64) + 0.5
    pan = torch.tensor(video.background.pan, dtype=torch.float64)
    flow = ((target - moments[:2])[:, None] * pan).view(4, 1, 1).expand(4, size, size)
    for sprite in video.sprites:
        pose = sprite.path.pose(moments)
        cos, sin = pose.heading.cos(), pose.heading.sin()
        dx, dy = grid.view(1, -1) - pose.x[2], grid.view(-1, 1) - pose.y[2]
        ahead, aside = cos[2] * dx + sin[2] * dy, cos[2] * dy - sin[2] * dx
        moved = [
            part
            for end in (0, 1)
            for part in (
                pose.x[end] - pose.x[2] + cos[end] * ahead - sin[end] * aside - dx,
                pose.y[end] - pose.y[2] + sin[end] * ahead + cos[end] * aside - dy,
            )
        ]
        covered, _ = sprite.coverage(target, size)
        flow = torch.where(covered[0] > 0.5, torch.stack(moved), flow)
    return flow.float()


def pyramid(difference: Tensor, levels: int = PYRAMID_LEVELS) -> list[Tensor]:
    """`[B, C, H, W]` split into bands, finest first; the last one is what is left. Linear, so it takes differences."""
    bands = []
    for _ in range(levels - 1):
        coarse = F.avg_pool2d(difference, 2)
        bands.append(difference - F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False))
        difference = coarse
    return [*bands, difference]


def image_loss(image: Tensor, triplet: Triplet) -> Tensor:
    """Mean absolute error over all bands of a pyramid and over pixels, moving places heavier."""
    difference = image - triplet.target
    weight = 1 + EXTRA_WEIGHT_OF_MOVING * triplet.moving
    bands = [difference, *pyramid(difference)]
    return sum((F.adaptive_avg_pool2d(weight, band.shape[-2:]) * band.abs()).mean() for band in bands)


def flow_loss(flow: Tensor, triplet: Triplet) -> Tensor:
    """Mean absolute error in pixels, moving places heavier, of pairs in which nothing turned round."""
    weight = (1 + EXTRA_WEIGHT_OF_MOVING * triplet.moving) * triplet.steady.view(-1, 1, 1, 1)
    return (weight * (flow - triplet.flow).abs()).mean()


def moving_flow_error(flow: Tensor, triplet: Triplet) -> Tensor:
    """Sum of absolute errors over what moves, of pairs in which nothing turned round."""
    return (triplet.steady.view(-1, 1, 1, 1) * triplet.moving * (flow - triplet.flow).abs()).sum()


def new_network(config: EmaVfiConfig, generator: torch.Generator) -> EmaVfi:
    """Starts as the mean of both frames: no flow, an even mask, nothing to repair. Attention starts as likeness."""
    network = EmaVfi(config)
    slope = next(module for module in network.modules() if isinstance(module, PReLU)).weight[0].item()
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:  # norms and slopes have the values that they begin with
                if name.endswith("bias"):
                    parameter.zero_()
                continue
            # Convolutions keep the size of their signal through the slopes, linear layers without.
            gain = 2 / (1 + slope**2) if parameter.ndim == 4 else 1.0
            inputs = parameter[0].numel()
            if name.startswith("unet.up"):  # transposed: a pixel of the result meets a quarter of the kernel
                inputs = parameter.shape[0] * parameter[0, 0].numel() / 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * math.sqrt(gain / inputs))
    for attention in (module for module in network.modules() if isinstance(module, InterFrameAttention)):
        with torch.no_grad():
            attention.kv.weight[: len(attention.q.weight)] = attention.q.weight
            attention.cor_embed.weight *= COORDINATE_GAIN
    silence(network, "conv.2.0", "unet.conv")
    return network


class VfiTask:
    """`batch` pairs of videos `size` pixels squared, `NARROWEST_GAP` to `WIDEST_GAP` frames apart, or four times as
    many of half the size.
    """

    stage = "vfi"

    def __init__(
        self,
        size: int = 128,
        variety: Variety = "narrow",
        batch: int = 4,
        config: EmaVfiConfig = DEMO_VFI,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.size, self.variety, self.batch, self.device = size, variety, batch, device
        self.network = new_network(config, torch.Generator().manual_seed(seed)).to(device)
        self.network.to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "videos": self.variety, "batch": self.batch}

    def loss(self, generator: torch.Generator) -> Tensor:
        whole = float(torch.rand((), generator=generator)) < WHOLE_SHARE
        size, batch = (self.size, self.batch) if whole else (self.size // 2, 4 * self.batch)
        triplet = Triplet.of([self._shot(generator, size) for _ in range(batch)], self.device)
        pair = self.network.pair(self.network.frame(triplet.first), self.network.frame(triplet.second))
        flows = self.network.flows(pair, triplet.times)
        merged = sum(image_loss(flow.merged(), triplet) for flow in flows)
        moved = sum(flow_loss(flow.flow, triplet) for flow in flows)
        loss = MERGED_WEIGHT * merged + FLOW_WEIGHT * moved
        return loss + image_loss(self.network.image(pair, flows[-1]), triplet) if whole else loss

    def _shot(self, generator: torch.Generator, size: int) -> tuple[Video, float, float, float]:
        video = make_video(pick(generator, HELD_OUT), size, self.variety)
        start, gap, share = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        return video, LAST_START * start, NARROWEST_GAP + (WIDEST_GAP - NARROWEST_GAP) * gap, share

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """`psnr_of_middles` of held-out videos, of the network and of what needs none; and `flow`, the error of the
        flow where something moves, as a share of that of no flow.
        """
        network, found = self.network, {}
        middles: dict[str, Callable[[Triplet], Tensor]] = {
            "": lambda triplet: network(triplet.first, triplet.second, triplet.times),
            "blend_": lambda triplet: (triplet.first + triplet.second) / 2,
            "repeat_": lambda triplet: triplet.first,
        }
        for name, middle in middles.items():
            found.update({name + key: value for key, value in self.psnr_of_middles(middle).items()})
        triplet = self._held_out(MEASURED_GAPS[0])
        flow = network.flows(network.pair(network.frame(triplet.first), network.frame(triplet.second)), triplet.times)
        found["flow"] = float(moving_flow_error(flow[-1].flow, triplet) / moving_flow_error(0 * triplet.flow, triplet))
        return found

    def _held_out(self, gap: int) -> Triplet:
        videos = held_out_videos(MEASURED_VIDEOS, self.size, self.variety)
        return Triplet.of([(video, 3.0 * i, gap, 0.5) for i, video in enumerate(videos)], self.device)

    def psnr_of_middles(self, middle: Callable[[Triplet], Tensor]) -> dict[str, float]:
        """Peak signal to noise ratio in dB of the frame half way, by video frames between both: `psnr_GAP` of the whole
        frame, `moving_GAP` of `Triplet.moving`.
        """
        found = {}
        for gap in MEASURED_GAPS:
            triplet = self._held_out(gap)
            square = (middle(triplet) - triplet.target).square().mean(dim=1, keepdim=True)
            errors = {"psnr": square.mean(), "moving": (square * triplet.moving).sum() / triplet.moving.sum()}
            found.update({f"{name}_{gap}": float(-10 * error.log10()) for name, error in errors.items()})
        return found

    def weights(self) -> Weights:
        """Under the published names."""
        return {PREFIX + key: tensor for key, tensor in self.network.state_dict().items()}
