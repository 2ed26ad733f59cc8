"""Nodes of the enhancement stage: load, condition, keyframes, and the whole stage in one node."""

from __future__ import annotations

import torch

from ..streaming_core.frames import to_rgb
from ..streaming_core.windows.blending import keyframes, plan_windows
from ..streaming_core.windows.enhancement import NEGATIVE_PROMPT, OFFICIAL_SEED, PROMPT, EnhanceSettings, Size, to_image
from .forms import image_fps_input, images_result, seed_input, stream_result, video_input, video_outputs, window_inputs
from .host.compat import io, schema
from .host.enhance import enhancer as host
from .host.enhance.i2vgenxl import enhancer_sigmas
from .host.enhance.load import FOLDER, WEIGHT_TYPES, load_enhancer
from .host.files import diffusion_model_names, file_stamp, model_file
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY

CATEGORY = f"{PACK_CATEGORY}/enhance"
DEFAULTS = EnhanceSettings()
WINDOWS = (DEFAULTS.window_frames, DEFAULTS.overlap_frames)


def prompt_inputs() -> list:
    return [
        io.String.Input(
            "prompt", default=PROMPT, multiline=True, tooltip="What the result should be. The default is official."
        ),
        io.String.Input(
            "negative_prompt",
            default=NEGATIVE_PROMPT,
            multiline=True,
            tooltip="What the result should not be. The default is official.",
        ),
    ]


def model_inputs() -> list:
    return [
        io.Model.Input("model", tooltip="I2VGen-XL from Load Enhancer."),
        io.Clip.Input("clip", tooltip="OpenCLIP ViT-H text encoder, that of Stable Diffusion 2.1."),
        io.ClipVision.Input("clip_vision", tooltip="OpenCLIP ViT-H image tower."),
        io.Vae.Input("vae", tooltip="Stable Diffusion image VAE, that of SD 2.1 officially."),
    ]


def stage_inputs() -> list:
    """Everything the enhancement depends on besides the keyframes."""
    return [
        *model_inputs(),
        video_input("The video: an IMAGE batch, or a FRAME_STREAM of any length in constant memory."),
        io.Int.Input(
            "width",
            default=1280,
            min=64,
            max=8192,
            step=8,
            tooltip="Width of the result in pixels, a multiple of 8; the largest one with fit inside.",
        ),
        io.Int.Input(
            "height",
            default=720,
            min=64,
            max=8192,
            step=8,
            tooltip="Height of the result in pixels, a multiple of 8; the largest one with fit inside.",
        ),
        io.Combo.Input(
            "fit",
            options=list(host.FITS),
            default="inside",
            tooltip="inside: as large as fits into width and height, aspect kept, nothing cut. crop: fill the size and "
            "cut what stands out. pad: repeat the border. stretch: ignore the aspect, as the official program does.",
        ),
        *prompt_inputs(),
        io.Float.Input(
            "strength",
            default=DEFAULTS.strength,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps that are run, above 0 to 1; 0.97 is official. Lower keeps more of the video.",
        ),
        io.Int.Input(
            "steps",
            default=DEFAULTS.steps,
            min=1,
            max=999,
            tooltip="Denoising steps, 1 to 999, of which strength leaves the last; 30 is official and runs 29.",
        ),
        io.Float.Input(
            "cfg",
            default=DEFAULTS.guidance,
            min=1.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance scale, 1 to 30; 9 is official. 1 halves the time and ignores the negative prompt.",
        ),
        *window_inputs(*WINDOWS),
        seed_input(OFFICIAL_SEED, "the noise and of the cuts between windows"),
        io.Int.Input(
            "model_fps",
            default=DEFAULTS.fps_condition,
            min=1,
            max=1000,
            tooltip="Frame rate the model is told, in frames per second; 38 is official, whatever the real rate is.",
        ),
        io.Combo.Input(
            "memory",
            options=["normal", "low"],
            default="normal",
            tooltip="low runs the two guidance rows one after the other and keeps skips in system memory: the same "
            "result with less video memory, slower.",
        ),
        io.Boolean.Input(
            "official",
            default=False,
            tooltip="Behave like the official program: stretch, drop frames at the end that do not fill a window, cut "
            "as it does, take all keyframes as one clip. Off: no frame is lost.",
        ),
        io.Image.Input(
            "image",
            optional=True,
            tooltip="What the video should look like, officially the image it was made from. Default: its first frame.",
        ),
    ]


def stage(frames, fps: float = 24.0, keyframes=None, **values) -> tuple[host.Enhancer, host.EnhanceRequest]:
    """Node values to what the host room takes."""
    enhancer = host.Enhancer(
        *(values[name] for name in ("model", "clip", "clip_vision", "vae")), low_memory=values["memory"] == "low"
    )
    settings = EnhanceSettings(
        strength=values["strength"],
        steps=values["steps"],
        guidance=values["cfg"],
        window_frames=values["window"],
        overlap_frames=values["overlap"],
        seed=values["seed"],
        fps_condition=values["model_fps"],
        prompt=values["prompt"],
        negative_prompt=values["negative_prompt"],
        official=values["official"],
    )
    size_and_fit = (values["width"], values["height"], values["fit"])
    stream = as_stream(frames, fps)
    return enhancer, host.EnhanceRequest(stream, *size_and_fit, settings, values.get("image"), keyframes)


class LoadEnhancer(io.ComfyNode):
    """The enhancer's UNet as a MODEL."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadEnhancer",
            display_name="Load Enhancer",
            category=CATEGORY,
            description="Loads the enhancer's video model: the UNet of I2VGen-XL in the diffusers layout.",
            search_aliases=["streamingt2v", "i2vgenxl", "video upscaler"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=diffusion_model_names(),
                    tooltip="File in models/diffusion_models: unet/diffusion_pytorch_model.fp16.safetensors of "
                    "ali-vilab/i2vgen-xl, under a name of your choice.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_TYPES),
                    default="default",
                    tooltip="How weights are kept: as ComfyUI sees fit, or as fp8, which halves them and costs "
                    "accuracy.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For Enhance Video, or any sampler node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name, weight_dtype):
        return file_stamp(model_file(FOLDER, unet_name))

    @classmethod
    def execute(cls, unet_name, weight_dtype):
        return io.NodeOutput(load_enhancer(unet_name, weight_dtype))


class EnhanceVideo(io.ComfyNode):
    """The whole stage: keyframes, then the video in windows."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VEnhanceVideo",
            display_name="Enhance Video",
            category=CATEGORY,
            description="Sharpens and enlarges a video of any length with a short-clip model: keyframes first, then "
            "all frames in overlapping windows with randomized blending. As many frames come out as went in.",
            search_aliases=["streamingt2v", "upscale video", "video enhancer", "i2vgenxl", "vid2vid"],
            inputs=[
                *stage_inputs(),
                image_fps_input(24.0),
                io.Image.Input(
                    "keyframes",
                    optional=True,
                    tooltip="Enhanced first frames of all windows, from Keyframe Pass. Default: made here.",
                ),
            ],
            outputs=video_outputs("enhanced"),
        )

    @classmethod
    def execute(cls, frames, fps=24.0, **values):
        enhancer, request = stage(frames, fps, **values)
        if request.frames is frames:
            return stream_result("Enhance Video", host.enhance_stream(enhancer, request))
        return images_result(host.enhance_images(enhancer, request), fps)


class KeyframePass(io.ComfyNode):
    """The first pass by itself."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VKeyframePass",
            display_name="Keyframe Pass",
            category=CATEGORY,
            description="Enhances the first frame of every window together as one short clip, so that all windows look "
            "alike. Enhance Video does this by itself; use this node to see or change the keyframes.",
            search_aliases=["keyframes", "anchor frames"],
            inputs=stage_inputs(),
            outputs=[io.Image.Output(display_name="keyframes", tooltip="One enhanced frame per window, in order.")],
        )

    @classmethod
    def execute(cls, frames, **values):
        return io.NodeOutput(host.make_keyframes(*stage(frames, **values)))


class PickKeyframes(io.ComfyNode):
    """Frames that stand for windows, for any model."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPickKeyframes",
            display_name="Pick Key Frames",
            category=CATEGORY,
            description="The first frame of every window of a video: enhance them with any model as one short clip, "
            "then send them as a list through a conditioning node into Window Conditioning.",
            search_aliases=["keyframes", "windows"],
            inputs=[video_input("The video, as IMAGE or FRAME_STREAM."), *window_inputs(*WINDOWS)],
            outputs=[
                io.Image.Output(display_name="keyframes", tooltip="One frame per window, as a batch."),
                io.Image.Output(display_name="list", is_output_list=True, tooltip="The same, one by one."),
                io.Int.Output(display_name="count", tooltip="Number of windows."),
            ],
        )

    @classmethod
    def execute(cls, frames, window, overlap):
        stream = as_stream(frames, 24.0)
        picked = [stream.read(frame, frame + 1) for frame in keyframes(plan_windows(len(stream), window, overlap))]
        return io.NodeOutput(torch.cat(picked), picked, len(picked))


class EnhancerConditioning(io.ComfyNode):
    """I2VGen-XL's conditions, to wire a sampler by hand."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VEnhancerConditioning",
            display_name="Enhancer Conditioning",
            category=CATEGORY,
            description="What I2VGen-XL is told: prompts, a image and a frame rate. For sampling by hand; latents "
            "are those of VAE Encode, one per frame.",
            search_aliases=["i2vgenxl"],
            inputs=[
                *model_inputs(),
                io.Image.Input("image", tooltip="What the clip should look like; of a batch the first."),
                io.Int.Input(
                    "width", default=1280, min=64, max=8192, step=8, tooltip="Width in pixels, a multiple of 8."
                ),
                io.Int.Input(
                    "height", default=720, min=64, max=8192, step=8, tooltip="Height in pixels, a multiple of 8."
                ),
                *prompt_inputs(),
                io.Int.Input(
                    "model_fps",
                    default=DEFAULTS.fps_condition,
                    min=1,
                    max=1000,
                    tooltip="Frame rate the model is told, in frames per second; 38 is official.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, clip_vision, vae, image, width, height, prompt, negative_prompt, model_fps):
        enhancer = host.Enhancer(model, clip, clip_vision, vae)
        settings = EnhanceSettings(prompt=prompt, negative_prompt=negative_prompt, fps_condition=model_fps)
        look = to_image(to_rgb(image[:1])[0].movedim(-1, 0))
        return io.NodeOutput(*host.conditioning_pair(enhancer, [look], settings, Size(height, width)))


class EnhancerSigmas(io.ComfyNode):
    """The official timesteps, which none of the host's schedulers gives."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VEnhancerSigmas",
            display_name="Enhancer Sigmas",
            category=CATEGORY,
            description="Noise levels of the enhancer's official timesteps, shortened by the strength.",
            search_aliases=["i2vgenxl", "sigmas"],
            inputs=[
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, min=1, max=999, tooltip="Steps before strength; 30 is official."
                ),
                io.Float.Input(
                    "strength",
                    default=DEFAULTS.strength,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps that are run, above 0 to 1; 0.97 is official.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom with euler or ddim.")],
        )

    @classmethod
    def execute(cls, steps, strength):
        return io.NodeOutput(enhancer_sigmas(EnhanceSettings(steps=steps, strength=strength)))


NODES = (LoadEnhancer, EnhanceVideo, KeyframePass, PickKeyframes, EnhancerConditioning, EnhancerSigmas)
