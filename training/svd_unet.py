"""Stage unet: SVD's video UNet, image to video: a clip from its first frame."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streaming_core.models.streamingsvd.config import VideoUNetConfig

from .configs import DEMO_SVD
from .diffusion import Batch, Encoder, drop_conditions, moving_errors, v_loss
from .footage import clip_of
from .layout import CPU, LATENT_SCALE, Base, Weights, build_unet, fold_concat, initialize, run_unet, silence
from .task import Clips

MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (1.0, 3.0, 10.0, 50.0)


def new_unet(config: VideoUNetConfig, generator: torch.Generator) -> nn.Module:
    """A UNet whose every block starts as the identity."""
    unet = initialize(build_unet(config, CPU), generator)
    silence(unet, ".proj_out", ".out_layers.3", "out.2")
    return unet


class SvdUnetTask:
    """Clips of which the first frame is given. `base` holds VAE and image tower.

    `start`: what another run of this stage wrote, to begin with.
    """

    stage = "unet"

    def __init__(
        self,
        base: Base,
        clips: Clips,
        config: VideoUNetConfig = DEMO_SVD.cam.unet,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.clips, self.source, self.starts = clips, clips.source, clips.starts(clips.frames)
        self.network = new_unet(config, torch.Generator().manual_seed(seed))
        if start is not None:
            self.network.load_state_dict(fold_concat(start, 1 / LATENT_SCALE))
        self.encoder = Encoder(base.vae(device), base.clip_vision(), config.vector_width, device)
        self.network.to(device)
        self.measured: Batch | None = None

    def settings(self) -> dict[str, Any]:
        return self.clips.settings()

    def loss(self, generator: torch.Generator) -> Tensor:
        clips = [self.source.draw(generator, self.clips.frames, self.starts, None) for _ in range(self.clips.batch)]
        batch = drop_conditions(self.encoder.batch(clips, generator), generator)
        return v_loss(partial(run_unet, self.network), batch, generator)

    def measure(self) -> dict[str, float]:
        """`moving_errors` of held-out videos by noise level."""
        if self.measured is None:
            clips = [clip_of(video, self.clips.frames, 0, None) for video in self.clips.held_out(MEASURED_VIDEOS)]
            self.measured = self.encoder.batch(clips, torch.Generator().manual_seed(0))
        network, errors = partial(run_unet, self.network), {}
        for sigma in MEASURED_SIGMAS:
            errors.update(moving_errors(network, self.measured, sigma, {"error": slice(None)}))
        return errors

    def weights(self) -> Weights:
        return fold_concat(self.network.state_dict(), LATENT_SCALE)
