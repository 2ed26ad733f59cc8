"""Other takes of single gaps between keyframes: from the gap's own file, whatever became of the keyframes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....streaming_core.errors import RunMismatchError, SettingsError
from ....streaming_core.identity import differences, sentence
from ....streaming_core.loop.fillers import Filler, SampledGaps
from ....streaming_core.loop.hierarchy import GapPlan
from ....streaming_core.loop.sampler import ChunkSampler
from ....streaming_core.runs.care import is_intact
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.runs.gaps import gap_content, stored_ends
from ....streaming_core.runs.manifest import plain
from ..progress import StepProgress
from .gaps import OWNER, gap_hash, gap_identity, gaps_identity, made_between
from .reroll_request import SCOPES, RerollRequest, TakeMaker, finished, unfinished

_KIND = " gaps"


def is_of_gaps(run: RunFolder) -> bool:
    """Whether a run holds gaps between keyframes."""
    return run.manifest.kind.endswith(_KIND)


@dataclass
class GapMaker(TakeMaker):
    """Makes takes of a run of Fill Between."""

    run: RunFolder
    filler: Filler
    plan: GapPlan
    identity: Mapping[str, Any]
    request: RerollRequest
    progress: StepProgress | None = None

    @classmethod
    def of(cls, run: RunFolder, sampler: ChunkSampler, request: RerollRequest) -> GapMaker:
        manifest = run.manifest
        if request.scope != SCOPES[0]:
            raise SettingsError(
                f"run {manifest.name!r} holds gaps between keyframes, which no other gap follows from; set scope to "
                f"{SCOPES[0]!r}"
            )
        if manifest.kind != sampler.family + _KIND:
            raise RunMismatchError(_other_kind(run, sampler))
        identity = dict(manifest.settings)
        try:
            plan = GapPlan.from_dict(identity.pop("plan"))
        except (KeyError, TypeError, ValueError):
            raise RunMismatchError(
                f"run {manifest.name!r} does not contain its plan; run {OWNER} with it once"
            ) from None
        filler = SampledGaps(sampler, plan.stride)
        now = plain(
            gaps_identity(filler, replace(plan, model_frames=filler.model_frames), (manifest.height, manifest.width))
        )
        if changes := differences(identity, now):
            raise RunMismatchError(
                f"run {manifest.name!r} was made with other settings: {sentence(changes)}; connect the chunk sampler "
                f"that {OWNER} made it with"
            )
        return cls(run, filler, plan, identity, request)

    @property
    def num_chunks(self) -> int:
        return self.plan.num_gaps

    @property
    def num_frames(self) -> int:
        return self.plan.num_frames

    def steps(self, index: int) -> int:
        return self.filler.steps(self.plan.chunk(index))

    def with_progress(self, progress: StepProgress) -> GapMaker:
        return replace(self, filler=self.filler.with_progress(progress), progress=progress)

    def refuse_unfinished(self, indices: Sequence[int]) -> None:
        for index in range(self.num_chunks):  # the others are only shown, but without them there is no video to return
            finished(self.run, index)
        for index in indices:
            if not finished(self.run, index).accepts(self.run.manifest.wanted[index]):
                raise unfinished(self.run, index, "was made for other keyframes or settings", OWNER)

    def is_there(self, index: int, seed: int) -> bool:
        record = finished(self.run, index)
        return record.seed == seed and is_intact(self.run, record)

    def make(self, index: int, seed: int) -> None:
        began, record = time.monotonic(), finished(self.run, index)
        plan, wanted = self.plan.with_seed(index, seed), self.run.manifest.wanted[index]
        ends = stored_ends(record.file_in(self.run.path))
        digests = str(record.own["first keyframe"]), str(record.own["last keyframe"])
        own = gap_identity(self.filler, plan, index, *digests)
        made = gap_hash(self.identity, own)
        between = made_between(self.filler, ends, plan, index, self.progress)
        self.run.write_chunk(
            index,
            gap_content(index, ends, between),
            settings_hash=made,
            identity=self.identity,
            own=own,
            stands_for="" if made == wanted else wanted,
            independent=True,
            seconds=time.monotonic() - began,
            notes={"rerolled": self.request.scope},
        )


def _other_kind(run: RunFolder, sampler: ChunkSampler) -> str:
    name, kind = run.manifest.name, run.manifest.kind
    if kind == "interpolated gaps":
        return (
            f"run {name!r} was filled by an interpolation model, which makes the same frames every time, so there is "
            f"nothing to reroll; fill it with a chunk sampler in {OWNER}"
        )
    return f"run {name!r} was filled by {kind.removesuffix(_KIND)!r}, not {sampler.family!r}"
