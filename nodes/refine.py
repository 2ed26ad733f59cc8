"""Node of the refinement stage: MS-Vid2Vid on a video of any length."""

from __future__ import annotations

from .forms import image_fps_input, images_result, seed_input, stream_result, video_input, video_outputs, window_inputs
from .host.compat import io, schema
from .host.enhance import refine
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY

CATEGORY = f"{PACK_CATEGORY}/enhance"
DEFAULTS = refine.RefineSettings()


class RefineVideo(io.ComfyNode):
    """The official refinement of StreamingModelscope, without its losses."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRefineVideo",
            display_name="Refine Video (MS-Vid2Vid)",
            category=CATEGORY,
            description="Sharpens and enlarges a video of any length with MS-Vid2Vid in overlapping windows with "
            "randomized blending. As many frames come out as went in, without black bars.",
            search_aliases=["streamingt2v", "upscale video", "video enhancer", "modelscope", "vid2vid"],
            inputs=[
                io.Model.Input("model", tooltip="MS-Vid2Vid from Load Enhancer."),
                io.Vae.Input("vae", tooltip="Stable Diffusion image VAE, that of SD 2.1 officially."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The video's prompt with a comma behind it (official), from the text encoder of SD 2.1.",
                ),
                io.Conditioning.Input("negative", tooltip="What the result should not be; officially empty."),
                video_input("The video: an IMAGE batch, or a FRAME_STREAM of any length in constant memory."),
                io.Int.Input(
                    "width",
                    default=1280,
                    min=64,
                    max=8192,
                    step=8,
                    tooltip="Pixels the result may be wide. It is as large as fits, with a width that is a multiple of "
                    "64; the aspect is kept.",
                ),
                io.Int.Input(
                    "height",
                    default=720,
                    min=64,
                    max=8192,
                    step=8,
                    tooltip="Pixels the result may be high. Its height is 16 more than a multiple of 64: 720 fits.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=300,
                    tooltip="Denoising steps, 1 to 300; 30 is official.",
                ),
                io.Int.Input(
                    "noise_level",
                    default=DEFAULTS.level,
                    min=1,
                    max=998,
                    tooltip="How much noise to start from, 1 to 998 of 999; 599 is official. Lower keeps more "
                    "of the video.",
                ),
                io.Float.Input(
                    "cfg",
                    default=DEFAULTS.cfg,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale; 7.5 is official.",
                ),
                io.Float.Input(
                    "rescale",
                    default=DEFAULTS.rescale,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far guidance is brought back to the contrast of the prompt's own prediction, 0 (not) "
                    "to 1; 0.2 is official.",
                ),
                *window_inputs(DEFAULTS.window_frames, DEFAULTS.overlap_frames),
                seed_input(DEFAULTS.seed, "the noise and of the cuts between windows"),
                image_fps_input(8.0),
            ],
            outputs=video_outputs("refined"),
        )

    @classmethod
    def execute(
        cls, model, vae, positive, negative, frames, width, height, noise_level, window, overlap, fps, **settings
    ):
        settings = refine.RefineSettings(level=noise_level, window_frames=window, overlap_frames=overlap, **settings)
        stream = as_stream(frames, fps)
        request = refine.RefineRequest(model, vae, stream, positive, negative, width, height, settings)
        if stream is frames:
            return stream_result("Refine Video", refine.refine_stream(request))
        return images_result(refine.refine_images(request), fps)


NODES = (RefineVideo,)
