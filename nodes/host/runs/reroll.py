"""New takes of chunks of a finished run; the files of other chunks are not touched."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management as mm
from torch import Tensor

from ....streaming_core.errors import RunMismatchError, SettingsError
from ....streaming_core.frames import FrameStream
from ....streaming_core.loop.chunk import ChunkPlan
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.state import Anchor, VideoState, as_clip, continue_video, pick_anchor, start_video
from ....streaming_core.runs.care import is_intact
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.runs.manifest import plain
from ..progress import StepProgress, check_cancel
from .videos import chunk_hash, chunk_hashes, refuse_other_model, resumed_state, runs_root, store_chunk

log = logging.getLogger(__name__)
SEED_MODES = ("new", "given")
SCOPES = ("selected only", "selected and following")


@dataclass(frozen=True)
class RerollRequest:
    """Which chunks are rerolled, and with which seeds.

    `seed_mode`: "new" derives a seed per chunk from `seed`, "given" takes `seed` itself. `scope`: "selected
    only", or "selected and following", which makes later chunks again with their own seeds.
    """

    chunks: tuple[int, ...]
    seed_mode: str
    seed: int
    scope: str

    def seed_of(self, index: int, own: int) -> int:
        """The seed of a chunk that had `own`."""
        if index not in self.chunks:
            return own
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


def reroll(sampler, run_name: str, request: RerollRequest) -> FrameStream:
    """Reroll chunks of a run and return its video.

    Older takes are kept. A take that exists, from the same seed and after the same chunk, is not made again: the same
    request continues where it was interrupted. Raises `RunMismatchError` unless `sampler` is what the run was made
    with, `SettingsError` for chunks that the run does not have.
    """
    with RunFolder.open(runs_root(), run_name, write=True, owner="Reroll Chunks") as run:
        settings = dict(run.manifest.settings)
        video = _video_plan(run, settings)
        _refuse_other_settings(sampler, run, settings)
        first = run.record(0)
        if first is None:
            raise SettingsError(f"run {run_name!r} has no finished chunk yet; run Stream Sampler first")
        plan = video.begin(first.num_frames)
        wanted = chunk_hashes(sampler, settings, plan.chunks)
        indices = request.all_chunks(plan.num_chunks)
        _refuse_unfinished(run, wanted[: indices[-1] + 1])
        progress = StepProgress(max(1, sum(sampler.steps(plan.chunk(index)) for index in indices)))
        maker, same = _Maker(run, sampler.with_progress(progress), settings, request), 0
        for index in indices:
            check_cancel()
            seed = request.seed_of(index, run.record(index).seed)
            if _is_there(run, index, seed, request):
                same += 1
                progress.advance(sampler.steps(plan.chunk(index)))
                continue
            maker.make(plan.with_seed(index, seed), index, wanted[index])
            mm.soft_empty_cache()
        if same:
            log.info(
                "run %s: %d takes with this seed exist already and are reused; change the seed for new ones",
                run_name,
                same,
            )
        return run.frames_stream(video.num_frames)


def _video_plan(run: RunFolder, settings: dict) -> VideoPlan:
    try:
        return VideoPlan.from_dict(settings.pop("plan"))
    except (KeyError, TypeError, ValueError):
        raise RunMismatchError(
            f"run {run.manifest.name!r} does not contain its plan; run Stream Sampler with it once"
        ) from None


def _refuse_other_settings(sampler, run: RunFolder, settings: dict) -> None:
    have, want = settings["sampler"], plain(sampler.settings())
    if run.manifest.kind != sampler.kind:
        raise RunMismatchError(f"run {run.manifest.name!r} was made by {run.manifest.kind!r}, not {sampler.kind!r}")
    refuse_other_model(run.manifest.name, {"sampler": want})
    if other := [name for name in want if want[name] != have.get(name)]:
        raise RunMismatchError(
            f"run {run.manifest.name!r} was made with different {' and '.join(other)}; connect the chunk sampler "
            "that Stream Sampler made it with"
        )


def _refuse_unfinished(run: RunFolder, wanted: Sequence[str]) -> None:
    for index, each in enumerate(wanted):
        record = run.record(index)
        if record is None or not record.accepts(each):
            what = "is not finished" if record is None else "was made with other settings"
            raise SettingsError(
                f"chunk {index} of run {run.manifest.name!r} {what}; run Stream Sampler first to complete the video"
            )


def _is_there(run: RunFolder, index: int, seed: int, request: RerollRequest) -> bool:
    """Whether the existing take is what would be made: from that seed, after the current previous chunk, and intact."""
    record = run.record(index)
    if record.seed != seed:
        return False
    if index == 0:
        # Whether the anchor changed with the chunk depends on the scope of the request that made it.
        if record.revision and record.notes.get("drawn") != request.scope:
            return False
    elif record.continues not in ("", run.record(index - 1).file):
        return False
    return is_intact(run, record)


@dataclass
class _Maker:
    """Makes chunks of one run; embeds the anchor once."""

    run: RunFolder
    sampler: object
    settings: dict
    request: RerollRequest
    anchor: Anchor | None = None

    def make(self, plan: ChunkPlan, index: int, wanted: str) -> None:
        """Make and store chunk `index`, which stands for the one with the settings hash `wanted`."""
        began, chunk, extra, previous = time.monotonic(), plan.chunk(index), None, ""
        if index == 0:
            state, frames, extra = self._first_clip(plan)
        else:
            previous = self.run.record(index - 1).settings_hash
            state, frames = continue_video(
                resumed_state(self.run, self.sampler, plan, index, self.anchor), self.sampler
            )
        self.anchor = state.anchor if index or self.request.scope == SCOPES[1] else None
        own = chunk_hash(self.sampler, self.settings, chunk, previous)
        store_chunk(
            self.run,
            chunk,
            own,
            frames,
            state,
            time.monotonic() - began,
            extra=extra,
            keep_old=True,
            stands_for="" if own == wanted else wanted,
            notes={"drawn": self.request.scope},
        )

    def _first_clip(self, plan: ChunkPlan) -> tuple[VideoState, Tensor, dict[str, Tensor]]:
        """A new first chunk and what is stored with it; the anchor changes only if all chunks do."""
        manifest, chunk = self.run.manifest, plan.chunk(0)
        if self.settings.get("first_clip") is not None:
            raise SettingsError("chunk 0 of this run is your own video and cannot be rerolled")
        kept = self._beginning()
        if "start_image" in kept:
            first = self.sampler.sample_first_clip(chunk, kept["start_image"])
        else:
            first = self.sampler.sample_first_clip(chunk, manifest.height, manifest.width)
        clip = as_clip(first)
        if self.request.scope == SCOPES[1] and self.settings.get("anchor") is None:
            kept["anchor"] = pick_anchor(clip.frames, self.settings["anchor_frame"])
        return start_video(plan, clip, kept["anchor"], self.sampler), clip.frames, kept

    def _beginning(self) -> dict[str, Tensor]:
        file = self.run.chunk_file(0)
        found = {name: file.read(name) for name in ("anchor", "start_image")}
        if found["start_image"] is None and self.settings.get("start_image") is not None:
            raise SettingsError(
                "the first chunk of this run has no stored start image, so it cannot be rerolled; use another seed in "
                "Stream Sampler"
            )
        return {name: tensor for name, tensor in found.items() if tensor is not None}
