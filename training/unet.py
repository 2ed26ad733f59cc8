"""Stage 2: the video UNet, image to video: a clip from its first frame."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from streaming_core.models.streamingsvd.config import VideoUNetConfig

from .configs import DEMO_SVD
from .diffusion import Batch, Encoder, drop_conditions, moving_errors, v_loss
from .footage import VideoPool, VideoSource, clip_of
from .layout import CPU, LATENT_SCALE, Base, Weights, build_unet, fold_concat, initialize, run_unet, silence
from .videos import HELD_OUT, Variety, make_video

MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (1.0, 3.0, 10.0, 50.0)


def new_unet(config: VideoUNetConfig, generator: torch.Generator) -> nn.Module:
    """A UNet whose every block starts as the identity."""
    unet = initialize(build_unet(config, CPU), generator)
    silence(unet, ".proj_out", ".out_layers.3", "out.2")
    return unet


class UnetTask:
    """Clips of `frames` frames of videos, the first one given. `base` holds VAE and image tower.

    With a `pool` clips start at any frame of its videos. `start`: what another run of this stage wrote, to begin with.
    """

    stage = "unet"

    def __init__(
        self,
        base: Base,
        size: int = 96,
        variety: Variety = "narrow",
        pool: VideoPool | None = None,
        batch: int = 3,
        frames: int = 8,
        config: VideoUNetConfig = DEMO_SVD.cam.unet,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.source, self.batch, self.frames = VideoSource(size, variety, pool), batch, frames
        self.starts = range(pool.num_frames - frames + 1) if pool else (0,)
        self.network = new_unet(config, torch.Generator().manual_seed(seed))
        if start is not None:
            self.network.load_state_dict(fold_concat(start, 1 / LATENT_SCALE))
        self.encoder = Encoder(base.vae(device), base.clip_vision(), config.vector_width, device)
        self.network.to(device)
        self.measured: Batch | None = None

    def settings(self) -> dict:
        return {
            "size": self.source.size, "videos": self.source.variety, "batch": self.batch, "frames": self.frames,
            "pool": self.source.pool.num_videos if self.source.pool else 0,
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        clips = [self.source.draw(generator, self.frames, self.starts, None) for _ in range(self.batch)]
        batch = drop_conditions(self.encoder.batch(clips, generator), generator)
        return v_loss(partial(run_unet, self.network), batch, generator)

    def measure(self) -> dict[str, float]:
        """`moving_errors` of held-out videos by noise level."""
        if self.measured is None:
            videos = [make_video(HELD_OUT + i, self.source.size, self.source.variety) for i in range(MEASURED_VIDEOS)]
            clips = [clip_of(video, self.frames, 0, None) for video in videos]
            self.measured = self.encoder.batch(clips, torch.Generator().manual_seed(0))
        network, errors = partial(run_unet, self.network), {}
        for sigma in MEASURED_SIGMAS:
            errors.update(moving_errors(network, self.measured, sigma, {"error": slice(None)}))
        return errors

    def weights(self) -> Weights:
        return fold_concat(self.network.state_dict(), LATENT_SCALE)
