"""Nodes of frame streams."""

from __future__ import annotations

from .host.compat import InputImpl, io, schema, ui
from .host.video_files import encode, output_file, workflow_metadata
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream

CATEGORY = f"{PACK_CATEGORY}/frames"
SUFFIXES = {"h264": ".mp4", "h265": ".mp4", "av1": ".mp4", "ffv1": ".mkv"}


class SaveStream(io.ComfyNode):
    """A stream to a video file, without ever holding the film."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VSaveStream",
            display_name="Save Stream",
            category=CATEGORY,
            description="Encodes a frame stream to a video file in the output folder, slice by slice.",
            search_aliases=["save video", "export video"],
            inputs=[
                FrameStream.Input("frames", tooltip="The film; its own frame rate is used."),
                io.String.Input(
                    "filename_prefix",
                    default="video/StreamingT2V",
                    tooltip="Name below the output folder, with ComfyUI's placeholders such as %date:yyyy-MM-dd%.",
                ),
                io.Combo.Input(
                    "codec",
                    options=list(SUFFIXES),
                    default="h264",
                    tooltip="h264 plays everywhere, h265 and av1 are smaller and slower, ffv1 is lossless (.mkv).",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=63.0,
                    step=1.0,
                    tooltip="Quality, 0 (best) to 63, without unit; about 6 more halves the file. Unused by ffv1.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The file, for other video nodes.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, filename_prefix, codec, crf):
        path, subfolder = output_file(filename_prefix, SUFFIXES[codec], frames.width, frames.height)
        metadata = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        encode(frames, path, codec, None if codec == "ffv1" else crf, metadata)
        shown = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=shown)


NODES = (SaveStream,)
