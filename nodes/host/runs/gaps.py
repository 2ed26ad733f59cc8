"""The gaps between keyframes, filled level by level into run folders of their own: one gap in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ....streaming_core.errors import SettingsError, StreamingError
from ....streaming_core.frames import FrameStream, TensorFrames
from ....streaming_core.identity import tensor_digest
from ....streaming_core.loop.fillers import Filler, SampledGaps
from ....streaming_core.loop.hierarchy import GapPlan, Hierarchy, filled_rate, level_seed
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.runs.folder import RunFolder, settings_hash
from ....streaming_core.runs.gaps import gap_content
from ....streaming_core.runs.manifest import MANIFEST
from ....streaming_core.runs.name import run_path
from ..identity import start_flags_identity, watch
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress, check_cancel, image_preview
from .handed_out import hand_out, run_changes
from .paths import runs_root
from .preflight import disk_free
from .videos import select_chunks

OWNER = "Fill Between"


@dataclass(frozen=True)
class GapJob:
    """One level of a video, described once: between which frames, by what, under which hashes.

    Attributes:
        identity: what all gaps are made with, readable.
        chunk_identities: what decides each gap besides, its two ends included.
        hashes: the settings hash of each gap. It holds nothing of other gaps.
    """

    filler: Filler
    plan: GapPlan
    keyframes: FrameStream
    identity: dict[str, Any]
    chunk_identities: tuple[Mapping[str, Any], ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, filler: Filler, plan: GapPlan, keyframes: FrameStream) -> GapJob:
        """Reads all keyframes once, to know them by content."""
        identity = gaps_identity(filler, plan, (keyframes.height, keyframes.width))
        digests: list[str] = []
        for frames in keyframes.slices(stop=plan.num_gaps + 1):
            check_cancel()
            digests += [tensor_digest(frame) for frame in frames]
        own = tuple(
            gap_identity(filler, plan, index, first, last)
            for index, (first, last) in enumerate(zip(digests[:-1], digests[1:], strict=True))
        )
        return cls(filler, plan, keyframes, identity, own, tuple(gap_hash(identity, each) for each in own))


def gaps_identity(filler: Filler, plan: GapPlan, size: tuple[int, int]) -> dict[str, Any]:
    """Everything that all gaps of a level depend on."""
    gaps = {"stride": plan.stride, "model_frames": plan.model_frames, "height": size[0], "width": size[1]}
    return {**filler.identity(), "gaps": gaps, "host": start_flags_identity()}


def gap_identity(filler: Filler, plan: GapPlan, index: int, first: str, last: str) -> dict[str, Any]:
    """What decides this gap besides: its own values and the digests of the frames at its ends."""
    return {**filler.gap_identity(plan.chunk(index)), "first keyframe": first, "last keyframe": last}


def gap_hash(identity: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The settings hash of a gap."""
    return settings_hash({"run": identity, "gap": own})


@dataclass(frozen=True)
class FillRequest:
    """What is filled, and how far.

    Attributes:
        num_frames: length of the video; 0 for all that the keyframes reach.
        run_name: "" for a name made from the settings.
        plan: the plan of the keyframes, whose prompts and motion gaps take; None for the filler's own.
    """

    stride: int
    levels: int
    num_frames: int
    seed: int
    run_name: str = ""
    plan: VideoPlan | None = None

    def hierarchy(self, num_keyframes: int) -> Hierarchy:
        """The counts. Raises `SettingsError` where the keyframes do not reach the end."""
        most = Hierarchy.of_keyframes(num_keyframes, self.stride, self.levels)
        counts = Hierarchy(self.num_frames, self.stride, self.levels) if self.num_frames else most
        if counts.num_keyframes > num_keyframes:
            raise SettingsError(
                f"{counts.num_frames} frames need {counts.num_keyframes} keyframes, one every {counts.step} frames, "
                f"but there are {num_keyframes}; make more keyframes, or set num_frames to at most {most.num_frames}"
            )
        return counts

    def gaps(self, counts: Hierarchy, level: int, model_frames: int, fps: Fraction) -> GapPlan:
        """The plan of a level; `fps`: rate of the keyframes."""
        return GapPlan(
            num_frames=counts.frames(level),
            stride=self.stride,
            model_frames=model_frames,
            seed=level_seed(self.seed, level),
            fps=filled_rate(fps, self.stride, level),
            level=level,
            keyframes=self.plan,
        )


def fill_between(keyframes: FrameStream, filler: Filler, request: FillRequest) -> FrameStream:
    """Make the frames between keyframes, or what is missing of them, into run folders, one for each level.

    The result shows the keyframes bit for bit, each once. Memory does not grow with its length.

    Raises:
        SettingsError: too few keyframes, or what the filler cannot do; before anything is loaded.
    """
    counts = request.hierarchy(len(keyframes))
    request = replace(request, plan=_as_made(request.plan, keyframes))
    size = keyframes.height, keyframes.width
    levels = range(1, request.levels + 1)
    plans = [request.gaps(counts, level, filler.model_frames, keyframes.fps) for level in levels]
    if not plans[0].num_gaps:
        return TensorFrames(keyframes.read(0, 1), plans[-1].fps)
    _refuse_foreign_plan(request.plan, keyframes)
    _refuse_full_disk(plans, size)
    for plan in plans:
        filler.accept(plan, size)
    if request.run_name.strip():
        _refuse_other_runs(level_names(request.run_name.strip(), request.levels), filler.kind, size)
    progress = StepProgress(sum(filler.steps(chunk) for plan in plans for chunk in plan.chunks))
    stream, name = keyframes, request.run_name.strip()
    for plan in plans:
        job = GapJob.of(filler, plan, stream)
        name = name or _own_name(job)
        stream = _fill_level(job, level_names(name, request.levels)[plan.level - 1], progress)
    return stream


def _own_name(job: GapJob) -> str:
    """A name for a run without one: after the run of its keyframes, whichever takes that shows, else its first gap."""
    source = getattr(job.keyframes, "run_name", "")
    of_run = settings_hash({"run": job.identity, "keyframes": source, "seed": job.plan.seed})
    return f"{job.filler.kind.replace(' ', '_')}_{(of_run if source else job.hashes[0])[:10]}"


def level_names(run_name: str, levels: int) -> tuple[str, ...]:
    """The runs of a video, from level 1 to the last, which has its name."""
    return (*(f"{run_name} level {level}" for level in range(1, levels)), run_name)


def fill_changes(run_name: str | None, levels: int | None) -> int:
    """How often the runs of a video changed since they were handed out; of any video where they are not known yet."""
    name = (run_name or "").strip()
    if not name or not isinstance(levels, int):
        return run_changes(OWNER)
    return sum(run_changes(OWNER, each) for each in level_names(name, levels))


def _fill_level(job: GapJob, name: str, progress: StepProgress) -> FrameStream:
    plan, keyframes = job.plan, job.keyframes
    with RunFolder.open_or_create(
        runs_root(),
        name,
        {**job.identity, "plan": plan.to_dict()},
        kind=job.filler.kind,
        height=keyframes.height,
        width=keyframes.width,
        fps=plan.fps,
        num_frames=plan.num_frames,
        owner=OWNER,
    ) as run:
        try:
            _make_missing(run, job, progress)
        except BaseException:
            run.discard_if_empty()
            raise
        stream = run.frames_stream(plan.num_frames)
        hand_out(OWNER, stream, plan.num_gaps)
        return stream


def _make_missing(run: RunFolder, job: GapJob, progress: StepProgress) -> None:
    missing = select_chunks(run, job)
    filler, plan = job.filler.with_progress(progress), job.plan
    done = set(range(plan.num_gaps)) - set(missing)
    progress.advance(sum(filler.steps(plan.chunk(index)) for index in done))
    with watch(*watched(job.filler)):
        for index in missing:
            check_cancel()
            began = time.monotonic()
            ends = job.keyframes.read(index, index + 2)
            between = made_between(filler, ends, plan, index, progress)
            run.write_chunk(
                index,
                gap_content(index, ends, between),
                settings_hash=job.hashes[index],
                identity=job.identity,
                own=job.chunk_identities[index],
                independent=True,
                seconds=time.monotonic() - began,
            )
            del ends, between
            mm.soft_empty_cache()


def watched(filler: Filler) -> tuple[object, ...]:
    """What may change its state while it works."""
    return (filler.sampler,) if isinstance(filler, SampledGaps) else ()


def made_between(filler: Filler, ends: Tensor, plan: GapPlan, index: int, progress: StepProgress | None) -> Tensor:
    """IMAGE frames between `ends` `[2, H, W, 3]`, of which the bar shows one."""
    first, last = images_to_core(ends).split(1)
    frames = filler.fill(first, last, plan.chunk(index))
    if progress is not None:
        progress.advance(0, image_preview(frames[len(frames) // 2]))
    return core_to_images(frames).float().cpu()


def _as_made(plan: VideoPlan | None, keyframes: FrameStream) -> VideoPlan | None:
    """The plan with the chunks that the keyframes really have, where they come from a run: lengths that were fitted to
    the model, and the length of start_frames."""
    name = getattr(keyframes, "run_name", "")
    if plan is None or not name:
        return plan
    try:
        made = VideoPlan.from_dict(RunFolder.open(runs_root(), name).manifest.settings["plan"])
    except (StreamingError, KeyError, TypeError, ValueError):
        return plan
    lengths = ("chunk_frames", "overlap_frames", "given_frames")
    return replace(plan, **{each: getattr(made, each) for each in lengths})


def _refuse_foreign_plan(plan: VideoPlan | None, keyframes: FrameStream) -> None:
    if plan is None:
        return
    if plan.num_frames < len(keyframes):
        raise SettingsError(
            f"plan is for {plan.num_frames} keyframes, but there are {len(keyframes)}; connect the plan that these "
            "keyframes were made by, or none"
        )
    if not plan.script.used & {"prompt", "motion"}:
        raise SettingsError("plan has no effect: it sets neither prompts nor motion for the gaps; disconnect it")


def _refuse_other_runs(names: Iterable[str], kind: str, size: tuple[int, int]) -> None:
    """Raise `RunMismatchError` where a run of one of these names is something else, before the first level is made."""
    for name in names:
        if (run_path(runs_root(), name) / MANIFEST).exists():
            RunFolder.open(runs_root(), name).expect(kind, *size)


def _refuse_full_disk(plans: list[GapPlan], size: tuple[int, int]) -> None:
    """A gap stores its frames as bytes and both ends, as floats where bytes do not hold them."""
    needed = sum(plan.num_gaps * (plan.stride + 8) * size[0] * size[1] * 3 for plan in plans)
    free = disk_free(runs_root())
    if needed > free:
        raise SettingsError(
            f"the frames need up to {needed / 2**30:.1f} GiB of disk but {free / 2**30:.1f} GiB are free; free some "
            "disk space, or set a smaller num_frames"
        )
