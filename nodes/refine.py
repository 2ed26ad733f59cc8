"""Node of the refinement stage: MS-Vid2Vid on a video of any length."""

from __future__ import annotations

from typing import Any

from ..streaming_core.enhance.job import plan_refinement
from ..streaming_core.enhance.settings import RefineSettings
from ..streaming_core.enhance.size import Size
from .forms import (
    cfg_input,
    image_fps_input,
    size_inputs,
    vae_input,
    video_outputs,
    video_result,
    whole_video_input,
    window_inputs,
    window_seed_input,
)
from .host.compat import io, schema
from .host.enhance.refine import NODE, Refiner, refine
from .host.handed_out import file_changes
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY

CATEGORY = f"{PACK_CATEGORY}/enhance"
DEFAULTS = RefineSettings()


class RefineVideo(io.ComfyNode):
    """The official refinement of StreamingModelscope, without its losses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VRefineVideo",
            display_name="Refine Video (MS-Vid2Vid)",
            category=CATEGORY,
            description="Sharpens and enlarges a video of any length with MS-Vid2Vid in overlapping windows with "
            "randomized blending. The result has as many frames as the input, without black bars.",
            search_aliases=["streamingt2v", "upscale video", "video enhancer", "modelscope", "vid2vid"],
            inputs=[
                io.Model.Input("model", tooltip="MS-Vid2Vid from Load Enhancer."),
                vae_input(),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The video's prompt, encoded with the text encoder of SD 2.1. Officially it ends with a "
                    "comma.",
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to avoid, encoded with the text encoder of SD 2.1. Officially an empty prompt.",
                ),
                whole_video_input(),
                *size_inputs(
                    "Maximum width in pixels. The result is as large as fits with the aspect ratio kept and a width "
                    "that is a multiple of 64.",
                    "Maximum height in pixels. The height of the result is 16 more than a multiple of 64; 720 fits.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=300,
                    tooltip=f"Denoising steps; {DEFAULTS.steps} is the official value.",
                ),
                io.Int.Input(
                    "noise_level",
                    default=DEFAULTS.noise_level,
                    min=1,
                    max=998,
                    tooltip=f"Noise level to start from, 1 to 998; {DEFAULTS.noise_level} is the official value. Lower "
                    "values keep more of the video.",
                ),
                cfg_input(DEFAULTS.cfg, 0.0, 100.0, "Higher values follow the prompt more closely."),
                io.Float.Input(
                    "rescale",
                    default=DEFAULTS.rescale,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=f"CFG rescale, 0 (off) to 1; {DEFAULTS.rescale:g} is the official value. Higher values "
                    "reduce the contrast that CFG adds.",
                ),
                *window_inputs(DEFAULTS.window_frames, DEFAULTS.overlap_frames),
                window_seed_input(DEFAULTS.seed),
                image_fps_input(8.0),
            ],
            outputs=video_outputs("refined"),
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return file_changes(NODE)

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        vae: io.Vae.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        frames: Any,
        width: int,
        height: int,
        window: int,
        overlap: int,
        fps: float,
        **settings: Any,
    ) -> io.NodeOutput:
        refiner, stream = Refiner(model, vae, positive, negative), as_stream(frames, fps)
        size = refiner.size(Size(stream.height, stream.width), Size(height, width))
        chosen = RefineSettings(window_frames=window, overlap_frames=overlap, **settings)
        return video_result(frames, refine(refiner, plan_refinement(stream, size, chosen)))


NODES = (RefineVideo,)
