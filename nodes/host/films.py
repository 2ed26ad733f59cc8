"""Films on disk: the chunk loop with a run folder under the host's output directory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import comfy.model_management as mm
import folder_paths
from torch import Tensor

from ...streaming_core.chunks import ChunkPlan
from ...streaming_core.errors import RunFolderError, RunMismatchError, SettingsError
from ...streaming_core.fitting import fit
from ...streaming_core.frames import FrameStream, to_rgb, write_video
from ...streaming_core.loop import Anchor, FilmState, continue_film, pick_anchor, start_film
from ...streaming_core.run_folder import RunFolder, settings_hash
from .fingerprint import tensor_fingerprint
from .progress import StepProgress, check_cancel
from .svd import core_to_images, images_to_core

log = logging.getLogger(__name__)
RUNS_FOLDER = "streaming_runs"


def runs_root() -> Path:
    """The folder under the host's output directory that holds all run folders."""
    return Path(folder_paths.get_output_directory()) / RUNS_FOLDER


@dataclass(frozen=True)
class FilmRequest:
    """What a film shall be: its length, chunks, size and beginning.

    `start_image` and `first_clip` are IMAGE batches of any size; one of them is needed, and the clip wins. `anchor`: an
    IMAGE instead of frame `anchor_frame` of the first clip.
    """

    num_frames: int
    chunk_frames: int
    overlap_frames: int
    width: int
    height: int
    fit: str
    seed: int
    anchor_frame: int
    start_image: Tensor | None = None
    first_clip: Tensor | None = None
    anchor: Tensor | None = None

    def fitted(self, images: Tensor) -> Tensor:
        """Any IMAGE as core frames of the film's size."""
        return fit(images_to_core(to_rgb(images)), self.height, self.width, self.fit)

    def plan(self) -> ChunkPlan:
        """Raises `SettingsError` for lengths that cannot work, before anything heavy runs."""
        first = self.chunk_frames if self.first_clip is None else self.first_clip.shape[0]
        return ChunkPlan(self.num_frames, self.chunk_frames, self.overlap_frames, first, self.seed)

    def check(self, multiple_px: int, starts_from_prompt: bool = False) -> None:
        """Raise `SettingsError` unless the request can be met by a model that works in multiples of `multiple_px`.

        `starts_from_prompt`: the model makes its first clip from the prompt alone.
        """
        if starts_from_prompt and self.start_image is not None and self.first_clip is None:
            raise SettingsError(
                "this model makes the first clip from the prompt, not from start_image; make a clip of that picture "
                "with another model and connect it as first_clip"
            )
        if self.start_image is None and self.first_clip is None and not starts_from_prompt:
            raise SettingsError("a film needs a beginning; connect start_image or first_clip")
        for side, value in (("width", self.width), ("height", self.height)):
            if value < multiple_px or value % multiple_px:
                nearest = max(multiple_px, round(value / multiple_px) * multiple_px)
                raise SettingsError(f"{side} must be a multiple of {multiple_px} pixels, got {value}; try {nearest}")


def check_request(sampler, request: FilmRequest) -> None:
    """Raise `SettingsError` unless `sampler` can make the film."""
    request.check(sampler.multiple_px, getattr(sampler, "starts_from_prompt", False))


def begin_film(sampler, request: FilmRequest) -> tuple[FilmState, Tensor]:
    """The first clip (made from the start image unless given) and the state that continues it."""
    check_request(sampler, request)
    plan = request.plan()
    if request.first_clip is not None:
        first = request.fitted(request.first_clip)
    elif request.start_image is None:
        first = sampler.sample_first_clip(plan.chunk(0), request.height, request.width)
    else:
        first = sampler.sample_first_clip(plan.chunk(0), request.fitted(request.start_image[:1]))
    if request.anchor is not None:
        several = getattr(sampler, "averages_anchors", False)
        anchor = request.fitted(request.anchor if several else request.anchor[:1])
    else:
        anchor = pick_anchor(first, request.anchor_frame)
    return start_film(plan, first, anchor, sampler), first


def run_settings(sampler, request: FilmRequest) -> dict:
    """Everything a chunk depends on, in words and numbers, besides its index and the chunks before it."""
    pictures = {name: getattr(request, name) for name in ("start_image", "first_clip", "anchor")}
    return {
        "sampler": sampler.settings(),
        "chunk_frames": request.chunk_frames,
        "overlap_frames": request.overlap_frames,
        "width": request.width,
        "height": request.height,
        "fit": request.fit,
        "seed": request.seed,
        "anchor_frame": request.anchor_frame,
        **{name: None if images is None else tensor_fingerprint(images) for name, images in pictures.items()},
    }


def chunk_hashes(settings: dict, num_chunks: int, chunk_settings: Callable[[int], dict] | None = None) -> list[str]:
    """One settings hash per chunk, each holding the one before: a change re-makes everything behind it.

    `chunk_settings`: what decides a single chunk besides (its prompt, say).
    """
    hashes: list[str] = []
    for index in range(num_chunks):
        own = chunk_settings(index) if chunk_settings else {}
        hashes.append(settings_hash({**settings, **own, "index": index}, previous=hashes[-1] if hashes else ""))
    return hashes


def make_film(sampler, request: FilmRequest, run_name: str, fps: float) -> FrameStream:
    """Make a film, or what is missing of it, into its run folder. Memory does not grow with its length.

    An empty `run_name` is replaced by one made from the settings, so the same film again is found again.
    """
    check_request(sampler, request)
    plan = request.plan()
    settings = run_settings(sampler, request)
    hashes = chunk_hashes(settings, plan.num_chunks, getattr(sampler, "chunk_settings", None))
    name = run_name.strip() or f"{sampler.kind}_{hashes[0][:10]}"
    refuse_other_model(name, settings)
    with RunFolder.open_or_create(
        runs_root(),
        name,
        settings,
        kind=sampler.kind,
        height=request.height,
        width=request.width,
        fps=Fraction(fps).limit_denominator(1001),
        num_frames=request.num_frames,
        owner="Stream Sampler",
    ) as run:
        try:
            _fill(run, sampler, request, plan, hashes)
        except BaseException:
            if not run.chunks:
                # Nothing is worth keeping of a run that never finished its first clip.
                run.discard()
            raise
        return run.frames_stream(request.num_frames)


def refuse_other_model(name: str, settings: dict) -> None:
    """Raise `RunMismatchError` when a run of this name was made by another model."""
    try:
        with RunFolder.open(runs_root(), name) as run:
            made_with = run.manifest.settings.get("sampler", {}).get("models")
    except RunFolderError:
        return  # not there, or not readable: open_or_create says what is wrong with it
    if made_with not in (None, settings["sampler"]["models"]):
        raise RunMismatchError(
            f"run {name!r} was made with other model weights; choose another run name or the model it began with"
        )


def _fill(run: RunFolder, sampler, request: FilmRequest, plan: ChunkPlan, hashes: list[str]) -> None:
    resume = run.completed_prefix(hashes)
    if resume.next_index:
        log.info("run %s: %s", run.manifest.name, resume.reason)
    if resume.complete:
        return
    steps = [
        0 if index == 0 and request.first_clip is not None else sampler.steps(plan.chunk(index))
        for index in range(plan.num_chunks)
    ]
    progress = StepProgress(max(1, sum(steps)))
    sampler = sampler.with_progress(progress)
    progress.advance(sum(steps[: resume.next_index]))

    def store(index: int, frames: Tensor, state: FilmState, seconds: float) -> None:
        run.write_chunk(
            index,
            settings_hash=hashes[index],
            seed=request.seed,
            frames=core_to_images(frames),
            tail=state.tail,
            extra={"anchor": state.anchor.frame} if index == 0 else None,
            seconds=seconds,
            replace_existing=True,
        )

    began = time.monotonic()
    if resume.next_index == 0:
        state, first = begin_film(sampler, request)
        store(0, first, state, time.monotonic() - began)
        del first
    else:
        state = resumed_state(run, sampler, plan, resume.next_index)
    while not state.is_complete:
        check_cancel()
        began = time.monotonic()
        index = state.num_chunks
        state, frames = continue_film(state, sampler)
        store(index, frames, state, time.monotonic() - began)
        del frames
        mm.soft_empty_cache()


def resumed_state(run: RunFolder, sampler, plan: ChunkPlan, next_index: int) -> FilmState:
    """The state as it was when chunk `next_index - 1` had been stored."""
    anchor = run.chunk_file(0).read("anchor")
    tail = run.chunk_file(next_index - 1).read("tail")
    return FilmState(plan, Anchor(anchor, sampler.embed_anchor(anchor)), tail, next_index)


def film_video(stream: FrameStream, prefix: str = "film") -> str:
    """Encode a film into the host's temporary folder, slice by slice; the file's path."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    path = Path(folder) / f"{prefix}_{time.time_ns():x}.mp4"
    write_video(stream, path, check_cancel=check_cancel)
    return str(path)
