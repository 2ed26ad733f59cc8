"""Nodes that look after runs: reroll chunks, look into run folders, tell beforehand what a video costs."""

from __future__ import annotations

from ..streaming_core.errors import SettingsError
from ..streaming_core.loop.script import MAX_SEED, parse_chunk_list
from .host.compat import io, schema, ui
from .host.page import shown_text
from .host.runs.handed_out import run_changes
from .host.runs.inspector import ACTIONS, act, describe, runs_stamp
from .host.runs.preflight import preflight
from .host.runs.reroll import OWNER, SCOPES, SEED_MODES, RerollRequest, reroll
from .host.runs.videos import RunVideo
from .types import CATEGORY, ChunkPlan, ChunkSampler, FrameStream


class RerollChunks(io.ComfyNode):
    """Chosen chunks of a finished run once more, from other seeds."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRerollChunks",
            display_name="Reroll Chunks",
            category=CATEGORY,
            description="Makes other takes of chosen chunks of a finished run and leaves the others as they are. "
            "Older takes are kept; Run Inspector chooses them again.",
            search_aliases=["redo segment", "regenerate chunk", "retry"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="The one that Stream Sampler made the run with."),
                io.String.Input(
                    "run_name", default="", tooltip="Run below output/streaming_runs. Unused when frames is connected."
                ),
                io.String.Input(
                    "chunks",
                    default="1",
                    tooltip="Chunk numbers such as 3, 5-7. 0 is the first clip; Run Inspector shows all.",
                ),
                io.Combo.Input(
                    "seed_mode",
                    options=list(SEED_MODES),
                    default="new",
                    tooltip="new: every chosen chunk gets its own seed, made from seed and its number. given: seed "
                    "itself.",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="0 to 2^64 - 1. A take that was made from this seed is not made again; change it to get "
                    "another.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default=SCOPES[0],
                    tooltip="only these: the end of each passes over into the old one within overlap_frames, so that "
                    "the next chunk still fits. also all after: everything after is made again and continues it.",
                ),
                FrameStream.Input(
                    "frames", optional=True, tooltip="Frames of Stream Sampler: its run, once it is finished."
                ),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="Handle to the whole video as it is now."),
                io.Video.Output(
                    display_name="video", tooltip="The video, for Save Video; encoded only when another node uses it."
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
    """Lists runs and chunks; deletes only what it is told to."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRunInspector",
            display_name="Run Inspector",
            category=CATEGORY,
            description="Shows the runs on disk, or the chunks of one, with images, seeds, status, sizes and takes. "
            "Chooses other takes, sets damaged ones aside, and deletes what you confirm.",
            search_aliases=["list runs", "delete run", "resume"],
            inputs=[
                io.String.Input(
                    "run_name", default="", tooltip="Run below output/streaming_runs. Empty: all runs are listed."
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default="look",
                    tooltip="look changes nothing. choose take: another take of a chunk. set damaged aside: Stream "
                    "Sampler makes those chunks again. recover manifest: rebuild a lost or damaged one. delete older: "
                    "all takes that the video does not show. delete run: all of it. Deleting needs confirm.",
                ),
                io.Int.Input(
                    "chunk",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="For choose take: number of the chunk, from 0.",
                ),
                io.Int.Input("take", default=0, min=0, max=1_000_000, tooltip="For choose take: 0 is the first take."),
                io.String.Input("confirm", default="", tooltip="To delete, write the run's name here once more."),
                FrameStream.Input(
                    "frames", optional=True, tooltip="Look at the run behind these frames, once they are made."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="A image of every run or chunk, with words."),
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
    """What a video will cost, before it costs anything."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPreflight",
            display_name="Preflight",
            category=CATEGORY,
            description="Estimates model calls, time, disk, RAM and VRAM before sampling starts. "
            "Stops the workflow with one sentence when it cannot fit.",
            search_aliases=["estimate", "memory check", "dry run"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made; goes on to Stream Sampler."),
                ChunkPlan.Input("plan", tooltip="The video, of Chunk Plan; goes on to Stream Sampler."),
                io.Int.Input("width", default=1024, min=16, max=8192, step=8, tooltip="Pixels, as in Stream Sampler."),
                io.Int.Input("height", default=576, min=16, max=8192, step=8, tooltip="Pixels, as in Stream Sampler."),
                io.Boolean.Input(
                    "time_a_step",
                    default=False,
                    tooltip="Run three sampling steps of one chunk to estimate the seconds: loads the model and costs "
                    "those steps.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(display_name="chunk_sampler", tooltip="Unchanged, once the video fits."),
                ChunkPlan.Output(display_name="plan", tooltip="Unchanged, once the video fits."),
                io.String.Output(display_name="report", tooltip="The numbers, one per line."),
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
    """The name of the run behind frames.

    Raises `SettingsError` for frames that come from elsewhere.
    """
    name = getattr(frames, "run_name", "")
    if not name:
        raise SettingsError("these frames belong to no run; connect the frames of Stream Sampler or Reroll Chunks")
    return name


NODES = (RerollChunks, RunInspector, Preflight)
