"""What a video will cost: model calls, seconds, disk, RAM and VRAM, from the plan and the host's own estimates."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as mm
import torch

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import ChunkPlan
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.state import Anchor, VideoState, continue_video
from ..progress import check_cancel
from .videos import VideoRequest, check_request, chunk_hashes, runs_root

TIMED_STEPS = 3
CLIP_COPIES = 4
"""How often the frames of one chunk are in RAM at most: decoded, joined, as IMAGE, and as the file that is written."""
MIB = 2**20


@dataclass(frozen=True)
class Costs:
    """Numbers of one video; bytes, seconds.

    `vram_least`: what one step takes at least, None where the family gives no estimate; the other two are None where
    that is taken from the RAM.
    """

    num_frames: int
    num_chunks: int
    steps: int
    seconds: float | None
    disk_needed: int
    disk_free: int
    ram_needed: int
    ram_free: int
    weights: int
    vram_least: int | None = None
    vram_whole: int | None = None
    vram_total: int | None = None

    @property
    def text(self) -> str:
        """The numbers, one line each."""
        lines = [
            f"video: {self.num_frames} frames in {self.num_chunks} chunks",
            f"model: {self.num_chunks} chunks, {self.steps} sampling steps",
            f"time: {_duration(self.seconds)}",
            f"disk: {_size(self.disk_needed)} needed, {_size(self.disk_free)} free",
            f"RAM: {_size(self.ram_needed)} for one chunk, {_size(self.ram_free)} free; does not grow with the length",
            f"weights: {_size(self.weights)} in total",
        ]
        if self.vram_least is None:
            lines.append("sampling: this model does not estimate its memory use")
        elif self.vram_total is None:
            lines.append(f"sampling: {_size(self.vram_least)} of RAM")
        else:
            lines.append(
                f"VRAM: {_size(self.vram_least)} at least, {_size(self.vram_whole)} to hold a whole step, "
                f"{_size(self.vram_total)} available"
            )
        return "\n".join(lines)

    def refuse_what_cannot_fit(self) -> None:
        """Raise `SettingsError` with the numbers and the way out when something is short."""
        if self.disk_needed > self.disk_free:
            raise SettingsError(
                f"the run needs {_size(self.disk_needed)} of disk but {_size(self.disk_free)} are free; free some "
                "disk space, plan fewer frames, or use a smaller size"
            )
        ram = self.ram_needed + (self.vram_least or 0 if self.vram_total is None else 0)
        if ram > self.ram_free:
            raise SettingsError(
                f"one chunk needs {_size(ram)} of RAM but {_size(self.ram_free)} are free; use a smaller chunk_frames "
                "or a smaller size"
            )
        if self.vram_total is not None and self.vram_least > self.vram_total:
            raise SettingsError(
                f"one step needs {_size(self.vram_least)} of VRAM but the device has {_size(self.vram_total)}; use a "
                "smaller chunk_frames or a smaller size"
            )


def preflight(sampler, video: VideoPlan, width: int, height: int, time_a_step: bool = False) -> Costs:
    """The costs of a video whose first clip the model makes.

    Raises `SettingsError` for sizes or prompts that the model cannot take.
    """
    blank = torch.full((1, height, width, 3), 0.5)
    request = VideoRequest.of(
        video, num_frames=0, chunk_frames=0, overlap_frames=0, seed=0,
        width=width, height=height, fit="crop", anchor_frame=0,
        start_image=blank if starts_from_image(sampler) else None,
    ).made_by(sampler)  # fmt: skip
    check_request(sampler, request)
    plan = request.plan()
    chunk_hashes(sampler, {}, plan.chunks)  # asks the family about every chunk's prompt
    steps = sum(sampler.steps(chunk) for chunk in plan.chunks)
    costs = {
        "num_frames": plan.num_frames,
        "num_chunks": plan.num_chunks,
        "steps": steps,
        "seconds": seconds_of_a_step(sampler, plan, request) * steps if time_a_step else None,
        "disk_needed": disk_needed(plan, height, width),
        "disk_free": disk_free(runs_root()),
        "ram_needed": CLIP_COPIES * max(plan.chunk_frames, plan.first_frames) * height * width * 12,
        "ram_free": mm.get_free_memory(torch.device("cpu")),
        "weights": sum(patcher.model_size() for patcher in patchers(sampler)),
    }
    return Costs(**costs, **sampling_memory(sampler, plan, height, width))


def starts_from_image(sampler) -> bool:
    """Whether the family makes its first clip of an image."""
    return getattr(sampler, "starts_from_image", not getattr(sampler, "starts_from_prompt", False))


def disk_needed(plan: ChunkPlan, height: int, width: int) -> int:
    """Bytes of the run folder: frames as bytes, a tail per chunk and two images as floats, and some text."""
    frames = sum(chunk.num_frames - chunk.overlap_frames for chunk in plan.chunks)
    floats = plan.num_chunks * plan.overlap_frames + 2
    return (frames + 4 * floats) * height * width * 3 + 8192 * plan.num_chunks


def disk_free(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def patchers(sampler) -> list:
    """The networks of a chunk sampler, each once."""
    own = [getattr(sampler, name, None) for name in ("model", "first_model")]
    held = [getattr(getattr(sampler, name, None), "patcher", None) for name in ("cam", "vae")]
    found = [each for each in (*own, *held, *getattr(sampler, "anchor_models", ())) if each is not None]
    return list({id(each.model): each for each in found}.values())


def sampling_memory(sampler, plan: ChunkPlan, height: int, width: int) -> dict[str, int | None]:
    """What sampling and decoding take on the device, by the host's estimates."""
    model, shape_of = getattr(sampler, "model", None), getattr(sampler, "latent_shape", None)
    if model is None or shape_of is None:
        return {}
    shape = shape_of(plan.chunk(plan.num_chunks - 1), height, width)
    # The two halves of guidance run together where there is room, else one by one.
    least = int(model.memory_required(shape))
    if (
        len(shape) == 4
    ):  # frames are a batch, decoded by few; whole clips the host decodes in tiles when they do not fit
        vae, together = sampler.vae, getattr(sampler, "decoded_together", 1)
        least = max(least, int(vae.memory_used_decode((together, *shape[1:]), vae.vae_dtype)) * together)
    if model.load_device.type == "cpu":
        return {"vram_least": least}
    networks = [model, *([sampler.cam.patcher] if getattr(sampler, "cam", None) else [])]
    both = int(model.memory_required((2 * shape[0], *shape[1:])))
    return {
        "vram_least": least,
        "vram_whole": both + sum(patcher.model_size() for patcher in networks),
        "vram_total": mm.get_total_memory(model.load_device),
    }


class Enough(Exception):
    """Ends a sampling that was only timed."""


class StepTimer:
    """Takes the place of a progress bar; ends the sampling after a few steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, steps: int = 1, preview=None) -> None:
        """As of a bar."""
        check_cancel()

    def sampler_callback(self, model):
        """A callback that notes when each step ended."""

        def callback(step, denoised, x, total_steps):
            check_cancel()
            self.times.append(time.monotonic())
            if len(self.times) >= min(TIMED_STEPS, total_steps):
                raise Enough

        return callback


def seconds_of_a_step(sampler, plan: ChunkPlan, request: VideoRequest) -> float:
    """Seconds of one sampling step of this size, once everything is loaded; made with gray images."""
    timer = StepTimer()
    timed = sampler.with_progress(timer)
    gray = torch.full((1, 3, request.height, request.width), 0.5)
    began = time.monotonic()
    try:
        if plan.num_chunks > 1 and not hasattr(sampler, "hand_off"):
            anchor = Anchor(gray, timed.embed_anchor(gray))
            continue_video(VideoState(plan, anchor, gray.repeat(plan.overlap_frames, 1, 1, 1), 1), timed)
        elif starts_from_image(sampler):
            timed.sample_first_clip(plan.chunk(0), gray)
        else:
            timed.sample_first_clip(plan.chunk(0), request.height, request.width)
    except Enough:
        pass
    if len(timer.times) < 2:  # a single step: all of it, loading included
        return time.monotonic() - began
    return (timer.times[-1] - timer.times[0]) / (len(timer.times) - 1)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured; turn time_a_step on"
    if seconds < 120:
        return f"about {seconds:.1f} s of sampling, decoding not counted"
    return f"about {seconds / 60:.0f} min of sampling, decoding not counted"
