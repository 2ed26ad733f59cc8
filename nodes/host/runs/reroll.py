"""Other takes of chosen chunks of a finished run; the files of all other chunks are left untouched."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ....streaming_core.errors import RunMismatchError, SettingsError
from ....streaming_core.frames import FrameStream
from ....streaming_core.identity import differences, sentence
from ....streaming_core.loop.plan import Beginning, VideoPlan
from ....streaming_core.loop.sampler import ChunkSampler
from ....streaming_core.loop.state import Anchor, VideoState
from ....streaming_core.loop.steps import continue_video, start_video
from ....streaming_core.runs.care import is_intact
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.runs.manifest import ChunkRecord, plain
from ..identity import start_flags_identity, watch
from ..progress import StepProgress, check_cancel
from .handed_out import hand_out
from .paths import runs_root
from .videos import Job, chained_hashes, chunk_identity, kept_beginning, resumed_state, store_chunk, stored

log = logging.getLogger(__name__)
OWNER = "Reroll Chunks"
SEED_MODES = ("new", "given")
SCOPES = ("selected only", "selected and following")


@dataclass(frozen=True)
class RerollRequest:
    """Which chunks are rerolled, and from which seeds.

    `seed_mode`: "new" derives a seed per chunk from `seed`, "given" takes `seed` itself. `scope`: the selected chunks
    only, or also all chunks after them, with the seeds that they have.
    """

    chunks: tuple[int, ...]
    seed_mode: str
    seed: int
    scope: str

    def seed_of(self, index: int, present: int) -> int:
        """The seed of a chunk that had `present`."""
        if index not in self.chunks:
            return present
        if self.seed_mode == "given":
            return self.seed
        digest = hashlib.blake2b(f"reroll:{self.seed}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def all_chunks(self, num_chunks: int) -> tuple[int, ...]:
        """Every chunk that is made again, of a video with `num_chunks`.

        Raises `SettingsError` for chunks that the video does not have.
        """
        if self.chunks[-1] >= num_chunks:
            raise SettingsError(f"chunk {self.chunks[-1]} is not in this video of {num_chunks} chunks (0 is the first)")
        return tuple(range(self.chunks[0], num_chunks)) if self.scope == SCOPES[1] else self.chunks


def reroll(sampler: ChunkSampler, run_name: str, request: RerollRequest) -> FrameStream:
    """Make other takes of chunks of a run and return its video.

    Older takes are kept. What is there already, from the same seed and after the same chunk, is not made again: the
    same request continues where it was interrupted.

    Raises:
        RunMismatchError: `sampler` is not what the run was made with; says what differs.
        SettingsError: chunks that the run does not have, or that cannot be made again.
    """
    with RunFolder.open(runs_root(), run_name, write=True, owner=OWNER) as run:
        job = _job(run, sampler)
        plan = job.plan
        indices = request.all_chunks(plan.num_chunks)
        _refuse_unfinished(run, job.hashes[: indices[-1] + 1])
        progress = StepProgress(max(1, sum(sampler.steps(plan.chunk(index)) for index in indices)))
        maker, same = _Maker(run, replace(job, sampler=sampler.with_progress(progress)), request), 0
        with watch(sampler):
            for index in indices:
                check_cancel()
                seed = request.seed_of(index, _finished(run, index).seed)
                if _is_there(run, index, seed, request):
                    same += 1
                    progress.advance(sampler.steps(plan.chunk(index)))
                    continue
                maker.make(index, seed)
                mm.soft_empty_cache()
        if same:
            what = f"{same} chunk" + "s" * (same > 1)
            log.info("run %s: %s had the seed already; change the seed for other takes", run_name, what)
        stream = run.frames_stream(plan.num_frames)
        hand_out(OWNER, stream, plan.num_chunks)
        return stream


def _job(run: RunFolder, sampler: ChunkSampler) -> Job:
    """The run as Stream Sampler described it, with the sampler that is to make it again."""
    name, identity = run.manifest.name, dict(run.manifest.settings)
    if run.manifest.kind != sampler.family:
        raise RunMismatchError(f"run {name!r} was made by {run.manifest.kind!r}, not {sampler.family!r}")
    try:
        plan = VideoPlan.from_dict(identity.pop("plan"), height=run.manifest.height, width=run.manifest.width)
        video = identity["video"]
    except (KeyError, TypeError, ValueError):
        raise RunMismatchError(f"run {name!r} does not contain its plan; run Stream Sampler with it once") from None
    now = plain({"sampler": sampler.identity(), "video": video, "host": start_flags_identity()})
    if changes := differences(identity, now):
        raise RunMismatchError(
            f"run {name!r} was made with other settings: {sentence(changes)}; connect the chunk sampler that Stream "
            "Sampler made it with"
        )
    return Job.described(sampler, plan, identity)


def _refuse_unfinished(run: RunFolder, wanted: Sequence[str]) -> None:
    for index, settings in enumerate(wanted):
        if run.manifest.choice(index, settings) != _finished(run, index):
            raise _unfinished(run, index, "was made with other settings")


def _finished(run: RunFolder, index: int) -> ChunkRecord:
    """The current take of a chunk; raises `SettingsError` when there is none."""
    record = run.record(index)
    if record is None:
        raise _unfinished(run, index, "is not finished")
    return record


def _unfinished(run: RunFolder, index: int, reason: str) -> SettingsError:
    return SettingsError(
        f"chunk {index} of run {run.manifest.name!r} {reason}; run Stream Sampler first to complete the video"
    )


def _is_there(run: RunFolder, index: int, seed: int, request: RerollRequest) -> bool:
    """Whether the present take is what would be made: from that seed, after the chunk before it, and intact."""
    record = _finished(run, index)
    if record.seed != seed:
        return False
    if index == 0:
        # Whether the anchor changed with the chunk depends on the scope of the request that made it.
        if record.take and record.notes.get("rerolled") != request.scope:
            return False
    elif record.continues not in ("", _finished(run, index - 1).file):
        return False
    return is_intact(run, record)


@dataclass
class _Maker:
    """Makes takes of one run; embeds the anchor once."""

    run: RunFolder
    job: Job
    request: RerollRequest
    anchor: Anchor | None = field(default=None, init=False)

    def make(self, index: int, seed: int) -> None:
        """Make and store another take of chunk `index`, from `seed`."""
        began, job = time.monotonic(), self.job
        plan = job.plan.with_seed(index, seed)
        previous, extra = "", dict[str, Tensor]()
        if index == 0:
            state, frames, extra = self._first_chunk(plan)
        else:
            previous = _finished(self.run, index - 1).settings_hash
            state, frames = continue_video(resumed_state(self.run, job.sampler, plan, index, self.anchor), job.sampler)
        self.anchor = state.anchor if index or self.request.scope == SCOPES[1] else None
        chunk = chunk_identity(job.sampler, plan.chunk(index))
        made, wanted = chained_hashes(job.identity, [chunk], previous)[0], job.hashes[index]
        store_chunk(
            self.run,
            replace(
                job,
                chunk_identities=_put(job.chunk_identities, index, chunk),
                hashes=_put(job.hashes, index, made),
            ),
            index,
            frames,
            state,
            time.monotonic() - began,
            extra,
            stands_for="" if made == wanted else wanted,
            notes={"rerolled": self.request.scope},
        )

    def _first_chunk(self, plan: VideoPlan) -> tuple[VideoState, Tensor, dict[str, Tensor]]:
        """Another take of chunk 0 and what is stored with it; the anchor changes with it only if all chunks do."""
        if plan.given_frames:
            raise SettingsError("chunk 0 of this run is your own start_frames and cannot be rerolled")
        video, file = self.job.identity["video"], self.run.chunk_file(0)
        image, anchor = file.read("start_image"), stored(file, "anchor")
        if image is None and video.get("start_image") is not None:
            raise SettingsError(
                "chunk 0 of this run keeps no start image, so it cannot be rerolled; use another seed in Stream Sampler"
            )
        if self.request.scope == SCOPES[1] and video.get("anchor") is None:
            beginning = Beginning(image, anchor_frame=int(video["anchor_frame"]))
        else:
            beginning = Beginning(image, anchor=anchor)
        plan = replace(plan, beginning=beginning)
        state, frames = start_video(plan, self.job.sampler)
        return state, frames, kept_beginning(plan, state.anchor.frame)


def _put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])
