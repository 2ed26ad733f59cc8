"""Widgets and sockets that several nodes share: the same names, defaults and words wherever they appear."""

from __future__ import annotations

from typing import Any

from ..streaming_core.frames import FrameStream as Frames
from ..streaming_core.frames import TensorFrames
from ..streaming_core.loop.script import MAX_SEED
from .host.compat import FIXED_SEED, blocked, io
from .host.enhance.stage import StageVideo
from .types import FrameStream


def video_input(tooltip: str, **options: Any) -> io.MultiType.Input:
    """A video as IMAGE or FRAME_STREAM; `host.video.streams.as_stream` reads both."""
    return io.MultiType.Input("frames", types=[io.Image, FrameStream], tooltip=tooltip, **options)


def whole_video_input() -> io.MultiType.Input:
    """The video of a stage that works on it as a whole."""
    return video_input("The video: an IMAGE batch, or a FRAME_STREAM of any length in constant memory.")


def image_fps_input(default: float) -> io.Float.Input:
    """Frame rate of a video that comes as IMAGE."""
    return io.Float.Input(
        "fps",
        default=default,
        min=0.01,
        max=1000.0,
        step=0.01,
        tooltip="Frame rate of an IMAGE batch in frames per second, for the frames output. A FRAME_STREAM has its own.",
    )


def seed_input(what: str = "", default: int = 0, name: str = "seed", tooltip: str | None = None) -> io.Int.Input:
    """A seed that stays the same from run to run until the user chooses otherwise.

    Args:
        what: what is drawn from it, for the tooltip.
        tooltip: the whole tooltip instead.
    """
    return io.Int.Input(
        name,
        default=default,
        min=0,
        max=MAX_SEED,
        control_after_generate=FIXED_SEED,
        tooltip=tooltip or f"Seed for {what}, 0 to 2^64 - 1. The same seed gives the same result.",
    )


def size_inputs(width_tooltip: str, height_tooltip: str) -> list[io.Int.Input]:
    """Size of an enlarged video in pixels."""
    return [
        io.Int.Input(name, default=default, min=64, max=8192, step=8, tooltip=tooltip)
        for name, default, tooltip in (("width", 1280, width_tooltip), ("height", 720, height_tooltip))
    ]


def vae_input() -> io.Vae.Input:
    """The VAE of both enhancers."""
    return io.Vae.Input("vae", tooltip="Stable Diffusion image VAE. The official one is that of SD 2.1.")


def cfg_input(default: float, lowest: float, highest: float, effect: str) -> io.Float.Input:
    """Guidance scale of a pass over a video; `effect` is a sentence about special values."""
    return io.Float.Input(
        "cfg",
        default=default,
        min=lowest,
        max=highest,
        step=0.1,
        tooltip=f"CFG scale, {lowest:g} to {highest:g}; {default:g} is the official value. {effect}",
    )


def window_inputs(window_frames: int, overlap_frames: int) -> list[io.Int.Input]:
    """Windows of a pass over a video, with their official lengths as defaults."""
    return [
        io.Int.Input(
            "window",
            default=window_frames,
            min=1,
            max=10_000,
            tooltip=f"Frames per window; {window_frames} is the official value. VRAM use scales with it. Videos that "
            "fit in one window are processed in a single pass.",
        ),
        io.Int.Input(
            "overlap",
            default=overlap_frames,
            min=0,
            max=9_999,
            tooltip=f"Frames that neighboring windows share, less than window; {overlap_frames} is the official value. "
            "Higher values blend better and take longer.",
        ),
    ]


def window_seed_input(default: int) -> io.Int.Input:
    """Seed of a pass over a video in windows."""
    return seed_input("the noise and the handovers between windows", default)


def video_outputs(what: str) -> list[io.Output]:
    """A video leaves a stage as it came in: stream as stream, IMAGE as IMAGE and stream."""
    return [
        FrameStream.Output(
            display_name="frames", tooltip=f"The {what} video. On disk if the input was a FRAME_STREAM."
        ),
        io.Image.Output(
            display_name="images", tooltip=f"The {what} video as an IMAGE batch, if the input was an IMAGE batch."
        ),
    ]


def video_result(frames: Any, video: StageVideo) -> io.NodeOutput:
    """Makes `video` and returns the values of `video_outputs`; `frames` is what the node was given."""
    if isinstance(frames, Frames):
        message = f"{video.node} received a frame stream and returns one; use Stream to Images after it"
        return io.NodeOutput(video.stream(), blocked(message))
    images = video.images()
    return io.NodeOutput(TensorFrames(images, video.fps), images)
