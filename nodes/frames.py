"""Nodes that make, cut and join frame streams."""

from __future__ import annotations

from ..streaming_core.errors import FrameRangeError
from ..streaming_core.frames import JoinedFrames, TensorFrames
from .host.compat import io, schema
from .host.progress import frames_bar
from .host.video.streams import stream_and_audio, video_images
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream

CATEGORY = f"{PACK_CATEGORY}/frames"


class StreamFromImages(io.ComfyNode):
    """An IMAGE batch as a stream."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamFromImages",
            display_name="Stream from Images",
            category=CATEGORY,
            description="Turns an image batch into a frame stream for Interpolate Stream, Save Stream and other "
            "stream nodes.",
            search_aliases=["images to video", "frames"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="Frames in order. A single image is a video of one frame. Alpha is dropped."
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.001,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames per second, 0.001 to 1000. 23.976, 29.97 and 59.94 become the exact NTSC rates.",
                ),
            ],
            outputs=[FrameStream.Output(display_name="frames", tooltip="The video.")],
        )

    @classmethod
    def execute(cls, images, fps):
        return io.NodeOutput(TensorFrames(images, fps))


class StreamFromVideo(io.ComfyNode):
    """A VIDEO as a stream, with its audio."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamFromVideo",
            display_name="Stream from Video",
            category=CATEGORY,
            description="Reads a video of any length in slices, so that only a few frames are in memory at a time. "
            "Files that are cut off are refused before any work begins; where frames are damaged, the last whole one "
            "is shown and the log names them.",
            search_aliases=["load video", "read video", "vfr", "frame rate"],
            inputs=[
                io.Video.Input("video", tooltip="Video from Load Video (trimmed ones too) or Create Video."),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames per second of the stream; frames are repeated or dropped, and the length in "
                    "seconds stays the same. 0: the video's own rate; where it varies, the usual one between its "
                    "frames: pauses stay as long as they are.",
                ),
                io.Boolean.Input(
                    "deinterlace",
                    default=False,
                    optional=True,
                    tooltip="Removes the combs of interlaced video (DV, DVD, broadcast): frames that are marked as "
                    "interlaced become whole images. The log says when a video needs it.",
                ),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="The video."),
                io.Audio.Output(
                    display_name="audio", tooltip="Audio of the video, for Save Stream. Empty if the video has none."
                ),
                io.Int.Output(display_name="num_frames", tooltip="Number of frames of the stream."),
                io.Float.Output(display_name="fps", tooltip="Frames per second of the stream."),
            ],
        )

    @classmethod
    def execute(cls, video, fps, deinterlace=False):
        frames, audio = stream_and_audio(video, fps, deinterlace)
        return io.NodeOutput(frames, audio, len(frames), float(frames.fps))


class StreamToImages(io.ComfyNode):
    """A stream as an IMAGE batch."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamToImages",
            display_name="Stream to Images",
            category=CATEGORY,
            description="Loads all frames of a stream into memory as an image batch, for nodes that work on images. "
            "Refuses videos that do not fit in memory.",
            search_aliases=["video to images", "frames", "collect"],
            inputs=[
                FrameStream.Input(
                    "frames", tooltip="Video to load. Each frame needs 12 bytes per pixel: 11 MB at 1280x720."
                )
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames."),
                io.Float.Output(display_name="fps", tooltip="Frames per second, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, frames):
        way_out = "use a part of the video with Trim Stream, or use Save Stream, which does not load all frames into "
        "memory"
        return io.NodeOutput(video_images(frames, way_out, frames_bar(frames)), float(frames.fps))


class TrimStream(io.ComfyNode):
    """A part of a video."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VTrimStream",
            display_name="Trim Stream",
            category=CATEGORY,
            description="Keeps a part of a video. The rest is not read or computed.",
            search_aliases=["cut video", "video slice", "split"],
            inputs=[
                FrameStream.Input("frames", tooltip="The video."),
                io.Int.Input(
                    "start",
                    default=0,
                    min=-1_000_000,
                    max=1_000_000,
                    tooltip="First frame to keep, counted from 0. Negative numbers count from the end: -16 keeps the "
                    "last 16 frames.",
                ),
                io.Int.Input(
                    "length", default=0, min=0, max=1_000_000, tooltip="Number of frames to keep. 0: all to the end."
                ),
            ],
            outputs=[FrameStream.Output(display_name="frames", tooltip="The selected part, at the same frame rate.")],
        )

    @classmethod
    def execute(cls, frames, start, length):
        total = len(frames)
        first = start + total if start < 0 else start
        stop = first + length if length else total
        if not 0 <= first < stop <= total:
            wanted = f"{length} frames from frame {start} on" if length else f"all frames from frame {start} on"
            raise FrameRangeError(
                f"{wanted} were requested, the video has {total} (0 to {total - 1}); choose a part inside it"
            )
        return io.NodeOutput(frames.trimmed(first, stop))


class JoinStreams(io.ComfyNode):
    """Videos one after the other."""

    @classmethod
    def define_schema(cls):
        more = [
            FrameStream.Input(f"frames_{number}", optional=True, tooltip=f"Part {number}, optional.")
            for number in (3, 4)
        ]
        return schema(
            node_id="StreamingT2VJoinStreams",
            display_name="Join Streams",
            category=CATEGORY,
            description="Joins videos one after the other; chain several of these nodes for more than four. All parts "
            "must have the same size and frame rate.",
            search_aliases=["concatenate video", "append video", "merge"],
            inputs=[
                FrameStream.Input("frames_1", tooltip="First part."),
                FrameStream.Input("frames_2", tooltip="Second part."),
                *more,
            ],
            outputs=[FrameStream.Output(display_name="frames", tooltip="The joined video.")],
        )

    @classmethod
    def execute(cls, frames_1, frames_2, frames_3=None, frames_4=None):
        parts = (frames_1, frames_2, frames_3, frames_4)
        return io.NodeOutput(JoinedFrames(tuple(part for part in parts if part is not None)))


NODES = (StreamFromImages, StreamFromVideo, StreamToImages, TrimStream, JoinStreams)
