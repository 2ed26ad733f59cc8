"""Videos on disk: the chunk loop with a run folder under the host's output directory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import comfy.model_management as mm
import folder_paths
from torch import Tensor

from ....streaming_core.errors import RunDamagedError
from ....streaming_core.frames import FrameStream, as_rate, to_rgb, write_video
from ....streaming_core.frames.fitting import Fit
from ....streaming_core.frames.fitting import fit as fit_frames
from ....streaming_core.identity import undescribed
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.plan import Beginning, VideoPlan
from ....streaming_core.loop.sampler import ChunkSampler
from ....streaming_core.loop.state import Anchor, VideoState
from ....streaming_core.loop.steps import continue_video, start_video
from ....streaming_core.runs.care import forget_gone
from ....streaming_core.runs.changes import why_made_again
from ....streaming_core.runs.chunk_file import ChunkFile
from ....streaming_core.runs.content import ChunkContent
from ....streaming_core.runs.folder import RunFolder, settings_hash
from ....streaming_core.runs.takes import kept_rerolls
from ..compat import InputImpl
from ..identity import identities, start_flags_identity, watch
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress, check_cancel, frames_bar
from .handed_out import hand_out, hand_out_encoded
from .paths import runs_root

log = logging.getLogger(__name__)
OWNER = "Stream Sampler"
CARRY = "carry."
"""What the names of stored tensors of `VideoState.carry` begin with."""


def plan_video(
    num_frames: int,
    chunk_frames: int,
    overlap_frames: int,
    width: int,
    height: int,
    fit: Fit,
    seed: int,
    anchor_frame: int,
    fps: float = 12.0,
    start_image: Tensor | None = None,
    start_frames: Tensor | None = None,
    anchor: Tensor | None = None,
    plan: VideoPlan | None = None,
) -> VideoPlan:
    """The plan that a node's inputs describe; what a connected `plan` says takes the place of the widgets.

    `start_image`, `start_frames`, `anchor`: IMAGE batches of any size; of the first only its first frame counts.
    """

    def fitted(images: Tensor | None) -> Tensor | None:
        return None if images is None else _fitted(images, height, width, fit)

    image = None if start_image is None else start_image[:1]
    beginning = Beginning(fitted(image), fitted(start_frames), fitted(anchor), anchor_frame)
    known: dict[str, Any] = {"height": height, "width": width, "beginning": beginning, "fit": fit}
    if plan is not None:
        return replace(plan, **known)
    return VideoPlan(num_frames, chunk_frames, overlap_frames, seed, as_rate(fps), **known)


def _fitted(images: Tensor, height: int, width: int, fit: Fit) -> Tensor:
    return fit_frames(images_to_core(to_rgb(images)), height, width, fit)


@dataclass(frozen=True)
class Job:
    """One run of a video, described once: who makes it, what each chunk is made with, under which hash.

    Attributes:
        sampler, plan: as `ChunkSampler.accept` left the plan.
        identity: what all chunks are made with, readable.
        chunk_identities: what decides each chunk besides, readable.
        hashes: the settings hash of each chunk. It holds the hash of the chunk before, so that a change makes
            everything after it again.
    """

    sampler: ChunkSampler
    plan: VideoPlan
    identity: dict[str, Any]
    chunk_identities: tuple[Mapping[str, Any], ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, sampler: ChunkSampler, plan: VideoPlan) -> Job:
        """Raises `SettingsError` where the sampler cannot follow the plan."""
        plan = sampler.accept(plan)
        return cls.described(sampler, plan, run_identity(sampler, plan))

    @classmethod
    def described(cls, sampler: ChunkSampler, plan: VideoPlan, identity: dict[str, Any]) -> Job:
        """The job of an accepted plan whose `run_identity` is known."""
        chunks = tuple(chunk_identity(sampler, chunk) for chunk in plan.chunks)
        return cls(sampler, plan, identity, chunks, chained_hashes(identity, chunks))


def run_identity(sampler: ChunkSampler, plan: VideoPlan) -> dict[str, Any]:
    """Everything that all chunks of a video depend on."""
    beginning = plan.beginning
    video = {
        "chunk_frames": plan.chunk_frames,
        "overlap_frames": plan.overlap_frames,
        "width": plan.width,
        "height": plan.height,
        "anchor_frame": beginning.anchor_frame if beginning.anchor is None else None,
        **identities(start_image=beginning.image, start_frames=beginning.frames, anchor=beginning.anchor),
    }
    return {"sampler": dict(sampler.identity()), "video": video, "host": start_flags_identity()}


def chunk_identity(sampler: ChunkSampler, chunk: Chunk) -> dict[str, Any]:
    """What decides this chunk besides."""
    return {**sampler.chunk_identity(chunk), "seed": chunk.seed, "index": chunk.index}


def chained_hashes(
    identity: Mapping[str, Any], chunks: Iterable[Mapping[str, Any]], previous: str = ""
) -> tuple[str, ...]:
    """The settings hashes of chunks in a row; `previous` is that of the chunk before the first of them."""
    hashes: list[str] = []
    for chunk in chunks:
        previous = settings_hash({"run": identity, "chunk": chunk}, previous=previous)
        hashes.append(previous)
    return tuple(hashes)


def make_video(sampler: ChunkSampler, plan: VideoPlan, run_name: str) -> FrameStream:
    """Make a video, or what is missing of it, into its run folder. Memory does not grow with its length.

    An empty `run_name` is replaced by one made from the settings, so the same video again is found again.
    """
    job = Job.of(sampler, plan)
    plan = job.plan
    with RunFolder.open_or_create(
        runs_root(),
        run_name.strip() or f"{sampler.family}_{job.hashes[0][:10]}",
        {**job.identity, "plan": plan.to_dict()},
        kind=sampler.family,
        height=plan.height,
        width=plan.width,
        fps=plan.fps,
        num_frames=plan.num_frames,
        owner=OWNER,
    ) as run:
        try:
            _fill(run, job)
        except BaseException:
            run.discard_if_empty()  # nothing is worth keeping of a run that never finished a chunk
            raise
        stream = run.frames_stream(plan.num_frames)
        hand_out(OWNER, stream, plan.num_chunks)
        return stream


def _fill(run: RunFolder, job: Job) -> None:
    """Make the chunks that the run lacks, one after the other."""
    missing = select_chunks(run, job)
    if not missing:
        return
    plan = job.plan
    steps = [
        0 if index == 0 and plan.beginning.frames is not None else job.sampler.steps(plan.chunk(index))
        for index in range(plan.num_chunks)
    ]
    progress = StepProgress(max(1, sum(steps)))
    sampler = job.sampler.with_progress(progress)
    progress.advance(sum(steps) - sum(steps[index] for index in missing))
    state: VideoState | None = None
    with watch(job.sampler):
        for index in missing:
            check_cancel()
            began = time.monotonic()
            extra: dict[str, Tensor] = {}
            if index == 0:
                state, frames = start_video(plan, sampler)
                extra = kept_beginning(plan, state.anchor.frame)
            else:
                if state is None or state.num_chunks != index:
                    state = resumed_state(run, sampler, plan, index)
                state, frames = continue_video(state, sampler)
            seconds = time.monotonic() - began
            store_chunk(run, job, index, frames, state, seconds, extra=extra)
            del frames
            mm.soft_empty_cache()


def store_chunk(
    run: RunFolder,
    job: Job,
    index: int,
    frames: Tensor,
    state: VideoState,
    seconds: float,
    extra: Mapping[str, Tensor],
    **options: Any,
) -> None:
    """Store a chunk's core frames and what `state`, the one after it, hands on; `options` as of `write_chunk`."""
    carried = {CARRY + name: value for name, value in state.carry.items()}
    seam = min(len(frames), state.plan.overlap_frames)
    lead = None if state.lead is None else core_to_images(state.lead)
    run.write_chunk(
        index,
        ChunkContent(core_to_images(frames), state.tail, {**extra, **carried}, seam, lead),
        settings_hash=job.hashes[index],
        identity=job.identity,
        own=job.chunk_identities[index],
        seconds=seconds,
        **options,
    )


class Described(Protocol):
    """What the chunks of a run are made with, readable, and under which hashes."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def chunk_identities(self) -> tuple[Mapping[str, Any], ...]: ...

    @property
    def hashes(self) -> tuple[str, ...]: ...


def select_chunks(run: RunFolder, job: Described) -> tuple[int, ...]:
    """The chunks that must be made; says in the log what is reused, and what changed where something is not."""
    before, num_chunks = run.manifest, len(job.hashes)
    if gone := forget_gone(run):
        files = ", ".join(record.file for record in gone)
        log.warning("run %s: %s is gone; what the video needs of it is made again", before.name, files)
    missing = run.select(job.hashes)
    if len(missing) < num_chunks:
        reused = f"{num_chunks - len(missing)} of {num_chunks} chunks are reused"
        log.info("run %s: %s", before.name, "; ".join(filter(None, (reused, kept_rerolls(run.manifest, missing)))))
    if changes := why_made_again(before, missing, job.identity, job.chunk_identities):
        log.info("run %s: %s; the takes that were there are kept", before.name, changes)
    if unknown := undescribed(dict(job.identity)):
        log.info("run %s: changes inside of %s are not noticed", before.name, ", ".join(unknown))
    return missing


def kept_beginning(plan: VideoPlan, anchor: Tensor) -> dict[str, Tensor]:
    """What is stored with chunk 0: the anchor, and the image that it was made from, so that it can be rerolled."""
    if plan.beginning.image is None:
        return {"anchor": anchor}
    return {"anchor": anchor, "start_image": plan.beginning.image}


def resumed_state(
    run: RunFolder, sampler: ChunkSampler, plan: VideoPlan, next_index: int, anchor: Anchor | None = None
) -> VideoState:
    """The state as it was when chunk `next_index - 1` had been stored; `anchor` spares embedding it again."""
    if anchor is None:
        frame = stored(run.chunk_file(0), "anchor")
        anchor = Anchor(frame, sampler.embed_anchor(frame))
    last = run.chunk_file(next_index - 1)
    carry = {key.removeprefix(CARRY): stored(last, key) for key in last.keys() if key.startswith(CARRY)}
    return VideoState(plan, anchor, stored(last, "tail"), next_index, carry)


def stored(file: ChunkFile, key: str) -> Tensor:
    """A tensor that every chunk file of a run by this pack holds. Raises `RunDamagedError` where it is missing."""
    tensor = file.read(key)
    if tensor is None:
        raise RunDamagedError(f"{file.path} holds no {key}; run Stream Sampler with another run_name")
    return tensor


class RunVideo(InputImpl.VideoFromFile):
    """A run's video as the host's VIDEO, encoded into the temporary folder when it is first asked for anything."""

    def __init__(self, stream: FrameStream):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there: what the host's class would have set, which it needs in all it does.
        if not name.startswith("_") or name.startswith("__") or "_stream" not in self.__dict__:
            raise AttributeError(name)
        path = encode_run(self._stream)
        hand_out_encoded(getattr(self._stream, "run_name", ""), path)
        super().__init__(path)
        del self._stream
        return getattr(self, name)


def encode_run(stream: FrameStream, prefix: str = "video") -> str:
    """Encode a stream into the host's temporary folder, slice by slice; the file's path."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    path = Path(folder) / f"{prefix}_{time.time_ns():x}.mp4"
    write_video(stream, path, check_cancel=check_cancel, progress=frames_bar(stream))
    return str(path)
