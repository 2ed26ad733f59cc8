"""Videos on disk: the chunk loop with a run folder under the host's output directory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import comfy.model_management as mm
import folder_paths
from torch import Tensor

from ....streaming_core.errors import RunFolderError, RunMismatchError, SettingsError, StreamingError
from ....streaming_core.frames import FrameStream, to_rgb, write_video
from ....streaming_core.frames.fitting import fit
from ....streaming_core.loop.chunk import Chunk, ChunkPlan
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.script import Script
from ....streaming_core.loop.state import Anchor, VideoState, as_clip, continue_video, pick_anchor, start_video
from ....streaming_core.runs.folder import RunFolder, settings_hash
from ....streaming_core.runs.resume import drawn_anew, missing_chunks
from ..compat import InputImpl
from ..fingerprint import tensor_fingerprint
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress, check_cancel, frames_bar

log = logging.getLogger(__name__)
RUNS_FOLDER = "streaming_runs"
MEMORY = "memory."
"""What the names of stored tensors of `VideoState.memory` begin with."""


def runs_root() -> Path:
    """The folder under the host's output directory that holds all run folders."""
    return Path(folder_paths.get_output_directory()) / RUNS_FOLDER


@dataclass(frozen=True)
class VideoRequest:
    """What a video shall be: its length, chunks, size and beginning.

    `start_image` and `first_clip` are IMAGE batches of any size; one of them is needed, and the clip wins. `anchor`: an
    IMAGE instead of frame `anchor_frame` of the first clip. `script`: what differs from chunk to chunk.
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
    script: Script = Script()

    @classmethod
    def of(cls, plan: VideoPlan | None = None, **widgets) -> VideoRequest:
        """From a node's inputs; what a connected plan says counts."""
        if plan is None:
            return cls(**widgets)
        sizes = {name: getattr(plan, name) for name in ("num_frames", "chunk_frames", "overlap_frames", "seed")}
        return cls(**{**widgets, **sizes, "script": plan.script})

    def made_by(self, sampler) -> VideoRequest:
        """The same in chunks of lengths that the sampler's model has."""
        fit_lengths = getattr(sampler, "fit_lengths", None)
        if fit_lengths is None:
            return self
        chunk_frames, overlap_frames = fit_lengths(self.chunk_frames, self.overlap_frames)
        return replace(self, chunk_frames=chunk_frames, overlap_frames=overlap_frames)

    def fitted(self, images: Tensor) -> Tensor:
        """Any IMAGE as core frames of the video's size."""
        return fit(images_to_core(to_rgb(images)), self.height, self.width, self.fit)

    def plan(self) -> ChunkPlan:
        """Raises `SettingsError` for lengths that cannot work, before anything heavy runs."""
        first = self.chunk_frames if self.first_clip is None else self.first_clip.shape[0]
        return ChunkPlan(self.num_frames, self.chunk_frames, self.overlap_frames, first, self.seed, self.script)

    def video_plan(self, fps: Fraction) -> VideoPlan:
        """The request's plan in the form that manifests keep."""
        return VideoPlan(self.num_frames, self.chunk_frames, self.overlap_frames, self.seed, fps, self.script)

    def check(self, multiple_px: int, starts_from_prompt: bool = False, starts_from_image: bool = True) -> None:
        """Raise `SettingsError` unless the request can be met by a model that works in multiples of `multiple_px`.

        `starts_from_prompt`, `starts_from_image`: what the model can make its first chunk from.
        """
        if not starts_from_image and self.start_image is not None and self.first_clip is None:
            raise SettingsError(
                "this model makes the first chunk from the prompt, not from start_image; make frames from that image "
                "with another model and connect them to first_clip"
            )
        if self.start_image is None and self.first_clip is None and not starts_from_prompt:
            raise SettingsError("nothing to start from: connect start_image or first_clip")
        for side, value in (("width", self.width), ("height", self.height)):
            if value < multiple_px or value % multiple_px:
                nearest = max(multiple_px, round(value / multiple_px) * multiple_px)
                raise SettingsError(f"{side} must be a multiple of {multiple_px} pixels, got {value}; try {nearest}")


def check_request(sampler, request: VideoRequest) -> None:
    """Raise `SettingsError` unless `sampler` can make the video."""
    from_prompt = getattr(sampler, "starts_from_prompt", False)
    request.check(sampler.multiple_px, from_prompt, getattr(sampler, "starts_from_image", not from_prompt))
    for name, cues in (("prompt", "prompts"), ("cam_strength",) * 2, ("anchor_strength",) * 2):
        if getattr(request.script, cues) and name not in getattr(sampler, "follows", ()):
            log.warning("%s does not support the plan's %s, which is ignored", sampler.kind, name.replace("_", " "))


def begin_video(sampler, request: VideoRequest) -> tuple[VideoState, Tensor]:
    """The first clip (made from the start image unless given) and the state that continues it."""
    request = request.made_by(sampler)
    check_request(sampler, request)
    plan = request.plan()
    if request.first_clip is not None:
        first = request.fitted(request.first_clip)
    elif request.start_image is None:
        first = sampler.sample_first_clip(plan.chunk(0), request.height, request.width)
    else:
        first = sampler.sample_first_clip(plan.chunk(0), request.fitted(request.start_image[:1]))
    clip = as_clip(first)
    if request.anchor is not None:
        several = getattr(sampler, "averages_anchors", False)
        anchor = request.fitted(request.anchor if several else request.anchor[:1])
    else:
        anchor = pick_anchor(clip.frames, request.anchor_frame)
    return start_video(plan, clip, anchor, sampler), clip.frames


def run_settings(sampler, request: VideoRequest) -> dict:
    """Everything a chunk depends on, in words and numbers, besides its index and the chunks before it."""
    images = {name: getattr(request, name) for name in ("start_image", "first_clip", "anchor")}
    return {
        "sampler": sampler.settings(),
        "chunk_frames": request.chunk_frames,
        "overlap_frames": request.overlap_frames,
        "width": request.width,
        "height": request.height,
        "fit": request.fit,
        "seed": request.seed,
        "anchor_frame": request.anchor_frame,
        **{name: None if batch is None else tensor_fingerprint(batch) for name, batch in images.items()},
    }


def chunk_hash(sampler, settings: dict, chunk: Chunk, previous: str = "") -> str:
    """The settings hash of one chunk. It holds the one of the chunk before: a change re-makes everything behind it."""
    family = sampler.chunk_settings(chunk) if hasattr(sampler, "chunk_settings") else {}
    own = {**family, "seed": chunk.seed, "index": chunk.index}
    return settings_hash({**settings, **own}, previous=previous)


def chunk_hashes(sampler, settings: dict, chunks: Sequence[Chunk]) -> list[str]:
    """Settings hashes of the first chunks of a video."""
    hashes: list[str] = []
    for chunk in chunks:
        hashes.append(chunk_hash(sampler, settings, chunk, hashes[-1] if hashes else ""))
    return hashes


def make_video(sampler, request: VideoRequest, run_name: str, fps: float) -> FrameStream:
    """Make a video, or what is missing of it, into its run folder. Memory does not grow with its length.

    An empty `run_name` is replaced by one made from the settings, so the same video again is found again.
    """
    request = request.made_by(sampler)
    check_request(sampler, request)
    plan = request.plan()
    settings = run_settings(sampler, request)
    hashes = chunk_hashes(sampler, settings, plan.chunks)
    fps = Fraction(fps).limit_denominator(1001)
    name = run_name.strip() or f"{sampler.kind}_{hashes[0][:10]}"
    refuse_other_model(name, settings)
    with RunFolder.open_or_create(
        runs_root(),
        name,
        {**settings, "plan": request.video_plan(fps).to_dict()},
        kind=sampler.kind,
        height=request.height,
        width=request.width,
        fps=fps,
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


def reroll_stamp(run_name: str) -> tuple:
    """Which chunks of a run were rerolled: changes when Reroll Chunks or Run Inspector changed the video."""
    try:
        manifest = RunFolder.open(runs_root(), run_name).manifest
    except StreamingError:
        return ()
    return tuple((record.index, record.revision) for record in manifest.chunks if record.revision)


def refuse_other_model(name: str, settings: dict) -> None:
    """Raise `RunMismatchError` when a run of this name was made by another model."""
    try:
        with RunFolder.open(runs_root(), name) as run:
            made_with = run.manifest.settings.get("sampler", {}).get("models")
    except RunFolderError:
        return  # not there, or not readable: open_or_create says what is wrong with it
    if made_with not in (None, settings["sampler"]["models"]):
        raise RunMismatchError(
            f"run {name!r} was made with other model weights; choose another run_name or connect the original model"
        )


def _fill(run: RunFolder, sampler, request: VideoRequest, plan: ChunkPlan, hashes: list[str]) -> None:
    missing = missing_chunks(run.path, run.manifest, hashes)
    if len(missing) < plan.num_chunks:
        reused = f"{plan.num_chunks - len(missing)} of {plan.num_chunks} chunks are reused"
        log.info("run %s: %s", run.manifest.name, "; ".join(filter(None, (reused, drawn_anew(run.manifest, missing)))))
    if not missing:
        return
    steps = [
        0 if index == 0 and request.first_clip is not None else sampler.steps(plan.chunk(index))
        for index in range(plan.num_chunks)
    ]
    progress = StepProgress(max(1, sum(steps)))
    sampler = sampler.with_progress(progress)
    progress.advance(sum(steps) - sum(steps[index] for index in missing))
    state: VideoState | None = None
    for index in missing:
        check_cancel()
        began, extra = time.monotonic(), None
        if index == 0:
            state, frames = begin_video(sampler, request)
            extra = kept_beginning(request, state.anchor.frame)
        else:
            if state is None or state.num_chunks != index:
                state = resumed_state(run, sampler, plan, index)
            state, frames = continue_video(state, sampler)
        seconds = time.monotonic() - began
        store_chunk(run, plan.chunk(index), hashes[index], frames, state, seconds, extra=extra)
        del frames
        mm.soft_empty_cache()


def kept_beginning(request: VideoRequest, anchor: Tensor) -> dict[str, Tensor]:
    """What is stored with the first clip: the anchor, and the image it was made from, to draw it anew."""
    if request.start_image is None or request.first_clip is not None:
        return {"anchor": anchor}
    return {"anchor": anchor, "start_image": request.fitted(request.start_image[:1])}


def store_chunk(
    run: RunFolder, chunk: Chunk, settings_hash: str, frames: Tensor, state: VideoState, seconds: float, **options
) -> None:
    """Store a chunk's core frames and what `state`, the one after it, hands on; `options` as of `write_chunk`."""
    remembered = {MEMORY + name: value for name, value in state.memory.items()}
    run.write_chunk(
        chunk.index,
        settings_hash=settings_hash,
        seed=chunk.seed,
        frames=core_to_images(frames),
        tail=state.tail,
        seconds=seconds,
        replace_existing=True,
        seam_frames=min(len(frames), state.plan.overlap_frames),
        **{**options, "extra": {**(options.get("extra") or {}), **remembered} or None},
    )


def resumed_state(
    run: RunFolder, sampler, plan: ChunkPlan, next_index: int, anchor: Anchor | None = None
) -> VideoState:
    """The state as it was when chunk `next_index - 1` had been stored; `anchor` spares embedding it again."""
    if anchor is None:
        frame = run.chunk_file(0).read("anchor")
        anchor = Anchor(frame, sampler.embed_anchor(frame))
    last = run.chunk_file(next_index - 1)
    memory = {key.removeprefix(MEMORY): last.read(key) for key in last.keys() if key.startswith(MEMORY)}
    return VideoState(plan, anchor, last.read("tail"), next_index, memory)


class RunVideo(InputImpl.VideoFromFile):
    """A video as the host's VIDEO, encoded into the temporary folder when it is first asked for anything."""

    def __init__(self, stream: FrameStream):
        self._stream = stream

    def __getattr__(self, name: str):
        # Asked only for what is not there: what the host's class would have set, which it needs in all it does.
        if not name.startswith("_") or name.startswith("__") or "_stream" not in self.__dict__:
            raise AttributeError(name)
        super().__init__(encode_run(self._stream))
        del self._stream
        return getattr(self, name)


def encode_run(stream: FrameStream, prefix: str = "video") -> str:
    """Encode a video into the host's temporary folder, slice by slice; the file's path."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    path = Path(folder) / f"{prefix}_{time.time_ns():x}.mp4"
    write_video(stream, path, check_cancel=check_cancel, progress=frames_bar(stream))
    return str(path)
