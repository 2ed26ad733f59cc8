"""Nodes of the chunk loop, for every model family."""

from __future__ import annotations

from ..streaming_core.frames.fitting import FITS
from ..streaming_core.loop.steps import continue_video, start_video
from .host.compat import blocked, io, schema
from .host.pixels import core_to_images
from .host.progress import StepProgress
from .host.runs.handed_out import run_changes
from .host.runs.videos import OWNER, RunVideo, make_video, plan_video
from .host.video.streams import video_images
from .types import CATEGORY, ChunkPlan, ChunkSampler, FrameStream, VideoState


def video_inputs() -> list:
    """What a video shall be; the same widgets, defaults and words wherever they appear."""
    return [
        io.Int.Input(
            "num_frames", default=100, min=1, max=1_000_000, tooltip="Length of the video in frames; met exactly."
        ),
        io.Int.Input(
            "chunk_frames",
            default=25,
            min=2,
            max=4096,
            tooltip="Frames per model call, overlap included; 25 is what StreamingSVD was trained for. More needs more "
            "memory.",
        ),
        io.Int.Input(
            "overlap_frames",
            default=7,
            min=1,
            max=4095,
            tooltip="Frames of the video that each chunk re-creates and continues, below chunk_frames; 7 is official.",
        ),
        io.Int.Input(
            "width", default=1024, min=16, max=8192, step=8, tooltip="Pixels, multiple of 64; 1024 is official."
        ),
        io.Int.Input(
            "height", default=576, min=16, max=8192, step=8, tooltip="Pixels, multiple of 64; 576 is official."
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="crop",
            tooltip="How images of another shape are brought to that size: crop fills it and cuts the rest, pad "
            "repeats the border, stretch ignores the shape.",
        ),
        io.Int.Input(
            "anchor_frame",
            default=6,
            min=0,
            max=4095,
            tooltip="Frame of the first clip, from 0, that the whole video keeps looking like; 6 is official.",
        ),
        io.Int.Input(
            "seed",
            default=33,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of all noise, 0 to 2^64 - 1. Chunk k depends on the seed and k only: a longer video begins "
            "like a shorter one.",
        ),
        io.Image.Input(
            "start_image", optional=True, tooltip="Image the first clip is made from; of a batch the first."
        ),
        io.Image.Input(
            "start_frames",
            optional=True,
            tooltip="Frames to continue instead, at least overlap_frames of them: from any workflow or your own video.",
        ),
        io.Image.Input("anchor", optional=True, tooltip="Image the video keeps looking like, instead of anchor_frame."),
    ]


def plan_input() -> io.Input:
    """A plan in place of the widgets that it covers."""
    return ChunkPlan.Input(
        "plan",
        optional=True,
        tooltip="Of Chunk Plan. Takes the place of num_frames, chunk_frames, overlap_frames and seed (and of fps in "
        "Stream Sampler), and says what differs from chunk to chunk.",
    )


class StartVideo(io.ComfyNode):
    """The first clip and the state that Stream Chunk continues."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStartVideo",
            display_name="Start Video",
            category=CATEGORY,
            description="Makes or takes the first clip of a video that Stream Chunk continues step by step.",
            inputs=[ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made."), *video_inputs(), plan_input()],
            outputs=[
                VideoState.Output(display_name="state", tooltip="For Stream Chunk."),
                io.Image.Output(display_name="frames", tooltip="The first clip."),
            ],
        )

    @classmethod
    def execute(cls, chunk_sampler, **inputs):
        plan = chunk_sampler.accept(plan_video(**inputs))
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
            description="Makes the next chunk of a video. Put it into a loop, or chain several.",
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made; may differ from chunk to chunk."),
                VideoState.Input("state", tooltip="Of Start Video or the Stream Chunk before."),
            ],
            outputs=[
                VideoState.Output(display_name="state", tooltip="For the next Stream Chunk."),
                io.Image.Output(display_name="frames", tooltip="The new frames only."),
                io.Boolean.Output(display_name="is_complete", tooltip="True when the video has all its frames."),
            ],
        )

    @classmethod
    def execute(cls, chunk_sampler, state):
        chunk = state.next_chunk
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
            description="Makes a video of any length chunk by chunk, in constant memory. Chunks are kept on disk: "
            "after Cancel or a crash the same settings go on where they stopped.",
            search_aliases=["streamingt2v", "long video", "extend video", "video loop"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made."),
                *video_inputs(),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="Folder below output/streaming_runs that keeps the chunks. Empty: a name made from the "
                    "settings, so the same video is found again.",
                ),
                io.Float.Input(
                    "fps", default=12.0, min=0.1, max=240.0, step=0.1, tooltip="Frames per second of the video output."
                ),
                io.Boolean.Input(
                    "collect_images",
                    default=False,
                    tooltip="Also put all frames into memory for the images output: 12 bytes per pixel and frame, "
                    "7 MB per frame at 1024x576. Leave off for long videos.",
                ),
                plan_input(),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="Handle to the frames on disk, in constant memory."),
                io.Video.Output(
                    display_name="video", tooltip="The video, for Save Video; encoded only when another node uses it."
                ),
                io.Image.Output(display_name="images", tooltip="All frames; needs collect_images."),
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
