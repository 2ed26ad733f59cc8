"""Videos in levels: a plan for keyframes far apart, and the frames between them, for every model family."""

from __future__ import annotations

from ..streaming_core.errors import SettingsError
from ..streaming_core.frames import as_rate
from ..streaming_core.loop.fillers import Filler, SampledGaps
from ..streaming_core.loop.hierarchy import Hierarchy
from ..streaming_core.loop.plan import VideoPlan
from .forms import seed_input
from .host.compat import io, schema
from .host.interpolation.load import gap_filler
from .host.page import shown_text
from .host.runs.gaps import FillRequest, fill_between, fill_changes
from .host.runs.videos import RunVideo
from .plan import chunk_inputs, length_inputs, length_of, plan_outputs, script_of
from .types import CATEGORY, ChunkPlan, ChunkSampler, FrameStream, InterpModel

MOST_STRIDE, MOST_LEVELS = 256, 4


def level_inputs(tooltip: str) -> list:
    """How far apart keyframes are; `tooltip` is of the stride."""
    return [
        io.Int.Input("stride", default=4, min=2, max=MOST_STRIDE, tooltip=tooltip),
        io.Int.Input(
            "levels",
            default=1,
            min=1,
            max=MOST_LEVELS,
            tooltip="How often gaps are filled. 1: once, between the keyframes. 2: then between the frames that are "
            "there, so that keyframes are stride x stride frames apart, and so on.",
        ),
    ]


class KeyframePlan(io.ComfyNode):
    """A plan for every n-th frame of a video, written in the time of the video."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VKeyframePlan",
            display_name="Keyframe Plan",
            category=CATEGORY,
            description="Plans the keyframes of a video: every n-th frame, made by the chunk loop. Connect it to "
            "Stream Sampler, and Stream Sampler to Fill Between. Fewer chunks mean fewer joins.",
            search_aliases=["hierarchical video", "keyframes", "sparse frames", "lvdm", "long video plan"],
            inputs=[
                *length_inputs(),
                *level_inputs(
                    "Every how many frames of the video a keyframe stands, at one level. The motion of keyframes is as "
                    "many times faster; set it in the chunk sampler or in motion."
                ),
                *chunk_inputs(),
            ],
            outputs=[
                *plan_outputs(),
                io.Int.Output(
                    display_name="num_frames",
                    tooltip="Exact length of the whole video in frames. Connect to Fill Between.",
                ),
                io.Int.Output(display_name="stride", tooltip="The stride. Connect to Fill Between."),
                io.Int.Output(display_name="levels", tooltip="The levels. Connect to Fill Between."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, num_frames, seconds, fps, stride, levels, chunk_frames, overlap_frames, seed, **cues):
        rate = as_rate(fps)
        counts = Hierarchy(length_of(num_frames, seconds, rate), stride, levels)
        key_rate = counts.rate(rate)
        script = script_of(key_rate, **cues)
        plan = VideoPlan(counts.num_keyframes, chunk_frames, overlap_frames, seed, key_rate, script)
        table = (
            f"{counts.num_frames} frames at {float(rate):g} fps: one keyframe every {counts.step} frames\n"
            f"keyframes: {plan.table()}"
        )
        shown = shown_text(table, cls.hidden.unique_id)
        return io.NodeOutput(plan, table, counts.num_frames, stride, levels, ui=shown)


class FillBetween(io.ComfyNode):
    """The frames between neighboring keyframes, kept on disk gap by gap."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VFillBetween",
            display_name="Fill Between",
            category=CATEGORY,
            description="Makes the frames between keyframes, with a chunk sampler that can be given a first and a "
            "last frame, or with an interpolation model. Gaps are independent of each other and kept on disk: after "
            "Cancel or a crash, the same settings continue where they stopped.",
            search_aliases=["hierarchical video", "first last frame", "inbetween", "keyframes", "infill", "flf2v"],
            inputs=[
                FrameStream.Input(
                    "frames", tooltip="The keyframes: frames of Stream Sampler with a Keyframe Plan, or any others."
                ),
                *level_inputs(
                    "A gap gets this many frames less one. Use the same as in Keyframe Plan. The motion from one "
                    "keyframe to the next must be one that the model can make in as many frames."
                ),
                io.Int.Input(
                    "num_frames",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Exact length of the video in frames. 0: up to the last keyframe.",
                ),
                seed_input(
                    tooltip="Seed for the noise of gaps, 0 to 2^64 - 1. The noise of gap k depends only on the seed "
                    "and k. Ignored with interp_model."
                ),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="Folder in output/streaming_runs that keeps the gaps; not that of the keyframes. If empty, "
                    "a name is made from the settings. Levels before the last are kept as 'NAME level 1' and so on.",
                ),
                ChunkSampler.Input(
                    "chunk_sampler",
                    optional=True,
                    tooltip="Fills gaps with a model that takes a first and a last frame. Connect either this or "
                    "interp_model.",
                ),
                InterpModel.Input(
                    "interp_model",
                    optional=True,
                    tooltip="Fills gaps with a frame interpolation model: fast, best for small motion from keyframe to "
                    "keyframe. Scene cuts between keyframes are held. Connect either this or chunk_sampler.",
                ),
                ChunkPlan.Input(
                    "plan",
                    optional=True,
                    tooltip="The Keyframe Plan of these keyframes: each gap gets the prompt and motion of its chunk. "
                    "Its strengths concern keyframes only. Without it the chunk sampler's own prompt is used.",
                ),
            ],
            outputs=[
                FrameStream.Output(
                    display_name="frames", tooltip="Handle to the frames on disk, keyframes included, each once."
                ),
                io.Video.Output(
                    display_name="video", tooltip="The video, for Save Video. Encoded only when another node uses it."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name="", levels=None, **_):
        return fill_changes(run_name, levels)

    @classmethod
    def execute(cls, frames, chunk_sampler=None, interp_model=None, **request):
        filler = filler_of(chunk_sampler, interp_model, request["stride"])
        stream = fill_between(frames, filler, FillRequest(**request))
        return io.NodeOutput(stream, RunVideo(stream))


def filler_of(chunk_sampler, interp_model, stride: int) -> Filler:
    """What fills gaps. Raises `SettingsError` unless exactly one of the two is connected."""
    if (chunk_sampler is None) == (interp_model is None):
        raise SettingsError(
            "nothing fills the gaps: connect chunk_sampler or interp_model"
            if chunk_sampler is None
            else "chunk_sampler and interp_model cannot both fill the gaps; disconnect one of them"
        )
    return gap_filler(interp_model, stride) if chunk_sampler is None else SampledGaps(chunk_sampler, stride)


NODES = (KeyframePlan, FillBetween)
