"""Nodes for runs: reroll chunks, inspect run folders, estimate the cost of a video."""

from __future__ import annotations

from ..streaming_core.errors import SettingsError
from ..streaming_core.loop.script import parse_chunk_list
from .forms import seed_input
from .host.compat import io, schema, ui
from .host.page import shown_text
from .host.runs.handed_out import run_changes
from .host.runs.inspector import ACTIONS, act, describe, runs_stamp
from .host.runs.preflight import preflight
from .host.runs.reroll import OWNER, SCOPES, SEED_MODES, RerollRequest, reroll
from .host.runs.videos import RunVideo
from .types import CATEGORY, ChunkPlan, ChunkSampler, FrameStream


class RerollChunks(io.ComfyNode):
    """New takes of selected chunks of a finished run."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRerollChunks",
            display_name="Reroll Chunks",
            category=CATEGORY,
            description="Makes a new take of selected chunks of a finished run. Files of all other chunks are left "
            "untouched. Older takes are kept; choose between them with Run Inspector.",
            search_aliases=["redo segment", "regenerate chunk", "retry"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="The chunk sampler that the run was made with."),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="Name of the run in output/streaming_runs. Ignored when frames is connected.",
                ),
                io.String.Input(
                    "chunks",
                    default="1",
                    tooltip="Chunk numbers such as 3, 5-7. 0 is the first chunk; Run Inspector lists all.",
                ),
                io.Combo.Input(
                    "seed_mode",
                    options=list(SEED_MODES),
                    default="new",
                    tooltip="new: every selected chunk gets its own seed, derived from seed and the chunk number. "
                    "given: every selected chunk uses seed itself.",
                ),
                seed_input(
                    default=1,
                    tooltip="0 to 2^64 - 1. Takes that were already made with this seed are reused; change it for a "
                    "new take.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default=SCOPES[0],
                    tooltip="selected only: the last overlap_frames cross-fade into the previous take, so that the "
                    "next chunk still matches. selected and following: all later chunks are made again and continue "
                    "the new take.",
                ),
                FrameStream.Input(
                    "frames",
                    optional=True,
                    tooltip="Frames from Stream Sampler, to reroll its run once it is finished. Replaces run_name.",
                ),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="Handle to the whole video with the new takes."),
                io.Video.Output(
                    display_name="video", tooltip="The video, for Save Video. Encoded only when another node uses it."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name="", **_):
        return run_changes(OWNER, run_name)

    @classmethod
    def execute(cls, chunk_sampler, run_name, chunks, seed_mode, seed, scope, frames=None):
        request = RerollRequest(parse_chunk_list(chunks), seed_mode, seed, scope)
        stream = reroll(chunk_sampler, run_name if frames is None else run_of(frames), request)
        return io.NodeOutput(stream, RunVideo(stream))


class RunInspector(io.ComfyNode):
    """Lists runs and chunks; deletes only what the user confirms."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRunInspector",
            display_name="Run Inspector",
            category=CATEGORY,
            description="Shows the runs on disk, or the chunks of one run with images, seeds, status and sizes. "
            "Chooses older takes, sets damaged chunks aside, and deletes what you confirm.",
            search_aliases=["list runs", "delete run", "resume"],
            inputs=[
                io.String.Input(
                    "run_name", default="", tooltip="Name of the run in output/streaming_runs. Empty: list all runs."
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default="look",
                    tooltip="look: change nothing. choose take: use another take of a chunk. set damaged aside: let "
                    "Stream Sampler make damaged chunks again. recover manifest: rebuild a lost or damaged manifest. "
                    "delete older takes: delete all takes that are not in use. delete run: delete everything. "
                    "Deleting requires confirm.",
                ),
                io.Int.Input(
                    "chunk",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="For choose take: number of the chunk, counted from 0.",
                ),
                io.Int.Input(
                    "take",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="For choose take: number of the take, 0 is the first.",
                ),
                io.String.Input("confirm", default="", tooltip="Enter the run's name again to confirm deletion."),
                FrameStream.Input(
                    "frames",
                    optional=True,
                    tooltip="Inspect the run that produced these frames, once it is finished. Replaces run_name.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="One labeled image per run or chunk."),
                io.String.Output(display_name="text", tooltip="One line per run or chunk."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return runs_stamp()

    @classmethod
    def execute(cls, run_name, action, chunk, take, confirm, frames=None):
        name = run_name if frames is None else run_of(frames)
        done = act(action, name, chunk, take, confirm)
        text, sheet = describe("" if action == "delete run" else name)
        text = "\n".join(filter(None, (done, text)))
        shown = ui.PreviewImage(sheet, cls=cls).as_dict() | shown_text(text, cls.hidden.unique_id).as_dict()
        return io.NodeOutput(sheet, text, ui=shown)


class Preflight(io.ComfyNode):
    """Cost of a video, estimated before sampling."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPreflight",
            display_name="Preflight",
            category=CATEGORY,
            description="Estimates model calls, time, disk, RAM and VRAM before sampling starts. Stops the workflow "
            "with an explanation if the video cannot fit.",
            search_aliases=["estimate", "memory check", "dry run"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="Chunk sampler to check; passed on to Stream Sampler."),
                ChunkPlan.Input("plan", tooltip="Plan from Chunk Plan to check; passed on to Stream Sampler."),
                io.Int.Input(
                    "width", default=1024, min=16, max=8192, step=8, tooltip="Size in pixels, as in Stream Sampler."
                ),
                io.Int.Input(
                    "height", default=576, min=16, max=8192, step=8, tooltip="Size in pixels, as in Stream Sampler."
                ),
                io.Boolean.Input(
                    "time_a_step",
                    default=False,
                    tooltip="Run three sampling steps of one chunk to estimate the time. Loads the model and takes as "
                    "long as those steps.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Passed through unchanged once the video fits."
                ),
                ChunkPlan.Output(display_name="plan", tooltip="Passed through unchanged once the video fits."),
                io.String.Output(display_name="report", tooltip="The estimate as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, chunk_sampler, plan, width, height, time_a_step):
        report = preflight(chunk_sampler, plan, width, height, time_a_step)
        report.refuse_what_cannot_fit()
        return io.NodeOutput(chunk_sampler, plan, report.text, ui=shown_text(report.text, cls.hidden.unique_id))


def run_of(frames) -> str:
    """The name of the run that frames come from.

    Raises `SettingsError` for frames that come from elsewhere.
    """
    name = getattr(frames, "run_name", "")
    if not name:
        raise SettingsError(
            "these frames do not belong to a run; connect the frames of Stream Sampler or Reroll Chunks"
        )
    return name


NODES = (RerollChunks, RunInspector, Preflight)
