"""Node of the refinement stage: MS-Vid2Vid on a film of any length."""

from __future__ import annotations

from ..streaming_core.frames import FrameStream as Frames
from ..streaming_core.frames import TensorFrames, to_rgb
from .host import refine
from .host.compat import blocked, io, schema
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream

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
            description="Sharpens and enlarges a film of any length with MS-Vid2Vid in overlapping windows with "
            "randomized blending. As many frames come out as went in, without black bars.",
            search_aliases=["streamingt2v", "upscale video", "video enhancer", "modelscope", "vid2vid"],
            inputs=[
                io.Model.Input("model", tooltip="MS-Vid2Vid from Load Enhancer."),
                io.Vae.Input("vae", tooltip="Stable Diffusion image VAE, that of SD 2.1 officially."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The film's prompt with a comma behind it (official), from the text encoder of SD 2.1.",
                ),
                io.Conditioning.Input("negative", tooltip="What the result should not be; officially empty."),
                io.MultiType.Input(
                    "frames",
                    types=[io.Image, FrameStream],
                    tooltip="The film: an IMAGE batch, or a FRAME_STREAM of any length in constant memory.",
                ),
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
                    tooltip="How much noise to start from, 1 to 998 of 999; 599 is official. Lower keeps more."
                    " of the film.",
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
                io.Int.Input(
                    "window",
                    default=DEFAULTS.window_frames,
                    min=1,
                    max=10_000,
                    tooltip="Frames refined together, 1 to 10000; 24 is official. Memory goes with it.",
                ),
                io.Int.Input(
                    "overlap",
                    default=DEFAULTS.overlap_frames,
                    min=0,
                    max=9_999,
                    tooltip="Frames that neighbouring windows share, 0 to below window; 8 is official.",
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULTS.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise and of the cuts between windows, 0 to 2^64 - 1.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="Rate of an IMAGE in frames per second, for the frames output; a stream has its own.",
                ),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="The refined film; on disk if a stream came in."),
                io.Image.Output(display_name="images", tooltip="The refined film as a batch, if a batch came in."),
            ],
        )

    @classmethod
    def execute(
        cls, model, vae, positive, negative, frames, width, height, noise_level, window, overlap, fps, **settings
    ):
        settings = refine.RefineSettings(level=noise_level, window_frames=window, overlap_frames=overlap, **settings)
        stream = frames if isinstance(frames, Frames) else TensorFrames(to_rgb(frames), fps)
        request = refine.RefineRequest(model, vae, stream, positive, negative, width, height, settings)
        if stream is frames:
            missing = blocked("Refine Video got a frame stream and gives one; use Stream to Images behind it")
            return io.NodeOutput(refine.refine_stream(request), missing)
        images = refine.refine_images(request)
        return io.NodeOutput(TensorFrames(images, fps), images)


NODES = (RefineVideo,)
