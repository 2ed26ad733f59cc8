"""Nodes of the chunk loop, for every model family."""

from __future__ import annotations

from ..streaming_core.errors import SettingsError
from ..streaming_core.frames.fitting import FITS
from ..streaming_core.loop.steps import continue_video, start_video
from .forms import seed_input
from .host.compat import blocked, io, schema
from .host.pixels import core_to_images
from .host.progress import StepProgress
from .host.runs.handed_out import run_changes
from .host.runs.videos import OWNER, RunVideo, make_video, plan_video
from .host.video.streams import video_images
from .types import CATEGORY, ChunkPlan, ChunkSampler, FrameStream, VideoState


def plan_inputs() -> list:
    """Widgets that describe a video, with the same defaults and tooltips in every node."""
    return [
        io.Int.Input("num_frames", default=100, min=1, max=1_000_000, tooltip="Exact length of the video in frames."),
        io.Int.Input(
            "chunk_frames",
            default=25,
            min=2,
            max=4096,
            tooltip="Frames per model call, including the overlap. StreamingSVD was trained with 25. More frames need "
            "more VRAM.",
        ),
        io.Int.Input(
            "overlap_frames",
            default=7,
            min=1,
            max=4095,
            tooltip="Frames at the start of each chunk that repeat the end of the previous one, less than "
            "chunk_frames. Official value for StreamingSVD: 7.",
        ),
        io.Int.Input(
            "width",
            default=1024,
            min=16,
            max=8192,
            step=8,
            tooltip="Width in pixels. StreamingSVD requires a multiple of 64; its official value is 1024.",
        ),
        io.Int.Input(
            "height",
            default=576,
            min=16,
            max=8192,
            step=8,
            tooltip="Height in pixels. StreamingSVD requires a multiple of 64; its official value is 576.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="crop",
            tooltip="How images of a different aspect ratio are fitted: crop fills the size and cuts off the rest, pad "
            "repeats the border, stretch distorts the image.",
        ),
        io.Int.Input(
            "anchor_frame",
            default=6,
            min=0,
            max=4095,
            tooltip="Frame of the first chunk, counted from 0, whose appearance the whole video keeps. Official value "
            "for StreamingSVD: 6.",
        ),
        seed_input(
            default=33,
            tooltip="Seed for all noise, 0 to 2^64 - 1. The noise of chunk k depends only on the seed and k, so a "
            "longer video begins like a shorter one.",
        ),
        io.Image.Input(
            "start_image",
            optional=True,
            tooltip="Image the first chunk starts from. Only the first image of a batch is used.",
        ),
        io.Image.Input(
            "start_frames",
            optional=True,
            tooltip="Frames to continue instead of start_image, at least overlap_frames of them: from any workflow or "
            "your own video.",
        ),
        io.Image.Input(
            "anchor", optional=True, tooltip="Image whose appearance the video keeps, instead of anchor_frame."
        ),
    ]


def plan_input() -> io.Input:
    """A plan that overrides the widgets it covers."""
    return ChunkPlan.Input(
        "plan",
        optional=True,
        tooltip="From a Chunk Plan node. Overrides num_frames, chunk_frames, overlap_frames and seed (and fps in "
        "Stream Sampler), and sets what differs between chunks.",
    )


def refuse_leads(sampler) -> None:
    """Raise `SettingsError` for a sampler whose chunks fade into frames that these steps have handed out by then."""
    if sampler.lead_frames:
        raise SettingsError(
            "single steps cannot cross-fade, because the frames before a chunk have been handed out when it is made; "
            "use Stream Sampler, or set join of the chunk sampler to drop"
        )


class StartVideo(io.ComfyNode):
    """The first chunk and the state that Stream Chunk continues."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStartVideo",
            display_name="Start Video",
            category=CATEGORY,
            description="Makes the first chunk of a video, or takes your frames, for Stream Chunk to continue step by "
            "step.",
            inputs=[
                ChunkSampler.Input(
                    "chunk_sampler", tooltip="Chunk sampler of any model family; defines how a chunk is made."
                ),
                *plan_inputs(),
                plan_input(),
            ],
            outputs=[
                VideoState.Output(display_name="state", tooltip="Connect to Stream Chunk."),
                io.Image.Output(display_name="frames", tooltip="Frames of the first chunk."),
            ],
        )

    @classmethod
    def execute(cls, chunk_sampler, **inputs):
        plan = chunk_sampler.accept(plan_video(**inputs))
        if plan.num_chunks > 1:
            refuse_leads(chunk_sampler)
        steps = 1 if plan.given_frames else chunk_sampler.steps(plan.chunk(0))
        state, frames = start_video(plan, chunk_sampler.with_progress(StepProgress(steps)))
        return io.NodeOutput(state, core_to_images(frames)[: plan.num_frames])


class StreamChunk(io.ComfyNode):
    """One step of the loop: a pure function of the state."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamChunk",
            display_name="Stream Chunk",
            category=CATEGORY,
            description="Makes the next chunk of a video. Use it in a loop, or chain several.",
            inputs=[
                ChunkSampler.Input(
                    "chunk_sampler", tooltip="Chunk sampler of any model family; may differ from step to step."
                ),
                VideoState.Input("state", tooltip="State from Start Video or the previous Stream Chunk."),
            ],
            outputs=[
                VideoState.Output(display_name="state", tooltip="Connect to the next Stream Chunk."),
                io.Image.Output(display_name="frames", tooltip="Only the new frames of this chunk."),
                io.Boolean.Output(display_name="is_complete", tooltip="True once the video has all its frames."),
            ],
        )

    @classmethod
    def execute(cls, chunk_sampler, state):
        chunk = state.next_chunk
        refuse_leads(chunk_sampler)
        sampler = chunk_sampler.with_progress(StepProgress(chunk_sampler.steps(chunk)))
        state, frames = continue_video(state, sampler)
        return io.NodeOutput(state, core_to_images(frames[: chunk.new_frames]), state.is_complete)


class StreamSampler(io.ComfyNode):
    """The whole loop, kept on disk chunk by chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamSampler",
            display_name="Stream Sampler",
            category=CATEGORY,
            description="Makes a video of any length, chunk by chunk, in constant memory. Finished chunks are kept on "
            "disk: after Cancel or a crash, the same settings continue where they stopped.",
            search_aliases=["streamingt2v", "long video", "extend video", "video loop"],
            inputs=[
                ChunkSampler.Input(
                    "chunk_sampler", tooltip="Chunk sampler of any model family; defines how a chunk is made."
                ),
                *plan_inputs(),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="Folder in output/streaming_runs that keeps the chunks. If empty, a name is made from the "
                    "settings, so that the same video is found again.",
                ),
                io.Float.Input(
                    "fps", default=12.0, min=0.1, max=240.0, step=0.1, tooltip="Frames per second of the video."
                ),
                io.Boolean.Input(
                    "collect_images",
                    default=False,
                    tooltip="Also load all frames into RAM for the images output: 12 bytes per pixel, 7 MB per frame "
                    "at 1024x576. Leave off for long videos.",
                ),
                plan_input(),
            ],
            outputs=[
                FrameStream.Output(
                    display_name="frames", tooltip="Handle to the frames on disk; needs no memory for the frames."
                ),
                io.Video.Output(
                    display_name="video", tooltip="The video, for Save Video. Encoded only when another node uses it."
                ),
                io.Image.Output(display_name="images", tooltip="All frames as one batch. Requires collect_images."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name="", **_):
        return run_changes(OWNER, run_name)

    @classmethod
    def execute(cls, chunk_sampler, run_name, collect_images, **inputs):
        stream = make_video(chunk_sampler, plan_video(**inputs), run_name)
        if collect_images:
            images = video_images(stream, "turn collect_images off and use the frames or video output")
        else:
            images = blocked("turn on collect_images in Stream Sampler")
        return io.NodeOutput(stream, RunVideo(stream), images)


NODES = (StreamSampler, StartVideo, StreamChunk)
