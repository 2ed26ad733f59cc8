"""Stages lvdm_short, lvdm_pred and lvdm_interp: LVDM's UNet for short videos, for prediction and for interpolation.

Long models see condition latents, noised once to a level that a label tells them, in place of some of their latents and
a mask channel that marks those (reference: lvdm, sections 4 and 6.2). What is marked differs from clip to clip as in
the paper: see `Mixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streaming_core.models.lvdm.config import NOISE_LEVELS, LvdmConfig
from streaming_core.models.lvdm.unet import LvdmUNet
from streaming_core.schedules.lvdm import VIDEO_SCHEDULE

from .configs import DEMO_LVDM, DEMO_LVDM_AE, DEMO_LVDM_INTERPOLATION, DEMO_LVDM_PREDICTION
from .diffusion import moving_error, randn, weighted_error
from .first_weights import enter_in_pairs, leave_from_pairs
from .layout import CPU, Weights, initialize, silence
from .lvdm_layers import TrainingOperations
from .lvdm_pool import LatentPool, encoded
from .modelscope_unet import draw_timesteps, nearest_timesteps
from .videos import Variety, held_out_videos

USED_LEVEL = 100
"""The one that videos are made with, and measured."""
MEASURED_VIDEOS = 8
MEASURED_SIGMAS = (1.0, 4.0, 20.0)
KEPT = VIDEO_SCHEDULE.alphas_cumprod()
SIGMAS = ((1 - KEPT) / KEPT).sqrt().float()


@dataclass(frozen=True)
class Mixture:
    """What a stage trains on.

    Attributes:
        network: its UNet.
        frames: latents of a clip.
        stride: latents of a clip are so far apart in the video.
        known: which latents of a clip the condition may be, by position; the last one counts from the end.
        conditional: share of clips that have a condition at all.
    """

    network: LvdmConfig
    frames: int
    stride: int
    known: tuple[int, ...]
    conditional: float


MIXTURES = {
    "lvdm_short": Mixture(DEMO_LVDM, 4, 1, (), 0.0),
    "lvdm_pred": Mixture(DEMO_LVDM_PREDICTION, 4, 4, (0,), 0.5),
    "lvdm_interp": Mixture(DEMO_LVDM_INTERPOLATION, 5, 1, (0, -1), 0.9),
}
"""By stage. Half of the clips of the prediction model and a tenth of those of the interpolation model are free."""


def new_unet(config: LvdmConfig, generator: torch.Generator) -> LvdmUNet:
    """A UNet that begins by taking all it is given for noise: its input, normed.

    Without that path it would spend most of a short training on learning to copy.
    """
    unet = initialize(LvdmUNet(config, operations=TrainingOperations), generator)
    values = config.out_channels
    silence(unet, ".out_layers.3", ".proj_out_s", ".proj_out_t")
    enter_in_pairs(unet.input_blocks[0][0], values)
    nn.init.zeros_(unet.out[2].weight)
    leave_from_pairs(unet.out[2], values)
    shortcut = unet.output_blocks[-1][0].skip_connection
    below = shortcut.in_channels - config.width
    with torch.no_grad():
        for channel in range(2 * values):
            shortcut.weight[channel] = 0.0
            shortcut.weight[channel, below + channel] = 1.0
    return unet


@dataclass(frozen=True)
class Condition:
    """What a clip of `[B, C, T, h, w]` is told of itself.

    `mask` `[B, 1, T, 1, 1]`: 1 where a latent is known; `level` `[B]`: timestep that the known ones are noised to;
    `noise` like the clip.
    """

    mask: Tensor
    level: Tensor
    noise: Tensor

    def shown(self, latents: Tensor) -> Tensor:
        """The known latents as the network sees them."""
        return noised(latents, self.noise, self.level)


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Of unit variance, at `timesteps` `[B]`."""
    kept = KEPT[timesteps].float().to(latents).view(-1, 1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def marks(known: tuple[int, ...], frames: int) -> Tensor:
    """`[T]`: 1 at the known latents."""
    mask = torch.zeros(frames)
    mask[list(known)] = 1.0
    return mask


Predict = Callable[[Tensor, Tensor], Tensor]
"""`(x, timesteps) -> noise`, `x` `[B, C, T, h, w]` of unit variance."""


class LvdmUnetTask:
    """Clips of latents from the pool, with the conditions of the stage.

    The loss counts known latents too, whose noise is that of their level (reference: lvdm, further details). `start`:
    what another run of this stage wrote, to begin with.
    """

    def __init__(
        self,
        stage: str,
        pool: LatentPool,
        autoencoder: nn.Module,
        size: int,
        variety: Variety,
        batch: int,
        stride: int | None = None,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.stage, self.mixture, self.pool = stage, MIXTURES[stage], pool
        self.size, self.variety, self.batch, self.device = size, variety, batch, device
        self.stride = stride or self.mixture.stride
        self.network = new_unet(self.mixture.network, torch.Generator().manual_seed(seed))
        if start is not None:
            self.network.load_state_dict(start)
        self.network.to(device)
        self.autoencoder = autoencoder
        self.measured: LatentPool | None = None

    @property
    def frames(self) -> int:
        return self.mixture.frames

    def settings(self) -> dict[str, Any]:
        return {
            "size": self.size, "videos": self.variety, "batch": self.batch, "stride": self.stride,
            "pool": len(self.pool.latents),
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        """Squared error of the noise, weighted as in `modelscope_unet.noise_loss`."""
        clips = self.pool.draw(generator, self.batch, self.frames, self.stride)
        latents, moving = clips.latents.to(self.device), clips.moving.to(self.device)
        condition = self._condition(latents, generator)
        timesteps = draw_timesteps(self.batch, generator, SIGMAS)
        noise = randn(latents.shape, generator, latents)
        x = noised(latents, noise, timesteps)
        target, sigma = noise, SIGMAS[timesteps].to(latents).view(-1, 1, 1, 1, 1)
        if condition is not None:
            x = torch.where(condition.mask > 0, condition.shown(latents), x)
            target = torch.where(condition.mask > 0, condition.noise, noise)
            sigma = torch.where(condition.mask > 0, 0.0, sigma)
        squared = (1 + sigma**2) * (self._predict(condition)(x, timesteps) - target) ** 2
        return weighted_error(squared.transpose(1, 2), moving.transpose(1, 2))

    def _condition(self, latents: Tensor, generator: torch.Generator) -> Condition | None:
        mixture = self.mixture
        if not mixture.known:
            return None
        has = (torch.rand(len(latents), generator=generator) < mixture.conditional).float()
        mask = has.view(-1, 1, 1, 1, 1) * marks(mixture.known, self.frames).view(1, 1, -1, 1, 1)
        level = torch.randint(NOISE_LEVELS, (len(latents),), generator=generator)
        return Condition(mask.to(latents), level, randn(latents.shape, generator, latents))

    def _predict(self, condition: Condition | None) -> Predict:
        if condition is None:
            return lambda x, timesteps: self.network(x, timesteps.float())

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            mask = condition.mask.expand(-1, -1, -1, *x.shape[-2:])
            return self.network(torch.cat([x, mask], dim=1), timesteps.float(), labels=condition.level)

        return predict

    def _held_out(self) -> LatentPool:
        """Stretches from the beginning of held-out videos."""
        if self.measured is None:
            length = DEMO_LVDM_AE.scales[0] * ((self.frames - 1) * self.stride + 1)
            found = [
                encoded(self.autoencoder, video.render(0, length))
                for video in held_out_videos(MEASURED_VIDEOS, self.size, self.variety)
            ]
            latents = torch.cat([each.latents for each in found])[:, :, :: self.stride]
            moving = torch.cat([each.moving for each in found])[:, :, :: self.stride]
            self.measured = LatentPool(latents.to(self.device), moving.to(self.device))
        return self.measured

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Squared error of the denoised unknown latents where something moves, by noise level; always the same noise.

        `error`: with the condition of the stage, or without where it has none; `free`: without one.
        """
        clips, mixture = self._held_out(), self.mixture
        latents, generator = clips.latents, torch.Generator().manual_seed(0)
        noise = randn(latents.shape, generator, latents)
        mask = marks(mixture.known, self.frames).view(1, 1, -1, 1, 1).expand(len(latents), -1, -1, -1, -1)
        level = torch.full((len(latents),), USED_LEVEL)
        told = Condition(mask.to(latents), level, randn(latents.shape, generator, latents)) if mixture.known else None
        free = Condition(0 * mask.to(latents), level, noise) if mixture.known else None
        errors = {}
        for wanted in MEASURED_SIGMAS:
            timesteps = nearest_timesteps(torch.full((len(latents),), wanted), SIGMAS)
            sigma = SIGMAS[timesteps].view(-1, 1, 1, 1, 1)
            for name, condition in {"error": told, **({"free": free} if free else {})}.items():
                x = noised(latents, noise, timesteps)
                if condition is not None:
                    x = torch.where(condition.mask > 0, condition.shown(latents), x)
                squared = (sigma * (self._predict(condition)(x, timesteps) - noise)) ** 2
                unknown = 1 - mask.to(latents)
                weight = (clips.moving * unknown).transpose(1, 2)
                errors[f"{name}_{wanted:g}"] = moving_error(squared.transpose(1, 2), weight)
        return errors

    def weights(self) -> Weights:
        return {key: tensor.detach() for key, tensor in self.network.state_dict().items()}
