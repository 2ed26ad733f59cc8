"""Node that prepares a user's own video to be continued."""

from __future__ import annotations

import logging

from ..streaming_core.errors import FrameRangeError
from ..streaming_core.frames.adapted import AdaptedFrames
from ..streaming_core.frames.fitting import FITS
from .host.compat import io, schema
from .host.page import shown_text
from .host.video.streams import as_stream
from .types import CATEGORY, FrameStream

log = logging.getLogger(__name__)


class ExtendVideo(io.ComfyNode):
    """The beginning of a video from any video: its last frames, an anchor, and itself at the video's size and rate."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VExtendVideo",
            display_name="Extend Video",
            category=CATEGORY,
            description="Prepares your own video to be continued by Stream Sampler: adapts size and rate, hands over "
            "its last frames and an anchor, and says in words what it did.",
            search_aliases=["continue video", "longer video", "outpaint time", "video to video"],
            inputs=[
                io.MultiType.Input(
                    "frames",
                    types=[FrameStream, io.Video, io.Image],
                    tooltip="Your video: a file of any length (only what is needed is read), a stream or images.",
                ),
                io.Int.Input("new_frames", default=100, min=1, max=1_000_000, tooltip="Frames to add; met exactly."),
                io.Int.Input(
                    "tail_frames",
                    default=25,
                    min=1,
                    max=4096,
                    tooltip="Frames at its end that are handed over, at least the overlap of Stream Sampler. Models "
                    "that continue latents encode up to 29 of them.",
                ),
                io.Int.Input(
                    "anchor_frame",
                    default=0,
                    min=-1_000_000,
                    max=1_000_000,
                    tooltip="Frame of your video, from 0, that the video keeps looking like; negative counts from the "
                    "end, -1 is the last. Choose one that shows what matters.",
                ),
                io.Float.Input(
                    "fps",
                    default=12.0,
                    min=0.0,
                    max=240.0,
                    step=0.1,
                    tooltip="Frames per second of the video, the pace the model moves at; frames of your video are "
                    "left "
                    "out or repeated to suit. 0: as your video.",
                ),
                io.Int.Input("width", default=1024, min=16, max=8192, step=8, tooltip="Width of the video in pixels."),
                io.Int.Input("height", default=576, min=16, max=8192, step=8, tooltip="Height of the video in pixels."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="If your video has another shape: crop fills the size and cuts the rest, pad repeats the "
                    "border, stretch ignores the shape.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="first_clip", tooltip="Its last frames, for Stream Sampler."),
                io.Image.Output(display_name="anchor", tooltip="The anchor, for Stream Sampler."),
                FrameStream.Output(display_name="frames", tooltip="All of your video, adapted, for Join Streams."),
                io.Int.Output(
                    display_name="num_frames", tooltip="Frames of Stream Sampler's video: tail and new ones."
                ),
                io.Int.Output(
                    display_name="tail_frames", tooltip="Frames that both have: start of Trim Stream, before joining."
                ),
                io.Int.Output(display_name="width", tooltip="For Stream Sampler."),
                io.Int.Output(display_name="height", tooltip="For Stream Sampler."),
                io.Float.Output(display_name="fps", tooltip="For Stream Sampler."),
                io.String.Output(display_name="text", tooltip="What was adapted, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, new_frames, tail_frames, anchor_frame, fps, width, height, fit):
        source = as_stream(frames, fps or 24.0)
        video = AdaptedFrames(source, height, width, fps or source.fps, fit)
        tail = min(tail_frames, len(video))
        number = anchor_frame + len(source) if anchor_frame < 0 else anchor_frame
        if not 0 <= number < len(source):
            raise FrameRangeError(
                f"anchor frame {anchor_frame} is not in your video of {len(source)} frames; choose 0 to "
                f"{len(source) - 1}, or -1 for the last"
            )
        anchor = AdaptedFrames(source.trimmed(number, number + 1), height, width, source.fps, fit).read(0, 1)
        text = (
            f"Your video: {video.words()} The last {tail} are continued, the anchor is frame {number} "
            f"({float(number / source.fps):.1f} s). With {new_frames} new frames it will have "
            f"{len(video) + new_frames} frames, {float((len(video) + new_frames) / video.fps):.1f} s."
        )
        log.info("%s", text)
        first_clip = video.read(len(video) - tail, len(video))
        values = (first_clip, anchor, video, tail + new_frames, tail, width, height, float(video.fps), text)
        return io.NodeOutput(*values, ui=shown_text(text, getattr(cls.hidden, "unique_id", None)))


NODES = (ExtendVideo,)
