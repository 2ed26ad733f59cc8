"""Nodes that measure long videos: MAWE, and the full report."""

from __future__ import annotations

from ..streaming_core.loop.chunk_layout import lay_out, parse_chunks
from ..streaming_core.metrics.flow import RAFT_FOLDER
from ..streaming_core.metrics.mawe import Mawe
from .host.compat import blocked, io, schema, ui
from .host.files import file_stamp
from .host.metrics.load import ensure_folder, load_raft, optical_flow_names
from .host.metrics.measure import clip_tools, host_mawe, host_measures, save_report
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream

CATEGORY = f"{PACK_CATEGORY}/measure"
OpticalFlow = io.Custom("OPTICAL_FLOW")

ensure_folder()


def measured_inputs() -> list:
    return [
        io.MultiType.Input(
            "frames",
            types=[FrameStream, io.Video, io.Image],
            tooltip="Video to measure. Streams and video files of any length are read in slices; images are already "
            "in memory.",
        ),
    ]


def fps_input() -> io.Float.Input:
    return io.Float.Input(
        "fps",
        default=24.0,
        min=0.1,
        max=1000.0,
        step=0.001,
        tooltip="Frame rate for images, used for the time axis. Streams and videos have their own.",
    )


def mawe_text(found: Mawe) -> str:
    if found.is_still:
        return f"still: none of the {found.pairs} frame pairs has motion, so MAWE has no value"
    official = "infinite" if found.official is None else f"{found.official:.4f}"
    with_them = f"; with them {official}" if found.still_pairs else ""
    return f"MAWE {found.value:.4f} over {found.pairs} pairs, {found.still_pairs} still and left out{with_them}"


class LoadRaft(io.ComfyNode):
    """RAFT-large as the OPTICAL_FLOW of newer hosts."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadRaft",
            display_name="Load RAFT",
            category=CATEGORY,
            description="Loads RAFT-large optical flow weights from models/optical_flow for Measure MAWE and Video "
            "Report. The output has the same type as that of ComfyUI's own Load Optical Flow Model.",
            search_aliases=["optical flow", "raft", "mawe"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=optical_flow_names(),
                    tooltip="torchvision's raft_large_C_T_SKHT_V2-ff5fadd5 (.pth or .safetensors), the weights that "
                    "define MAWE; docs/checkpoints.md lists where to get it.",
                ),
            ],
            outputs=[
                OpticalFlow.Output(display_name="optical_flow", tooltip="Connect to Measure MAWE or Video Report.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name):
        return file_stamp(RAFT_FOLDER, model_name)

    @classmethod
    def execute(cls, model_name):
        return io.NodeOutput(load_raft(model_name))


class MeasureMawe(io.ComfyNode):
    """Motion-aware warp error, as StreamingT2V measures it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VMeasureMawe",
            display_name="Measure MAWE",
            category=CATEGORY,
            description="Motion-aware warp error of StreamingT2V: how badly motion explains the next frame, relative "
            "to the amount of motion. Low is good. Computed exactly as published: RAFT-large at 720x720.",
            search_aliases=["warp error", "temporal consistency", "video quality"],
            inputs=[
                *measured_inputs(),
                OpticalFlow.Input("optical_flow", tooltip="RAFT-large from Load RAFT or Load Optical Flow Model."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="mawe",
                    tooltip="Mean over all frame pairs with motion. No value if the video is static.",
                ),
                io.Boolean.Output(display_name="is_still", tooltip="True if nothing moves; MAWE then has no value."),
                io.String.Output(display_name="text", tooltip="The value and the number of still pairs, as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, optical_flow):
        found = host_mawe(as_stream(frames, 24.0), optical_flow)
        text = mawe_text(found)
        value = blocked(text) if found.is_still else found.value
        return io.NodeOutput(value, found.is_still, text, ui=ui.PreviewText(text))


class VideoReport(io.ComfyNode):
    """Every measure, as image, text and files."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VVideoReport",
            display_name="Video Report",
            category=CATEGORY,
            description="Measures a video of any length: scene cuts, color drift, seams between chunks, stagnation "
            "and, with models, MAWE and CLIP scores. Plots curves over time and writes PNG, text, JSON and CSV files.",
            search_aliases=["video quality", "scene cuts", "color drift", "clip score", "evaluate video", "mawe"],
            inputs=[
                *measured_inputs(),
                io.String.Input(
                    "chunks",
                    default="",
                    tooltip="Frames of the first chunk, then of the chunks after it, the last number repeated: 25,18 "
                    "for chunks of 25 frames that overlap by 7. Empty: unknown, chunk boundaries are not marked.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="Description of what the video should show, for the text score. Requires clip and "
                    "clip_vision of the same CLIP.",
                ),
                fps_input(),
                io.String.Input(
                    "filename_prefix",
                    default="report/video",
                    tooltip="Name of the files in the output folder, with ComfyUI's placeholders such as %year%.",
                ),
                OpticalFlow.Input(
                    "optical_flow",
                    optional=True,
                    tooltip="RAFT-large; adds MAWE and is used to measure motion. Without it motion is measured by a "
                    "fast weight-free method.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Adds the similarity to the anchor; also required for the text score.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the same CLIP as clip_vision, including its projection, for the text "
                    "score.",
                ),
                io.Image.Input(
                    "anchor",
                    optional=True,
                    tooltip="Image whose appearance the video should keep. If not connected, the first frame of the "
                    "video is used.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="Curves over time with chunk boundaries and scene cuts."),
                io.String.Output(display_name="text", tooltip="The report as a table."),
                io.String.Output(display_name="json", tooltip="All measurements and curves, as JSON."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, chunks=None):
        try:
            parse_chunks(chunks or "")  # a linked text comes later
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        frames,
        chunks,
        text,
        fps,
        filename_prefix,
        optical_flow=None,
        clip_vision=None,
        clip=None,
        anchor=None,
    ):
        stream, lengths = as_stream(frames, fps), parse_chunks(chunks)
        tools = None if clip_vision is None else clip_tools(clip_vision, clip, text, anchor)
        found = host_measures(stream, lay_out(len(stream), lengths) if lengths else None, optical_flow, tools)
        report = save_report(found, filename_prefix, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        shown = {
            "images": [ui.SavedResult(report.name, report.subfolder, io.FolderType.output)],
            "text": (report.text,),
        }
        return io.NodeOutput(report.image, report.text, report.json, ui=shown)


NODES = (VideoReport, MeasureMawe, LoadRaft)
