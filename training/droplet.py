"""Stage droplet: DropletVideo's transformer, on clips at many frame rates of which the first frames are known.

What is predicted is v on the published levels, the last of which holds no signal, as the pack's MODEL samples it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streaming_core.models.dropletvideo.config import DropletConfig
from streaming_core.models.dropletvideo.network import DropletVideo
from streaming_core.schedules.dropletvideo import DEFAULT_SCHEDULE

from .configs import DEMO_DROPLET, DEMO_MODELSCOPE
from .diffusion import moving_error, randn, weighted_error
from .droplet_pool import DropletClips, encoded
from .droplet_videos import TimedClip
from .layout import CPU, Weights, initialize
from .modelscope_towers import Prompts
from .videos import Variety, held_out_videos

UNKNOWN_SHARE = 0.1
"""Share of clips of which no frame is known: from text to video."""
UNPROMPTED_SHARE = 0.15
MEASURED_FPS = (4.0, 8.0, 16.0, 32.0)
MEASURED_VIDEOS = 2
MEASURED_LEVELS = (400, 700, 999)
WRONG_FPS = 11.3
"""What every measured clip is said to run at for the comparison: the middle, so that the number tells nothing."""
LEVELS = DEFAULT_SCHEDULE.alphas_cumprod()


@dataclass(frozen=True)
class Batch:
    """B clips on the training device; latents and inpaint as in `DropletClips`, in float32."""

    latents: Tensor
    inpaint: Tensor
    moving: Tensor
    text: Tensor
    fps: Tensor


def new_transformer(config: DropletConfig, generator: torch.Generator) -> DropletVideo:
    """Every block begins as the identity, and the answer as nothing."""
    network = initialize(DropletVideo(config), generator)
    silent: list[nn.Module] = [network.norm_out.linear, network.proj_out]
    for block in network.transformer_blocks:
        silent += [block.norm1.linear, block.norm2.linear]
    for layer in silent:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return network


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees, and v; all `[B, F, C, h, w]`, timesteps `[B]`."""
    signal = LEVELS[timesteps].to(latents).view(-1, 1, 1, 1, 1)
    kept, added = signal.sqrt(), (1 - signal).sqrt()
    return kept * latents + added * noise, kept * noise - added * latents


class DropletTask:
    """Squared error of v, four times as heavy where something moves, at levels drawn uniformly."""

    stage = "droplet"

    def __init__(
        self,
        vae: nn.Module,
        clips: DropletClips,
        size: int = 64,
        variety: Variety = "narrow",
        batch: int = 16,
        config: DropletConfig = DEMO_DROPLET,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.clips, self.size, self.variety, self.batch, self.device = clips, size, variety, batch, device
        self.vae = vae
        self.network = new_transformer(config, torch.Generator().manual_seed(seed)).to(device)
        if start is not None:
            self.network.load_state_dict({key: tensor.float() for key, tensor in start.items()})
        self.prompts = Prompts(DEMO_MODELSCOPE.text_encoder, device)
        self.measured: Batch | None = None

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "videos": self.variety, "batch": self.batch, "pool": len(self.clips)}

    def loss(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.clips), (self.batch,), generator=generator)
        known = torch.rand(self.batch, generator=generator) >= UNKNOWN_SHARE
        prompted = torch.rand(self.batch, generator=generator) >= UNPROMPTED_SHARE
        timed = [self.clips.timed(index, self.size, self.variety) for index in chosen.tolist()]
        captions = [clip.caption if has else "" for clip, has in zip(timed, prompted.tolist(), strict=True)]
        batch = self._batch(self.clips, chosen, captions, known)
        timesteps = torch.randint(len(LEVELS), (self.batch,), generator=generator)
        x, v = noised(batch.latents, randn(batch.latents.shape, generator, batch.latents), timesteps)
        return weighted_error((self._predict(batch, x, timesteps, batch.fps) - v) ** 2, batch.moving)

    def _batch(self, clips: DropletClips, chosen: Tensor, captions: list[str], known: Tensor) -> Batch:
        return Batch(
            clips.latents[chosen].float().to(self.device),
            (clips.inpaint[chosen].float() * known.view(-1, 1, 1, 1, 1)).to(self.device),
            (clips.moving[chosen].float() / 255).to(self.device),
            torch.cat([self.prompts(caption) for caption in captions]),
            clips.numbers[chosen, 1].float().to(self.device),
        )

    def _predict(self, batch: Batch, x: Tensor, timesteps: Tensor, fps: Tensor) -> Tensor:
        return self.network(x, batch.inpaint, timesteps.to(self.device), batch.text, fps)

    def _held_out(self) -> Batch:
        if self.measured is None:
            timed = [
                TimedClip(video, fps, 0)
                for video in held_out_videos(MEASURED_VIDEOS, self.size, self.variety)
                for fps in MEASURED_FPS
            ]
            frames = 4 * (self.clips.latents.shape[1] - 1) + 1
            clips = encoded(self.vae, timed, [(1, 0)] * len(timed), frames, self.device)
            everything = torch.ones(len(timed), dtype=torch.bool)
            captions = [clip.caption for clip in timed]
            self.measured = self._batch(clips, torch.arange(len(timed)), captions, everything)
        return self.measured

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Squared error of the denoised latents where something moves, of held-out clips with one known frame.

        `error` with their own frame rates, `wrong` with one for all; by level.
        """
        batch, found = self._held_out(), {}
        noise = randn(batch.latents.shape, torch.Generator().manual_seed(0), batch.latents)
        for level in MEASURED_LEVELS:
            timesteps = torch.full((len(noise),), level)
            signal = LEVELS[level].to(noise)
            x, _ = noised(batch.latents, noise, timesteps)
            for name, fps in (("error", batch.fps), ("wrong", torch.full_like(batch.fps, WRONG_FPS))):
                v = self._predict(batch, x, timesteps, fps)
                denoised = signal.sqrt() * x - (1 - signal).sqrt() * v
                found[f"{name}_{level}"] = moving_error((denoised - batch.latents) ** 2, batch.moving)
        return found

    def weights(self) -> Weights:
        return {key: tensor.detach() for key, tensor in self.network.state_dict().items()}
