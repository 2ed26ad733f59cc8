"""Nodes that write a video: to a video file, or to a folder of images."""

from __future__ import annotations

from ..streaming_core.errors import StreamingError
from ..streaming_core.frames import AUTO_DEPTH, BIT_DEPTHS, check_quality, pixel_format_of
from .host.compat import InputImpl, io, schema, ui
from .host.handed_out import file_changes, hand_out_files
from .host.video.audio import to_track
from .host.video.files import encode, output_file, save_images, workflow_metadata
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream

CATEGORY = f"{PACK_CATEGORY}/frames"
SUFFIXES = {"h264": ".mp4", "h265": ".mp4", "av1": ".mp4", "ffv1": ".mkv"}
SHOWN_IMAGES = 5


def quality(codec: str, crf: float, bitrate_mbps: float) -> dict[str, float | int | None]:
    """What the widgets mean: a bitrate of 0 is none, and a lossless codec has neither."""
    if codec == "ffv1":
        return {"crf": None, "bitrate": None}
    return {"crf": None, "bitrate": round(bitrate_mbps * 1e6)} if bitrate_mbps else {"crf": crf, "bitrate": None}


def saved_inputs(default_prefix: str) -> list:
    return [
        FrameStream.Input("frames", tooltip="Video to save, at its own frame rate."),
        io.String.Input(
            "filename_prefix",
            default=default_prefix,
            tooltip="Name of the file or folder in the output folder. Placeholders are filled in: "
            "%date:yyyy-MM-dd% with any order of d, M, y, h, m and s; %year%, %month%, %day%, %hour%, %minute%, "
            "%second%; %width% and %height%.",
        ),
    ]


class SaveStream(io.ComfyNode):
    """A stream to a video file, without ever holding the video."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VSaveStream",
            display_name="Save Stream",
            category=CATEGORY,
            description="Encodes a frame stream to a video file in the output folder, slice by slice. The file "
            "appears once it is complete; Cancel leaves no file.",
            search_aliases=["save video", "export video", "mp4"],
            inputs=[
                *saved_inputs("video/StreamingT2V"),
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
                    tooltip="Constant quality, 0 (best) to 51, for av1 to 63; about 6 more halves the file size. "
                    "Ignored by ffv1 and when bitrate_mbps is set.",
                ),
                io.Float.Input(
                    "bitrate_mbps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Bitrate in megabits per second instead of constant quality, for a known file size; 8 "
                    "suits 720p. 0: use crf. Ignored by ffv1.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Audio from any node, cut or padded with silence to the length of the video.",
                ),
                io.Combo.Input(
                    "bit_depth",
                    options=[AUTO_DEPTH, *map(str, BIT_DEPTHS)],
                    default=AUTO_DEPTH,
                    optional=True,
                    tooltip="Bits per color value: 8 plays everywhere; 10 keeps gradients smooth, but few browsers "
                    "play it as h264; 16 is for ffv1 only. auto: as many as the video that was read has; 8 for h264 "
                    "and for new frames.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The saved file, for other video nodes.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, filename_prefix=None, **_):
        return file_changes(SaveStream.__name__, filename_prefix)

    @classmethod
    def validate_inputs(cls, codec=None, crf=None, bitrate_mbps=None, bit_depth=None):
        """Refuse a quality or bit depth that the codec does not have now, not when the video has been made."""
        if None in (codec, crf, bitrate_mbps):
            return True  # linked: known later
        try:
            chosen = quality(codec, crf, bitrate_mbps)
            check_quality(codec, SUFFIXES.get(codec, ""), **chosen, bit_depth=bit_depth or 8)  # linked: known later
        except StreamingError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, frames, filename_prefix, codec, crf, bitrate_mbps, audio=None, bit_depth=AUTO_DEPTH):
        audio = to_track(audio)
        chosen = quality(codec, crf, bitrate_mbps) | {"pixel_format": pixel_format_of(codec, bit_depth, frames.bits)}
        path, subfolder = output_file(filename_prefix, SUFFIXES[codec], frames.width, frames.height)
        metadata = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        encode(frames, path, codec, metadata, audio=audio, **chosen)
        shown = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        hand_out_files(SaveStream.__name__, filename_prefix, [path])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=shown)


class SaveStreamAsPngs(io.ComfyNode):
    """A stream to a folder of images."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VSaveStreamAsPngs",
            display_name="Save Stream as PNGs",
            category=CATEGORY,
            description="Writes every frame of a stream as a PNG file into a new folder in the output folder, for "
            "editing programs. The folder appears once it is complete; Cancel leaves no folder.",
            search_aliases=["save images", "image sequence", "export frames", "png"],
            inputs=[
                *saved_inputs("frames/StreamingT2V"),
                io.Int.Input(
                    "compress_level",
                    default=4,
                    min=0,
                    max=9,
                    tooltip="PNG compression, 0 (fast, large) to 9 (slow, small). Lossless at every level.",
                ),
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="Path of the new folder.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, filename_prefix=None, **_):
        return file_changes(SaveStreamAsPngs.__name__, filename_prefix)

    @classmethod
    def execute(cls, frames, filename_prefix, compress_level):
        folder, subfolder = output_file(filename_prefix, "", frames.width, frames.height)
        names = save_images(
            frames, folder, compress_level, workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        )
        hand_out_files(SaveStreamAsPngs.__name__, filename_prefix, [folder / name for name in names])
        picked = sorted({round(step * (len(names) - 1) / (SHOWN_IMAGES - 1)) for step in range(SHOWN_IMAGES)})
        inside = f"{subfolder}/{folder.name}" if subfolder else folder.name
        shown = [ui.SavedResult(names[number], inside, io.FolderType.output) for number in picked]
        return io.NodeOutput(str(folder), ui={"images": shown})


NODES = (SaveStream, SaveStreamAsPngs)
