"""Stage vfi: EMA-VFI frame interpolation at any time, on films; needs no other stage.

A step sees pairs of frames up to four film frames apart and the true frame at a random time between them, which films
can render because every position is a closed formula of time; so is every displacement, and the flow is told it, which
the published weights had to do without. The network is the pack's own, narrower than the published ones; the file has
their keys (reference: ema-vfi, section 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming_core.models.ema_vfi.config import EmaVfiConfig, standard_config
from streaming_core.models.ema_vfi.detect import PREFIX
from streaming_core.models.ema_vfi.layers import PReLU
from streaming_core.models.ema_vfi.network import EmaVfi

from .films import HELD_OUT, Film, Variety, make_film
from .footage import pick
from .layout import CPU, Weights, silence

DEMO_VFI = standard_config(8, (2, 2, 2, 2, 2))
"""Half as wide as `ours_small`: 7.3 MB as float16."""
WIDEST_GAP = 4.0
LAST_START = 64
EXTRA_WEIGHT_OF_MOVING = 3.0
MERGED_WEIGHT = 0.5
FLOW_WEIGHT = 0.05
"""Of a pixel of flow, against a whole step from black to white."""
PYRAMID_LEVELS = 4
MEASURED_FILMS = 12
MEASURED_GAPS = (1, 2, 4)


@dataclass(frozen=True)
class Triplet:
    """B pairs and what lies between: `first`, `second`, `target` `[B, 3, H, W]` BGR in 0..1; `times` `[B]` in 0..1;
    `moving` `[B, 1, H, W]`, 0 to 1: where something that moves is in any of the three. `flow` `[B, 4, H, W]`: as
    `true_flow` says.
    """

    first: Tensor
    second: Tensor
    target: Tensor
    times: Tensor
    moving: Tensor
    flow: Tensor

    @classmethod
    def of(cls, shots: list[tuple[Film, float, float, float]], device: torch.device = CPU) -> Triplet:
        """Each shot is a film, the film time of the first frame, the gap to the second and the share of it."""
        moments = [
            torch.tensor([start, start + gap, start + share * gap], dtype=torch.float64)
            for _, start, gap, share in shots
        ]
        films = [film for film, *_ in shots]
        footage = [film.at(moment) for film, moment in zip(films, moments, strict=True)]
        flow = torch.stack([true_flow(film, moment) for film, moment in zip(films, moments, strict=True)])
        first, second, target = torch.stack([shot.frames for shot in footage], dim=1).flip(2).to(device)
        moving = torch.stack([shot.moving.amax(dim=0) for shot in footage]).to(device)
        times = torch.tensor([share for *_, share in shots], dtype=torch.float32, device=device)
        return cls(first, second, target, times, moving, flow.to(device))


def true_flow(film: Film, moments: Tensor) -> Tensor:
    """Where each pixel of the frame at `moments[2]` is at `moments[0]` and at `moments[1]`, whether to be seen or not.

    moments `[3]` float64, film time. Result `[4, H, W]`: (x, y) in pixels to the first, then to the second.
    """
    size, target = film.size, moments[2:]
    grid = torch.arange(size, dtype=torch.float64) + 0.5
    pan = torch.tensor(film.background.pan, dtype=torch.float64)
    flow = ((target - moments[:2])[:, None] * pan).view(4, 1, 1).expand(4, size, size)
    for sprite in film.sprites:
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


def picture_loss(picture: Tensor, triplet: Triplet) -> Tensor:
    """Mean absolute error over all bands of a pyramid and over pixels, moving places heavier."""
    difference = picture - triplet.target
    weight = 1 + EXTRA_WEIGHT_OF_MOVING * triplet.moving
    bands = [difference, *pyramid(difference)]
    return sum((F.adaptive_avg_pool2d(weight, band.shape[-2:]) * band.abs()).mean() for band in bands)


def flow_loss(flow: Tensor, triplet: Triplet) -> Tensor:
    """Mean absolute error in pixels, moving places heavier."""
    weight = 1 + EXTRA_WEIGHT_OF_MOVING * triplet.moving
    return (weight * (flow - triplet.flow).abs()).mean()


def new_network(config: EmaVfiConfig, generator: torch.Generator) -> EmaVfi:
    """Starts as the plain mean of both frames: no flow, an even mask, nothing to repair."""
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
    silence(network, "conv.2.0", "unet.conv")
    return network


class VfiTask:
    """`batch` pairs of films `size` pixels squared, at most `WIDEST_GAP` film frames apart."""

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

    def settings(self) -> dict:
        return {"size": self.size, "films": self.variety, "batch": self.batch}

    def loss(self, generator: torch.Generator) -> Tensor:
        triplet = Triplet.of([self._shot(generator) for _ in range(self.batch)], self.device)
        pair = self.network.pair(self.network.frame(triplet.first), self.network.frame(triplet.second))
        flows = self.network.flows(pair, triplet.times)
        merged = sum(picture_loss(flow.merged(), triplet) for flow in flows)
        moved = sum(flow_loss(flow.flow, triplet) for flow in flows)
        final = picture_loss(self.network.picture(pair, flows[-1]), triplet)
        return final + MERGED_WEIGHT * merged + FLOW_WEIGHT * moved

    def _shot(self, generator: torch.Generator) -> tuple[Film, float, float, float]:
        film = make_film(pick(generator, HELD_OUT), self.size, self.variety)
        start, gap, share = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        return film, LAST_START * start, 0.5 + (WIDEST_GAP - 0.5) * gap, share

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """`psnr_of_middles` of held-out films, of the network and of what needs none."""
        network, found = self.network, {}
        middles: dict[str, Callable[[Triplet], Tensor]] = {
            "": lambda triplet: network(triplet.first, triplet.second, triplet.times),
            "blend_": lambda triplet: (triplet.first + triplet.second) / 2,
            "repeat_": lambda triplet: triplet.first,
        }
        for name, middle in middles.items():
            found.update({name + key: value for key, value in self.psnr_of_middles(middle).items()})
        return found

    def psnr_of_middles(self, middle: Callable[[Triplet], Tensor]) -> dict[str, float]:
        """Peak signal to noise ratio in dB of the frame half way, by film frames between both: `psnr_GAP` of the whole
        frame, `moving_GAP` of `Triplet.moving`.
        """
        found = {}
        for gap in MEASURED_GAPS:
            films = [make_film(HELD_OUT + i, self.size, self.variety) for i in range(MEASURED_FILMS)]
            triplet = Triplet.of([(film, 3.0 * i, gap, 0.5) for i, film in enumerate(films)], self.device)
            square = (middle(triplet) - triplet.target).square().mean(dim=1, keepdim=True)
            errors = {"psnr": square.mean(), "moving": (square * triplet.moving).sum() / triplet.moving.sum()}
            found.update({f"{name}_{gap}": float(-10 * error.log10()) for name, error in errors.items()})
        return found

    def weights(self) -> Weights:
        """Under the published names."""
        return {PREFIX + key: tensor for key, tensor in self.network.state_dict().items()}
