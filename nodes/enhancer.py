"""Nodes of the enhancement stage: load, condition, keyframes, and the whole stage in one node."""

from __future__ import annotations

from typing import Any

import torch

from ..streaming_core.enhance.images import to_image
from ..streaming_core.enhance.job import FITS, EnhanceJob, EnhancePrompts, EnhanceRequest, plan_enhancement
from ..streaming_core.enhance.settings import NEGATIVE_PROMPT, PROMPT, EnhanceSettings
from ..streaming_core.enhance.size import Size, check_size
from ..streaming_core.frames import to_rgb
from ..streaming_core.schedules.ddim import enhancer_sigmas
from ..streaming_core.windows.plan import keyframes, plan_windows
from .forms import (
    cfg_input,
    image_fps_input,
    size_inputs,
    vae_input,
    video_input,
    video_outputs,
    video_result,
    whole_video_input,
    window_inputs,
    window_seed_input,
)
from .host.compat import io, schema
from .host.enhance.enhancer import NODE, Enhancer, conditioning_pair, enhance, make_keyframes
from .host.enhance.load import FOLDER, WEIGHT_TYPES, load_enhancer
from .host.files import diffusion_model_names, file_stamp
from .host.handed_out import file_changes
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY

CATEGORY = f"{PACK_CATEGORY}/enhance"
DEFAULTS = EnhanceSettings()
WINDOWS = (DEFAULTS.window_frames, DEFAULTS.overlap_frames)


def prompt_inputs() -> list[io.String.Input]:
    return [
        io.String.Input(
            "prompt",
            default=PROMPT,
            multiline=True,
            tooltip="What the result should look like. The default is the official prompt.",
        ),
        io.String.Input(
            "negative_prompt",
            default=NEGATIVE_PROMPT,
            multiline=True,
            tooltip="What the result should not look like. The default is the official negative prompt.",
        ),
    ]


def model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="I2VGen-XL from Load Enhancer."),
        io.Clip.Input("clip", tooltip="OpenCLIP ViT-H text encoder, as used by Stable Diffusion 2.1."),
        io.ClipVision.Input("clip_vision", tooltip="OpenCLIP ViT-H image encoder."),
        vae_input(),
    ]


def model_fps_input() -> io.Int.Input:
    return io.Int.Input(
        "model_fps",
        default=DEFAULTS.fps_condition,
        min=1,
        max=1000,
        tooltip=f"Frame rate the model is conditioned on, in frames per second; {DEFAULTS.fps_condition} is the "
        "official value, whatever the video's own rate is.",
    )


def schedule_inputs() -> tuple[io.Float.Input, io.Int.Input]:
    """Strength and steps."""
    strength = io.Float.Input(
        "strength",
        default=DEFAULTS.strength,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip=f"Fraction of the steps that are run, above 0 and up to 1; {DEFAULTS.strength:g} is the official "
        "value. Lower values keep more of the video.",
    )
    steps = io.Int.Input(
        "steps",
        default=DEFAULTS.steps,
        min=1,
        max=999,
        tooltip="Scheduler steps. Only the last steps x strength are run (official: 30, of which 29 run).",
    )
    return strength, steps


def stage_inputs() -> list[io.Input]:
    """Everything the enhancement depends on except the keyframes."""
    return [
        *model_inputs(),
        whole_video_input(),
        *size_inputs(
            "Width of the result in pixels, a multiple of 8. With fit set to inside, the maximum width.",
            "Height of the result in pixels, a multiple of 8. With fit set to inside, the maximum height.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="inside",
            tooltip="inside: as large as fits in width and height, with the aspect ratio kept and nothing cropped. "
            "crop: fill the size and crop the rest. pad: repeat the border pixels. stretch: ignore the aspect ratio, "
            "as the official program does.",
        ),
        *prompt_inputs(),
        *schedule_inputs(),
        cfg_input(DEFAULTS.cfg, 1.0, 30.0, "1 takes half the time and ignores the negative prompt."),
        *window_inputs(*WINDOWS),
        window_seed_input(DEFAULTS.seed),
        model_fps_input(),
        io.Combo.Input(
            "memory",
            options=["normal", "low"],
            default="normal",
            tooltip="low: the positive and negative pass run one after the other and skip connections are kept in "
            "system RAM. Same result with less VRAM, but slower.",
        ),
        io.Boolean.Input(
            "official",
            default=False,
            tooltip="Reproduce the official program: frames are stretched, frames at the end that do not fill a window "
            "are dropped, handovers between windows are drawn as it draws them, and all keyframes are made in one "
            "pass, whose VRAM use grows with the length of the video. When off, no frame is dropped.",
        ),
        io.Image.Input(
            "image",
            optional=True,
            tooltip="What the video should look like; officially the image the video was made from. Only the first "
            "image of a batch is used. If not connected, the first frame of the video is used.",
        ),
    ]


def plan_stage(frames: Any, fps: float = 24.0, **values: Any) -> tuple[Enhancer, EnhanceJob]:
    """Node values to the models and the job, with every refusal that needs no sampling."""
    models = {name: values[name] for name in ("model", "clip", "clip_vision", "vae")}
    enhancer = Enhancer(**models, low_memory=values["memory"] == "low")
    settings = EnhanceSettings(
        strength=values["strength"],
        steps=values["steps"],
        cfg=values["cfg"],
        window_frames=values["window"],
        overlap_frames=values["overlap"],
        seed=values["seed"],
        fps_condition=values["model_fps"],
        prompt=values["prompt"],
        negative_prompt=values["negative_prompt"],
        official=values["official"],
    )
    form = (values["width"], values["height"], values["fit"])
    images = (values.get("image"), values.get("keyframes"))
    return enhancer, plan_enhancement(EnhanceRequest(as_stream(frames, fps), *form, settings, *images))


class LoadEnhancer(io.ComfyNode):
    """The enhancer's UNet as a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VLoadEnhancer",
            display_name="Load Enhancer",
            category=CATEGORY,
            description="Loads the enhancer's video model: the UNet of I2VGen-XL (diffusers layout) or of MS-Vid2Vid.",
            search_aliases=["streamingt2v", "i2vgenxl", "video upscaler"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=diffusion_model_names(),
                    tooltip="File in models/diffusion_models: unet/diffusion_pytorch_model.fp16.safetensors from "
                    "ali-vilab/i2vgen-xl, renamed as you like.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_TYPES),
                    default="default",
                    tooltip="Type of the weights. default lets ComfyUI choose; fp8 takes half the VRAM at lower "
                    "accuracy.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="I2VGen-XL for Enhance Video or any sampler node, MS-Vid2Vid for Refine Video.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str, weight_dtype: str) -> Any:
        return file_stamp(FOLDER, unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_enhancer(unet_name, weight_dtype))


class EnhanceVideo(io.ComfyNode):
    """The whole stage: keyframes, then the video in windows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VEnhanceVideo",
            display_name="Enhance Video",
            category=CATEGORY,
            description="Sharpens and enlarges a video of any length with a model for short videos: keyframes first, "
            "then all frames in overlapping windows with randomized blending. The result has as many frames as the "
            "input.",
            search_aliases=["streamingt2v", "upscale video", "video enhancer", "i2vgenxl", "vid2vid"],
            inputs=[
                *stage_inputs(),
                image_fps_input(24.0),
                io.Image.Input(
                    "keyframes",
                    optional=True,
                    tooltip="Enhanced keyframes from Keyframe Pass, one per window. If not connected, this node makes "
                    "them.",
                ),
            ],
            outputs=video_outputs("enhanced"),
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return file_changes(NODE)

    @classmethod
    def execute(cls, frames: Any, **values: Any) -> io.NodeOutput:
        return video_result(frames, enhance(*plan_stage(frames, **values)))


class KeyframePass(io.ComfyNode):
    """The first pass alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VKeyframePass",
            display_name="Keyframe Pass",
            category=CATEGORY,
            description="Enhances the first frame of every window together as one short video, so that all windows "
            "look alike. Enhance Video does this automatically; use this node to inspect or change the keyframes.",
            search_aliases=["keyframes", "anchor frames"],
            inputs=stage_inputs(),
            outputs=[io.Image.Output(display_name="keyframes", tooltip="One enhanced frame per window, in order.")],
        )

    @classmethod
    def execute(cls, frames: Any, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(make_keyframes(*plan_stage(frames, **values)))


class PickKeyframes(io.ComfyNode):
    """The first frame of every window, for any model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VPickKeyframes",
            display_name="Pick Keyframes",
            category=CATEGORY,
            description="Returns the first frame of every window of a video. Enhance them together with any model, "
            "then send them as a list through a conditioning node into Window Conditioning.",
            search_aliases=["keyframes", "windows"],
            inputs=[video_input("The video, as an IMAGE batch or a FRAME_STREAM."), *window_inputs(*WINDOWS)],
            outputs=[
                io.Image.Output(display_name="keyframes", tooltip="One frame per window, as an IMAGE batch."),
                io.Image.Output(
                    display_name="list", is_output_list=True, tooltip="The same frames as a list of single images."
                ),
                io.Int.Output(display_name="count", tooltip="Number of windows, which is the number of keyframes."),
            ],
        )

    @classmethod
    def execute(cls, frames: Any, window: int, overlap: int) -> io.NodeOutput:
        stream = as_stream(frames, 24.0)
        picked = [stream.read(frame, frame + 1) for frame in keyframes(plan_windows(len(stream), window, overlap))]
        return io.NodeOutput(torch.cat(picked), picked, len(picked))


class EnhancerConditioning(io.ComfyNode):
    """I2VGen-XL's conditioning, to wire a sampler by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VEnhancerConditioning",
            display_name="Enhancer Conditioning",
            category=CATEGORY,
            description="Conditions I2VGen-XL on prompts, an image and a frame rate, for use with any sampler node. "
            "The latents come from VAE Encode, one per frame.",
            search_aliases=["i2vgenxl"],
            inputs=[
                *model_inputs(),
                io.Image.Input(
                    "image",
                    tooltip="What the video should look like. Only the first image of a batch is used.",
                ),
                *size_inputs(
                    "Width of the video in pixels, a multiple of 8.", "Height of the video in pixels, a multiple of 8."
                ),
                *prompt_inputs(),
                model_fps_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="Prompt, image and frame rate, for the sampler."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="Negative prompt with the same image and frame rate, for the sampler.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type,
        clip_vision: io.ClipVision.Type,
        vae: io.Vae.Type,
        image: io.Image.Type,
        width: int,
        height: int,
        prompt: str,
        negative_prompt: str,
        model_fps: int,
    ) -> io.NodeOutput:
        size = Size(height, width)
        check_size(size)
        enhancer = Enhancer(model, clip, clip_vision, vae)
        shown = to_image(to_rgb(image[:1])[0].movedim(-1, 0))
        prompts = EnhancePrompts(prompt, negative_prompt, model_fps)
        return io.NodeOutput(*conditioning_pair(enhancer, [shown], prompts, size))


class EnhancerSigmas(io.ComfyNode):
    """The official timesteps, which none of the host's schedulers offers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        strength, steps = schedule_inputs()
        return schema(
            node_id="StreamingT2VEnhancerSigmas",
            display_name="Enhancer Sigmas",
            category=CATEGORY,
            description="Sigmas of the enhancer's official timesteps, of which strength keeps the last ones.",
            search_aliases=["i2vgenxl", "sigmas"],
            inputs=[steps, strength],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom with euler or ddim.")],
        )

    @classmethod
    def execute(cls, steps: int, strength: float) -> io.NodeOutput:
        return io.NodeOutput(enhancer_sigmas(steps, strength))


NODES = (LoadEnhancer, EnhanceVideo, KeyframePass, PickKeyframes, EnhancerConditioning, EnhancerSigmas)
