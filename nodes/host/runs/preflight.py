"""What a video will cost: model calls, seconds, disk, RAM and VRAM, from the plan and the host's own estimates."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.plan import Beginning, VideoPlan
from ....streaming_core.loop.remedies import PreviousGuidance
from ....streaming_core.loop.sampler import ChunkSampler, StepMemory
from ....streaming_core.loop.state import ChunkResult
from ....streaming_core.loop.steps import continue_video, start_video, state_after_first
from ..progress import SamplerCallback, check_cancel
from .paths import runs_root

TIMED_STEPS = 3
CHUNK_COPIES = 4
"""How often the frames of one chunk are in RAM at most: decoded, joined, as IMAGE, and as the file that is written."""
MIB = 2**20
FLOP_UNITS = ((15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP"))
"""Powers of ten."""


@dataclass(frozen=True)
class Costs:
    """Numbers of one video; bytes, seconds.

    `memory`: what one step takes, None where the family gives no estimate. `blind_calls`: steps with one more model
    call, for guidance against the previous chunk; it runs after the others and takes no more memory. `calls` of
    the network with `flops` in all: 0 where it tells nothing of them.
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
    memory: StepMemory | None = None
    blind_calls: int = 0
    calls: int = 0
    flops: int = 0

    @property
    def text(self) -> str:
        """The numbers, one line each."""
        guided = f", {self.blind_calls} of them with one more model call" if self.blind_calls else ""
        lines = [
            f"video: {self.num_frames} frames in {self.num_chunks} chunks",
            f"model: {self.num_chunks} chunks, {self.steps} sampling steps{guided}",
            *self._work,
            f"time: {_duration(self.seconds)}",
            f"disk: {_size(self.disk_needed)} needed, {_size(self.disk_free)} free",
            f"RAM: {_size(self.ram_needed)} for one chunk, {_size(self.ram_free)} free; does not grow with the length",
            f"weights: {_size(self.weights)} in total",
        ]
        if self.memory is None:
            lines.append("sampling: this model does not estimate its memory use")
        elif self.memory.device_total is None:
            lines.append(f"sampling: {_size(self.memory.least)} of RAM")
        else:
            lines.append(
                f"VRAM: {_size(self.memory.least)} at least, {_size(self.memory.whole)} to hold a whole step, "
                f"{_size(self.memory.device_total)} available"
            )
        return "\n".join(lines)

    @property
    def _work(self) -> list[str]:
        if not self.calls:
            return []
        average, total = _flops(self.flops / self.calls), _flops(self.flops)
        return [f"work: {self.calls} calls of the network of {average} on average, {total} in all"]

    def refuse_what_cannot_fit(self) -> None:
        """Raise `SettingsError` with the numbers and the way out when something is short."""
        if self.disk_needed > self.disk_free:
            raise SettingsError(
                f"the run needs {_size(self.disk_needed)} of disk but {_size(self.disk_free)} are free; free some "
                "disk space, plan fewer frames, or use a smaller size"
            )
        memory = self.memory
        ram = self.ram_needed + (memory.least if memory is not None and memory.device_total is None else 0)
        if ram > self.ram_free:
            raise SettingsError(
                f"one chunk needs {_size(ram)} of RAM but {_size(self.ram_free)} are free; use a smaller chunk_frames "
                "or a smaller size"
            )
        if memory is not None and memory.device_total is not None and memory.least > memory.device_total:
            raise SettingsError(
                f"one step needs {_size(memory.least)} of VRAM but the device has {_size(memory.device_total)}; use a "
                "smaller chunk_frames or a smaller size"
            )


def preflight(sampler: ChunkSampler, plan: VideoPlan, width: int, height: int, time_a_step: bool = False) -> Costs:
    """The costs of a video whose first chunk the model makes.

    Raises `SettingsError` for sizes, prompts or strengths that the model cannot follow.
    """
    gray = torch.full((1, 3, height, width), 0.5) if "image" in sampler.starts_from else None
    plan = sampler.accept(replace(plan, height=height, width=width, beginning=Beginning(image=gray)))
    steps, blind_calls = (sum(count(chunk) for chunk in plan.chunks) for count in (sampler.steps, sampler.blind_calls))
    calls, flops = network_work(sampler, plan)
    weights = {id(patcher.model): patcher for patcher in sampler.networks()}.values()
    return Costs(
        num_frames=plan.num_frames,
        num_chunks=plan.num_chunks,
        steps=steps,
        seconds=seconds_of_all_steps(sampler, plan, steps, blind_calls) if time_a_step else None,
        disk_needed=disk_needed(plan, sampler.lead_frames),
        disk_free=disk_free(runs_root()),
        ram_needed=CHUNK_COPIES * max(plan.chunk_frames, plan.first_frames) * height * width * 12,
        ram_free=mm.get_free_memory(torch.device("cpu")),
        weights=sum(patcher.model_size() for patcher in weights),
        memory=largest_step(sampler, plan),
        blind_calls=blind_calls,
        calls=calls,
        flops=flops,
    )


def largest_step(sampler: ChunkSampler, plan: VideoPlan) -> StepMemory | None:
    """What a step of the longest chunk takes: the first, the last and those in between may be of different lengths."""
    chunks = [plan.chunk(index) for index in {0, min(1, plan.num_chunks - 1), plan.num_chunks - 1}]
    found = [sampler.step_memory(chunk, plan.size) for chunk in chunks]
    return max((each for each in found if each is not None), key=lambda each: each.least, default=None)


def network_work(sampler: ChunkSampler, plan: VideoPlan) -> tuple[int, int]:
    """How often a video calls the network, and the floating-point operations of all calls; 0 where nobody can tell."""
    calls = flops = 0
    for chunk in plan.chunks:
        work = sampler.step_work(chunk, plan.size)
        if work is not None:
            calls += sampler.steps(chunk) * work.calls
            flops += sampler.steps(chunk) * work.calls * work.flops
    return calls, flops


def disk_needed(plan: VideoPlan, lead_frames: int = 0) -> int:
    """Bytes of the run folder: frames and leads as bytes, a tail per chunk and two images as floats, and some text."""
    frames = sum(chunk.num_frames - chunk.overlap_frames for chunk in plan.chunks)
    frames += lead_frames * (plan.num_chunks - 1)
    floats = plan.num_chunks * plan.overlap_frames + 2
    return (frames + 4 * floats) * plan.height * plan.width * 3 + 8192 * plan.num_chunks


def disk_free(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class StepsTimed(Exception):
    """Ends a sampling that was only timed."""


class StepTimer:
    """Takes the place of a progress bar; ends the sampling after a few steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, steps: int = 1, preview: Any = None) -> None:
        """As of a bar."""
        check_cancel()

    def sampler_callback(self, model: ModelPatcher) -> SamplerCallback:
        """A callback that notes when each step ended."""

        def callback(step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            check_cancel()
            self.times.append(time.monotonic())
            if len(self.times) >= min(TIMED_STEPS, total_steps):
                raise StepsTimed

        return callback


def seconds_of_all_steps(sampler: ChunkSampler, plan: VideoPlan, steps: int, blind_calls: int) -> float:
    """Seconds of `steps` sampling steps, `blind_calls` of them with one more model call."""
    if not blind_calls:
        return seconds_of_a_step(sampler, plan) * steps
    # Only the first steps of a chunk are timed, so these are guided or not.
    plain, guided = (
        seconds_of_a_step(sampler.with_previous_guidance(PreviousGuidance(weight)), plan, continued=True)
        for weight in (0.0, 0.1)
    )
    return plain * (steps - blind_calls) + guided * blind_calls


def seconds_of_a_step(sampler: ChunkSampler, plan: VideoPlan, continued: bool = False) -> float:
    """Seconds of one sampling step of this size, once everything is loaded; made with gray frames.

    `continued`: of a chunk with a tail, also where that takes encoding a tail of latents.
    """
    timer = StepTimer()
    timed = sampler.with_progress(timer)
    gray = torch.full((1, 3, *plan.size), 0.5)
    began = time.monotonic()
    try:
        if continued or (plan.num_chunks > 1 and sampler.layout is None):
            # Not the last chunk, which may be shorter.
            plan = replace(plan, num_frames=plan.num_frames + plan.chunk_frames)
            tail = ChunkResult(gray.repeat(plan.overlap_frames, 1, 1, 1))
            continue_video(state_after_first(plan, tail, gray, timed), timed)
        else:
            start_video(plan, timed)
    except StepsTimed:
        pass
    if len(timer.times) < 2:  # a single step: all of it, loading included
        return time.monotonic() - began
    return (timer.times[-1] - timer.times[0]) / (len(timer.times) - 1)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def _flops(count: float) -> str:
    """Floating-point operations in words: the largest unit of which there is one, or else the smallest."""
    exponent, unit = next((each for each in FLOP_UNITS if count >= 10 ** each[0]), FLOP_UNITS[-1])
    return f"{count / 10**exponent:.3g} {unit}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured; turn time_a_step on"
    if seconds < 120:
        return f"about {seconds:.1f} s of sampling, decoding not counted"
    return f"about {seconds / 60:.0f} min of sampling, decoding not counted"
