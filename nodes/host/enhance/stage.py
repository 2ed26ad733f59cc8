"""What every stage over a whole video shares: encode in slices, sample in windows, decode in slices, and the result.

What grows with the video are latents alone. Frames come from a stream and go to a run folder or, where the caller has
them in memory anyway, to a tensor.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import comfy.sample
import comfy.samplers
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ....streaming_core.enhance.job import WindowedPass
from ....streaming_core.enhance.size import FrameTarget, Size
from ....streaming_core.errors import FrameError, SettingsError
from ....streaming_core.frames import FrameStream, to_rgb
from ....streaming_core.frames.fitting import fit
from ....streaming_core.frames.slices import frames_per_slice
from ....streaming_core.runs.content import ChunkContent
from ....streaming_core.runs.folder import RunFolder
from ..encoders import ConditioningPair
from ..handed_out import hand_out_files
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress, check_cancel
from ..windows.blending import with_blending

SLICE_FRAMES = 8


def check_vae(vae: VAE, model: ModelPatcher) -> None:
    """Check that `vae` makes the latents that `model` samples.

    Raises:
        SettingsError: another number of channels.
    """
    wanted, got = model.model.latent_format.latent_channels, vae.latent_channels
    if got != wanted:
        raise SettingsError(
            f"this VAE makes latents with {got} channels, the model takes {wanted}; use the VAE of Stable Diffusion 2.1"
        )


def encode_video(vae: VAE, frames: FrameStream, target: FrameTarget, advance: Callable[[int], None]) -> Tensor:
    """Latents `[F, C, h, w]` float32 of all frames brought to `target`, slice by slice, on the CPU."""
    size, done = target.size, 0
    latents: Tensor | None = None
    for part in frames.slices(frames_per_slice(frames.height, frames.width, SLICE_FRAMES)):
        check_cancel()
        pixels = fit(images_to_core(part), size.height_px, size.width_px, target.fit)
        if target.eight_bit:
            pixels = (pixels * 255).round() / 255
        encoded = vae.encode(core_to_images(pixels)).to("cpu", torch.float32)
        if latents is None:
            latents = torch.empty(len(frames), *encoded.shape[1:])
        latents[done : done + len(encoded)] = encoded
        done += len(encoded)
        advance(len(part))
    if latents is None:
        raise FrameError("the video has no frames")
    return latents


def decode_video(vae: VAE, latents: Tensor, advance: Callable[[int], None]) -> Iterator[Tensor]:
    """IMAGE slices of all `latents` `[F, C, h, w]`, in order."""
    for number, part in enumerate(latents.split(SLICE_FRAMES)):
        check_cancel()
        yield to_rgb(vae.decode(part), first=number * SLICE_FRAMES)
        advance(len(part))


def video_noise(shape: Sequence[int], seed: int) -> Tensor:
    """One noise for the whole video, drawn on the CPU: windows share it where they overlap."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def sample_video(
    model: ModelPatcher,
    video_pass: WindowedPass,
    latents: Tensor,
    noise: Tensor,
    pair: ConditioningPair,
    progress: StepProgress,
) -> Tensor:
    """`latents` `[F, C, h, w]` noised to the first of the pass's sigmas and denoised in its windows.

    `noise` has the shape of `latents` and unit variance. The bar moves by F per step.
    """
    windows = video_pass.windows
    if len(windows) > 1:
        model = with_blending(model, len(windows[0]), video_pass.overlap_frames, video_pass.handovers)
    return comfy.sample.sample_custom(
        model,
        noise,
        video_pass.cfg,
        comfy.samplers.sampler_object(video_pass.sampler),
        video_pass.sigmas,
        *pair,
        latents,
        callback=progress.sampler_callback(model, len(latents)),
        disable_pbar=True,
        seed=video_pass.seed,
    )


@dataclass(frozen=True)
class StageVideo:
    """The video that a stage is about to make. Nothing runs before `images` or `stream` is called.

    Attributes:
        node: display name of the node, for messages.
        kind: what is done to the video in one word, "enhanced" or "refined"; names its folder.
        num_frames, size, fps: form of the video.
        slices: makes the video, as IMAGE slices in order.
    """

    node: str
    kind: str
    num_frames: int
    size: Size
    fps: Fraction
    slices: Callable[[], Iterator[Tensor]]

    def images(self) -> Tensor:
        """The video as one IMAGE `[F, H, W, 3]`."""
        images = torch.empty(self.num_frames, self.size.height_px, self.size.width_px, 3)
        done = 0
        for part in self.slices():
            images[done : done + len(part)] = part
            done += len(part)
        return images

    def stream(self) -> FrameStream:
        """The video as frames on disk, in the host's temporary folder; nothing is left there when it fails."""
        name = f"{self.kind}_{time.time_ns():x}"
        run = RunFolder.create(
            Path(folder_paths.get_temp_directory()),
            name,
            kind=self.kind,
            height=self.size.height_px,
            width=self.size.width_px,
            fps=self.fps,
            num_frames=self.num_frames,
            owner=self.node,
        )
        try:
            with run:
                for index, part in enumerate(self.slices()):
                    run.write_chunk(index, ChunkContent(part), settings_hash=name)
                stream = run.frames_stream()
                hand_out_files(self.node, "", [chunk.file.path for chunk in stream.chunks])
                return stream
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
