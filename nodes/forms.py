"""Widgets and sockets that several nodes share: the same names, defaults and words wherever they appear."""

from __future__ import annotations

from ..streaming_core.frames import TensorFrames
from .host.compat import blocked, io
from .types import FrameStream


def video_input(tooltip: str, **options) -> io.MultiType.Input:
    """A video as IMAGE or FRAME_STREAM; `host.streams.as_stream` reads both."""
    return io.MultiType.Input("frames", types=[io.Image, FrameStream], tooltip=tooltip, **options)


def image_fps_input(default: float) -> io.Float.Input:
    """Rate of a video that comes as IMAGE."""
    return io.Float.Input(
        "fps",
        default=default,
        min=0.01,
        max=1000.0,
        step=0.01,
        tooltip="Rate of an IMAGE in frames per second, for the frames output; a stream has its own.",
    )


def seed_input(default: int, what: str) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=2**64 - 1,
        control_after_generate=True,
        tooltip=f"Seed of {what}, 0 to 2^64 - 1.",
    )


def window_inputs(window_frames: int, overlap_frames: int) -> list:
    """Windows of a pass over a video, with their official lengths as defaults."""
    return [
        io.Int.Input(
            "window",
            default=window_frames,
            min=1,
            max=10_000,
            tooltip=f"Frames in work together, 1 to 10000; {window_frames} is official. Memory goes with it. A video "
            "that fits into one window is done in one piece.",
        ),
        io.Int.Input(
            "overlap",
            default=overlap_frames,
            min=0,
            max=9_999,
            tooltip=f"Frames that neighboring windows share, 0 to below window; {overlap_frames} is official. More "
            "blends better and takes longer.",
        ),
    ]


def video_outputs(what: str) -> list:
    """A video leaves a stage as it came in: stream as stream, IMAGE as IMAGE and stream."""
    return [
        FrameStream.Output(display_name="frames", tooltip=f"The {what} video; on disk if a stream came in."),
        io.Image.Output(display_name="images", tooltip=f"The {what} video as a batch, if a batch came in."),
    ]


def stream_result(node: str, stream) -> io.NodeOutput:
    """Values of `video_outputs` for a video that came as FRAME_STREAM."""
    return io.NodeOutput(stream, blocked(f"{node} got a frame stream and gives one; use Stream to Images behind it"))


def images_result(images, fps: float) -> io.NodeOutput:
    """Values of `video_outputs` for a video that came as IMAGE."""
    return io.NodeOutput(TensorFrames(images, fps), images)
