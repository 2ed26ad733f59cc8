"""Stage cam: StreamingSVD's CAM, which lets a trained video UNet continue finished frames. The UNet stays as it is.

A clip of T frames begins with K that exist; CAM sees their pixels and the UNet's own noisy latents of them. The anchor
is frame K-1 of the video's first clip, in every round, as in inference (reference: streamingsvd, section 9).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.attention import Compute
from streaming_core.models.streamingsvd.config import CamConfig, VideoUNetConfig
from streaming_core.models.streamingsvd.network import CamNetwork
from streaming_core.models.streamingsvd.shapes import OFFICIAL

from .configs import DEMO_SVD
from .control_frames import with_drift, with_pixel_noise
from .diffusion import Batch, Encoder, drop_conditions, moving_errors, v_loss
from .footage import Clip, ClipSource, VideoSource, clip_of
from .layout import CPU, LATENT_SCALE, Base, Weights, fold_concat, initialize, run_unet, silence
from .task import check_overlap
from .videos import held_out_videos

MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (3.0, 50.0)
MOTION_BUCKET = 127
NOISE = 1.5
"""Mean of ln sigma: what CAM adds, where things are and how they move, is settled while there is much noise."""
DECODED_SHARE = 0.06
"""Of clips whose control frames have been through the VAE; all would be like inference, and cost half of the time."""
DRIFTED_SHARE = 0.5
"""Of clips whose control frames have the colors that a long video may have come to; what is to be made has not."""


def pixel_channels(unet: VideoUNetConfig) -> tuple[int, ...]:
    """Widths of the pixel encoder: the official ones for the official UNet, less for a narrow one."""
    return OFFICIAL.cam.pixel_channels if unet.model_channels >= 320 else DEMO_SVD.cam.pixel_channels


def new_cam(config: CamConfig, unet: nn.Module, generator: torch.Generator) -> CamNetwork:
    """CAM whose encoder is a copy of the UNet's and whose mergers change nothing yet."""
    cam = initialize(CamNetwork(config), generator)
    shared = cam.controlnet.state_dict().keys() & unet.state_dict().keys()
    copied = {key: tensor.detach().cpu() for key, tensor in unet.state_dict().items() if key in shared}
    cam.controlnet.load_state_dict({**cam.controlnet.state_dict(), **copied})
    silence(cam, ".temporal_transformer.proj_out")
    return cam


def run_with_cam(
    unet: nn.Module,
    cam: CamNetwork,
    control: Tensor,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    vector: Tensor,
    frames: int,
) -> Tensor:
    """One call of the UNet with CAM; `control` `[batch * K, 3, H, W]` in [-1, 1], the rest as for the UNet.

    The UNet's encoder half runs unmodified and its weights stay, so no gradient passes there.
    """
    compute, kept = Compute(), control.shape[0] * frames // x.shape[0]

    def head(tensor: Tensor) -> Tensor:
        """The K control frames of every clip."""
        return rearrange(rearrange(tensor, "(b t) ... -> b t ...", t=frames)[:, :kept], "b k ... -> (b k) ...")

    embedding = cam.encode_pixels(control)
    features = cam.controlnet(head(x), head(timesteps), head(context), head(vector), embedding, kept, compute)

    def merge(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        torch.set_grad_enabled(training)
        block = options["block"][1]
        # On torch 2.13 the CPU's backward pass of a group norm crashes the process where its input is in channels-last
        # order and asks for no gradient, which is what the frozen encoder half hands over.
        h, skip = h.contiguous(), skip.contiguous()
        if block == 0:
            h = cam.merge_middle(h, features, frames, compute)
        return h, cam.merge_skip(len(features.skips) - 1 - block, skip, features, frames, compute)

    training = torch.is_grad_enabled()
    with torch.no_grad():  # until the first merge turns gradients on again; leaving the block restores what was
        return run_unet(unet, x, timesteps, context, vector, frames, output_block_patch=[merge])


class SvdCamTask:
    """`base` holds VAE, image tower and UNet. `rounds`: over how many continuations of a video the clips are spread.

    `start`: what another run of this stage wrote, to begin with. The motion bucket tells nothing here: how fast things
    move is to be read from the control frames.
    """

    stage = "cam"

    def __init__(
        self,
        base: Base,
        source: ClipSource | None = None,
        size: int = 96,
        batch: int = 3,
        frames: int = 8,
        overlap: int = 3,
        rounds: int = 5,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        check_overlap(overlap, frames)
        self.source, self.size, self.batch = source or VideoSource(size), size, batch
        self.frames, self.overlap, self.device = frames, overlap, device
        self.starts = tuple(round_ * (frames - overlap) for round_ in range(1, rounds + 1))
        self.unet = base.unet(device).requires_grad_(False)
        config = CamConfig(base.unet_config, pixel_channels(base.unet_config))
        self.network = new_cam(config, self.unet, torch.Generator().manual_seed(seed))
        if start is not None:
            self.network.load_state_dict(fold_concat(start, 1 / LATENT_SCALE, "controlnet."))
        self.network.to(device)
        self.encoder = Encoder(base.vae(device), base.clip_vision(), base.unet_config.vector_width, device)
        self.measured: tuple[Batch, Tensor] | None = None

    @property
    def anchor_frame(self) -> int:
        return self.overlap - 1

    def settings(self) -> dict[str, Any]:
        return {
            "size": self.size, "source": type(self.source).__name__, "videos": getattr(self.source, "variety", ""),
            "pool": self.source.pool.num_videos if getattr(self.source, "pool", None) else 0,
            "batch": self.batch, "frames": self.frames, "overlap": self.overlap, "starts": self.starts,
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        drawn = (self.source.draw(generator, self.frames, self.starts, self.anchor_frame) for _ in range(self.batch))
        clips = [replace(clip, motion_bucket_id=MOTION_BUCKET) for clip in drawn]
        batch = drop_conditions(self.encoder.batch(clips, generator), generator)
        control = torch.cat([self._worn(clip, batch.latents[i], generator) for i, clip in enumerate(clips)])
        return v_loss(partial(run_with_cam, self.unet, self.network, control), batch, generator, NOISE)

    def _worn(self, clip: Clip, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Control frames as a later round finds them: sometimes decoded ones, often noisy or with other colors.

        In [-1, 1]. Where colors have drifted only the anchor tells the right ones, so CAM learns to ask it.
        """
        decoded, noisy, drifted = (float(torch.rand((), generator=generator)) for _ in range(3))
        if decoded < DECODED_SHARE:
            frames = self.encoder.decode(latents[: self.overlap])
        else:
            frames = clip.footage.frames[: self.overlap].to(self.device)
        if drifted < DRIFTED_SHARE:
            frames = with_drift(frames, generator)
        return with_pixel_noise(frames, noisy, generator)

    def measure(self) -> dict[str, float]:
        """`moving_errors` by noise level: of the control frames, of the new ones, of these without CAM and where the
        control frames' colors have drifted.
        """
        if self.measured is None:
            self.measured = self._held_out()
        batch, control = self.measured
        with_cam, without = partial(run_with_cam, self.unet, self.network, control), partial(run_unet, self.unet)
        other = with_drift((control + 1) / 2, torch.Generator().manual_seed(0)) * 2 - 1
        drifted = partial(run_with_cam, self.unet, self.network, other)
        old, new = slice(0, self.overlap), slice(self.overlap, None)
        errors = {}
        for sigma in MEASURED_SIGMAS:
            errors.update(moving_errors(with_cam, batch, sigma, {"overlap": old, "new": new}))
            errors.update(moving_errors(without, batch, sigma, {"new_without": new}))
            errors.update(moving_errors(drifted, batch, sigma, {"new_drifted": new}))
        return errors

    def _held_out(self) -> tuple[Batch, Tensor]:
        generator = torch.Generator().manual_seed(0)
        clips = []
        if isinstance(self.source, VideoSource):
            for i, video in enumerate(held_out_videos(MEASURED_VIDEOS, self.size, self.source.variety)):
                clip = clip_of(video, self.frames, self.starts[i % len(self.starts)], self.anchor_frame)
                clips.append(replace(clip, motion_bucket_id=MOTION_BUCKET))
        else:  # a folder's files are all trained on; these draws of them stay the same
            for _ in range(MEASURED_VIDEOS):
                clips.append(self.source.draw(generator, self.frames, self.starts, self.anchor_frame))
        control = torch.cat([clip.footage.frames[: self.overlap] for clip in clips]).to(self.device) * 2 - 1
        return self.encoder.batch(clips, generator), control

    def weights(self) -> Weights:
        """Under the names of `CamNetwork`; its encoder takes image latents of the official scale."""
        return fold_concat(self.network.state_dict(), LATENT_SCALE, "controlnet.")
