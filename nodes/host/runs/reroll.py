"""Other takes of chosen chunks of a finished run; the files of all other chunks are left untouched."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ....streaming_core.runs.manifest import plain
from ..identity import start_flags_identity, watch
from ..progress import StepProgress, check_cancel
from .handed_out import hand_out
from .paths import runs_root
from .reroll_gaps import GapMaker, is_of_gaps
from .reroll_request import SCOPES, SEED_MODES, RerollRequest, TakeMaker, finished, unfinished
from .videos import Job, chained_hashes, chunk_identity, kept_beginning, resumed_state, store_chunk, stored

__all__ = ["OWNER", "SCOPES", "SEED_MODES", "RerollRequest", "reroll"]

log = logging.getLogger(__name__)
OWNER = "Reroll Chunks"


def reroll(sampler: ChunkSampler, run_name: str, request: RerollRequest) -> FrameStream:
    """Make other takes of chunks of a run and return its video.

    Older takes are kept. What is there already, from the same seed and after the same chunk, is not made again: the
    same request continues where it was interrupted.

    Raises:
        RunMismatchError: `sampler` is not what the run was made with; says what differs.
        SettingsError: chunks that the run does not have, or that cannot be made again.
    """
    with RunFolder.open(runs_root(), run_name, write=True, owner=OWNER) as run:
        kind: type[TakeMaker] = GapMaker if is_of_gaps(run) else ChunkMaker
        maker = kind.of(run, sampler, request)
        indices = request.all_chunks(maker.num_chunks)
        maker.refuse_unfinished(indices)
        progress, same = StepProgress(max(1, sum(maker.steps(index) for index in indices))), 0
        maker = maker.with_progress(progress)
        with watch(sampler):
            for index in indices:
                check_cancel()
                seed = request.seed_of(index, finished(run, index).seed)
                if maker.is_there(index, seed):
                    same += 1
                    progress.advance(maker.steps(index))
                    continue
                maker.make(index, seed)
                mm.soft_empty_cache()
        if same:
            what = f"{same} chunk" + "s" * (same > 1)
            log.info("run %s: %s had the seed already; change the seed for other takes", run_name, what)
        stream = run.frames_stream(maker.num_frames)
        hand_out(OWNER, stream, maker.num_chunks)
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


@dataclass
class ChunkMaker(TakeMaker):
    """Makes takes of a run of Stream Sampler; embeds the anchor once."""

    run: RunFolder
    job: Job
    request: RerollRequest
    anchor: Anchor | None = None

    @classmethod
    def of(cls, run: RunFolder, sampler: ChunkSampler, request: RerollRequest) -> ChunkMaker:
        return cls(run, _job(run, sampler), request)

    @property
    def num_chunks(self) -> int:
        return self.job.plan.num_chunks

    @property
    def num_frames(self) -> int:
        return self.job.plan.num_frames

    def steps(self, index: int) -> int:
        return self.job.sampler.steps(self.job.plan.chunk(index))

    def with_progress(self, progress: StepProgress) -> ChunkMaker:
        return replace(self, job=replace(self.job, sampler=self.job.sampler.with_progress(progress)))

    def refuse_unfinished(self, indices: Sequence[int]) -> None:
        for index, settings in enumerate(self.job.hashes[: indices[-1] + 1]):
            if self.run.manifest.choice(index, settings) != finished(self.run, index):
                raise unfinished(self.run, index, "was made with other settings")

    def is_there(self, index: int, seed: int) -> bool:
        record = finished(self.run, index)
        if record.seed != seed:
            return False
        if index == 0:
            # Whether the anchor changed with the chunk depends on the scope of the request that made it.
            if record.take and record.notes.get("rerolled") != self.request.scope:
                return False
        elif record.continues not in ("", finished(self.run, index - 1).file):
            return False
        return is_intact(self.run, record)

    def make(self, index: int, seed: int) -> None:
        began, job = time.monotonic(), self.job
        plan = job.plan.with_seed(index, seed)
        previous, extra = "", dict[str, Tensor]()
        if index == 0:
            state, frames, extra = self._first_chunk(plan)
        else:
            previous = finished(self.run, index - 1).settings_hash
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
