"""Refinement with MS-Vid2Vid on the host: noised to the official level, denoised in windows, no frame lost.

Frames come from a stream and go to a run folder or a tensor; what grows with the video are latents alone
(reference: streamingmodelscope, section 6).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import comfy.samplers
import folder_paths
import torch
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.frames import FrameStream
from ....streaming_core.models.modelscope.vid2vid import fit_refiner_size
from ....streaming_core.runs.content import ChunkContent
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.windows.blending import SeededCuts, check_window
from ....streaming_core.windows.enhancement import Size
from ..modelscope.vid2vid import Vid2VidModel, vid2vid_sigmas, with_rescaled_guidance
from ..progress import StepProgress
from ..windows.blending import with_blending
from .enhancer import decode_video, encode_video, step_callback, video_noise

Conditioning = list


@dataclass(frozen=True)
class RefineSettings:
    """What the user chooses; defaults are official. `level`: how much noise to start from, 0..999."""

    steps: int = 30
    level: int = 599
    cfg: float = 7.5
    rescale: float = 0.2
    window_frames: int = 24
    overlap_frames: int = 8
    seed: int = 33

    def __post_init__(self) -> None:
        check_window(self.window_frames, self.overlap_frames)
        if not 0 < self.level < 999:
            raise SettingsError(f"the noise level lies between 1 and 998, got {self.level}; 599 is official")


@dataclass(frozen=True)
class RefineRequest:
    """A video, the box its result shall fit into (aspect kept), and how it is refined.

    `positive`, `negative`: CONDITIONING of the refiner's own text encoder.
    """

    model: object
    vae: object
    frames: FrameStream
    positive: Conditioning
    negative: Conditioning
    width: int
    height: int
    settings: RefineSettings = RefineSettings()

    def __post_init__(self) -> None:
        if not isinstance(self.model.model, Vid2VidModel):
            raise SettingsError(
                f"refining needs MS-Vid2Vid from Load Enhancer, got {type(self.model.model).__name__}; for I2VGen-XL "
                "use Enhance Video"
            )

    @property
    def size(self) -> Size:
        """Size of the result: the largest in the box that the network can halve and double back."""
        source = self.frames.height, self.frames.width
        height, width = fit_refiner_size(*source, self.height, self.width, self.model.model.config.factor)
        return Size(height, width)


def refine_video(request: RefineRequest) -> Iterator[Tensor]:
    """IMAGE slices of the refined video: as many frames as it has."""
    settings, frames = request.settings, request.frames
    sigmas = vid2vid_sigmas(settings.steps, settings.level)
    progress = StepProgress(len(frames) * (len(sigmas) + 1))
    latents = encode_video(request.vae, frames, len(frames), request.size, "crop", False, progress.advance)
    model = with_rescaled_guidance(request.model, settings.rescale)
    if len(frames) > settings.window_frames:
        cuts = SeededCuts(settings.seed)
        model = with_blending(model, settings.window_frames, settings.overlap_frames, cuts)
    refined = comfy.sample.sample_custom(
        model,
        video_noise(latents.shape, settings.seed),
        settings.cfg,
        comfy.samplers.sampler_object("dpmpp_2m_sde"),
        sigmas,
        request.positive,
        request.negative,
        latents,
        callback=step_callback(model, len(frames), progress),
        disable_pbar=True,
        seed=settings.seed,
    )
    del latents
    yield from decode_video(request.vae, refined, progress.advance)


def refine_images(request: RefineRequest) -> Tensor:
    """The refined video as one IMAGE."""
    size = request.size
    images = torch.empty(len(request.frames), size.height_px, size.width_px, 3)
    done = 0
    for part in refine_video(request):
        images[done : done + len(part)] = part
        done += len(part)
    return images


def refine_stream(request: RefineRequest) -> FrameStream:
    """The refined video as frames on disk, in the host's temporary folder; nothing is left when it fails."""
    size = request.size
    name = f"refined_{time.time_ns():x}"
    run = RunFolder.create(
        Path(folder_paths.get_temp_directory()),
        name,
        kind="refined",
        height=size.height_px,
        width=size.width_px,
        fps=request.frames.fps,
        num_frames=len(request.frames),
        owner="Refine Video",
    )
    try:
        with run:
            for index, part in enumerate(refine_video(request)):
                run.write_chunk(index, ChunkContent(part), settings_hash=name, own={"seed": request.settings.seed})
            return run.frames_stream()
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
