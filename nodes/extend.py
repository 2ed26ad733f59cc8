"""Node that prepares a user's own video to be continued."""

from __future__ import annotations

import logging

from ..streaming_core.errors import FrameRangeError
from ..streaming_core.frames import TensorFrames
from ..streaming_core.frames.adapted import AdaptedFrames
from ..streaming_core.frames.fitting import FITS
from ..streaming_core.frames.slices import checked
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
            description="Prepares your own video to be continued by Stream Sampler: adapts size and frame rate, "
            "outputs its last frames and an anchor image, and reports what was changed.",
            search_aliases=["continue video", "longer video", "outpaint time", "video to video"],
            inputs=[
                io.MultiType.Input(
                    "frames",
                    types=[FrameStream, io.Video, io.Image],
                    tooltip="Your video: a file of any length (only the needed frames are read), a stream or images.",
                ),
                io.Int.Input("new_frames", default=100, min=1, max=1_000_000, tooltip="Exact number of frames to add."),
                io.Int.Input(
                    "tail_frames",
                    default=25,
                    min=1,
                    max=4096,
                    tooltip="Number of frames from the end of your video that are continued, at least overlap_frames "
                    "of Stream Sampler. Models that continue latents encode up to 29 of them.",
                ),
                io.Int.Input(
                    "anchor_frame",
                    default=0,
                    min=-1_000_000,
                    max=1_000_000,
                    tooltip="Frame of your video, counted from 0, whose appearance the continuation keeps. Negative "
                    "numbers count from the end, -1 is the last frame. Choose one that shows what matters.",
                ),
                io.Float.Input(
                    "fps",
                    default=12.0,
                    min=0.0,
                    max=240.0,
                    step=0.1,
                    tooltip="Frame rate the model works at, in frames per second; frames of your video are dropped or "
                    "repeated to match. 0: the rate of your video.",
                ),
                io.Int.Input("width", default=1024, min=16, max=8192, step=8, tooltip="Width of the video in pixels."),
                io.Int.Input("height", default=576, min=16, max=8192, step=8, tooltip="Height of the video in pixels."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="How a different aspect ratio is fitted: crop fills the size and cuts off the rest, pad "
                    "repeats the border, stretch distorts the image.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="start_frames", tooltip="Last frames of your video, for Stream Sampler."),
                io.Image.Output(display_name="anchor", tooltip="Anchor image, for Stream Sampler."),
                FrameStream.Output(display_name="frames", tooltip="Your whole video, adapted, for Join Streams."),
                io.Int.Output(display_name="num_frames", tooltip="Length for Stream Sampler: tail plus new frames."),
                io.Int.Output(
                    display_name="tail_frames",
                    tooltip="Number of frames that both videos share: connect to start of Trim Stream before joining.",
                ),
                io.Int.Output(display_name="width", tooltip="For Stream Sampler."),
                io.Int.Output(display_name="height", tooltip="For Stream Sampler."),
                io.Float.Output(display_name="fps", tooltip="For Stream Sampler."),
                io.String.Output(display_name="text", tooltip="What was changed, as text."),
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
        if isinstance(source, TensorFrames):
            checked(source.images)  # all of them: the rest is saved after the continuation has been made
        anchor = checked(AdaptedFrames(source, height, width, source.fps, fit).read(number, number + 1), number)
        start_frames = checked(video.read(len(video) - tail, len(video)), len(video) - tail)
        text = (
            f"Your video: {video.words()} The last {tail} are continued, the anchor is frame {number} "
            f"({float(number / source.fps):.1f} s). With {new_frames} new frames it will have "
            f"{len(video) + new_frames} frames, {float((len(video) + new_frames) / video.fps):.1f} s."
        )
        log.info("%s", text)
        values = (start_frames, anchor, video, tail + new_frames, tail, width, height, float(video.fps), text)
        return io.NodeOutput(*values, ui=shown_text(text, getattr(cls.hidden, "unique_id", None)))


NODES = (ExtendVideo,)
