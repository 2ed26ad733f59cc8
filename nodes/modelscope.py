"""Nodes of the StreamingModelscope family: load, APM, schedule, prompts, and its chunk sampler."""

from __future__ import annotations

import logging

from ..streaming_core.errors import SettingsError
from ..streaming_core.frames import to_rgb
from ..streaming_core.loop.script import chunk_prompts
from ..streaming_core.schedules.modelscope import modelscope_sigmas
from .host.compat import io, schema
from .host.files import checkpoint_names, diffusion_model_names, file_stamp, model_file
from .host.modelscope import sampler as modelscope
from .host.modelscope.apm import anchor_tokens, with_tokens
from .host.modelscope.ddim import Ddim
from .host.modelscope.load import load_modelscope_unet, load_streamingmodelscope
from .host.pixels import images_to_core
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkPrompts, ChunkSampler, StreamingApm, StreamingCam

CATEGORY = f"{PACK_CATEGORY}/StreamingModelscope"
log = logging.getLogger(__name__)


class LoadStreamingModelscope(io.ComfyNode):
    """The official file to the host's objects."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadStreamingModelscope",
            display_name="Load StreamingModelscope",
            category=CATEGORY,
            description="Loads the official streaming_t2v.ckpt: video model, CLIP, CLIP vision, VAE, CAM and APM.",
            search_aliases=["streamingt2v", "long video", "text to video"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="StreamingModelscope file in models/checkpoints: streaming_t2v.ckpt of PAIR/StreamingT2V, "
                    "or a safetensors copy of it. Pickles are opened for weights only.",
                ),
                io.Boolean.Input(
                    "safetensors_copy",
                    default=False,
                    tooltip="Write a safetensors copy beside the file, once. It takes as much disk (13 GB), loads "
                    "faster and needs less memory; choose it here afterwards.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Video model; works with any sampler by itself."),
                io.Clip.Output(display_name="clip", tooltip="Text encoder."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="OpenCLIP image tower, for APM."),
                io.Vae.Output(display_name="vae", tooltip="VAE; frames are a batch of images to it."),
                StreamingCam.Output(display_name="cam", tooltip="Short-term memory that continues control frames."),
                StreamingApm.Output(display_name="apm", tooltip="Long-term memory that keeps an anchor's looks."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name, safetensors_copy):
        return file_stamp(model_file("checkpoints", ckpt_name))

    @classmethod
    def execute(cls, ckpt_name, safetensors_copy):
        return io.NodeOutput(*load_streamingmodelscope(ckpt_name, safetensors_copy))


class LoadModelscopeT2V(io.ComfyNode):
    """The base model that officially makes the first clip."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadModelscope",
            display_name="Load ModelScope T2V",
            category=CATEGORY,
            description="Loads the UNet of ModelScope text-to-video 1.7B, which officially makes the first clip.",
            search_aliases=["text to video", "damo"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=diffusion_model_names(),
                    tooltip="UNet file in models/diffusion_models, diffusers layout: "
                    "unet/diffusion_pytorch_model.safetensors of ali-vilab/text-to-video-ms-1.7b, fp16 or fp32.",
                )
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Text to video, 16 frames; for any sampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name):
        return file_stamp(model_file("diffusion_models", unet_name))

    @classmethod
    def execute(cls, unet_name):
        return io.NodeOutput(load_modelscope_unet(unet_name))


class ApmAnchorEncode(io.ComfyNode):
    """Long-term memory: what the video keeps looking like, as conditioning."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VApmAnchorEncode",
            display_name="APM Anchor Encode",
            category=CATEGORY,
            description="Adds anchor images to the text, so that what is made keeps their looks.",
            search_aliases=["appearance preservation", "long-term memory", "image prompt"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image tower of the checkpoint."),
                StreamingApm.Input("apm", tooltip="APM of the checkpoint."),
                io.Image.Input(
                    "anchor",
                    tooltip="Images to keep looking like, any size; officially the video's first frame. Several are "
                    "averaged.",
                ),
                io.Conditioning.Input("positive", tooltip="Prompt, from the checkpoint's CLIP."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it officially sees a gray image."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How much of the anchor is mixed into the text, 0 to 4 without unit. 1 is official, 0 off.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Text with the anchor."),
                io.Conditioning.Output(display_name="negative", tooltip="Text with the gray image."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, apm, anchor, positive, negative, weight):
        tokens = anchor_tokens(clip_vision, apm, images_to_core(to_rgb(anchor)))
        return io.NodeOutput(
            with_tokens(positive, tokens.positive, weight), with_tokens(negative, tokens.negative, weight)
        )


class DdimStreamingModelscope(io.ComfyNode):
    """The official sampler and its levels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VModelscopeDdim",
            display_name="DDIM (StreamingModelscope)",
            category=CATEGORY,
            description="The official sampler and noise levels, for SamplerCustom. Any other sampler works too.",
            inputs=[
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps, 1 to 1000; 50 is official."),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fresh noise per step, 0 (none) to 1 (official).",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="DDIM with fresh noise."),
                io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels; the last is not quite 0."),
            ],
        )

    @classmethod
    def execute(cls, steps, eta):
        return io.NodeOutput(Ddim(eta), modelscope_sigmas(steps))


class ChunkPromptsNode(io.ComfyNode):
    """One prompt per chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VChunkPrompts",
            display_name="Chunk Prompts",
            category=PACK_CATEGORY,
            description="A prompt for every chunk of a video: what happens first, what then.",
            search_aliases=["prompt schedule", "prompt travel"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the video model."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One line per chunk, the first for the first clip; an empty line repeats the line above. "
                    "Or numbered: '4: it jumps' holds from chunk 4 on. The last prompt goes on.",
                ),
            ],
            outputs=[ChunkPrompts.Output(display_name="prompts", tooltip="For a chunk sampler.")],
        )

    @classmethod
    def execute(cls, clip, prompts):
        lines = chunk_prompts(prompts)
        encoded = modelscope.encode_prompts(clip, lines)
        return io.NodeOutput(tuple(encoded[line] for line in lines))


class StreamingModelscopeChunkSampler(io.ComfyNode):
    """All that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VModelscopeChunkSampler",
            display_name="StreamingModelscope Chunk Sampler",
            category=CATEGORY,
            description="How StreamingModelscope makes a chunk, for Stream Sampler. Defaults are the official numbers; "
            "set Stream Sampler to chunks of 16, overlap 8, 256x256, anchor frame 0.",
            inputs=[
                io.Model.Input("model", tooltip="StreamingModelscope's video model; LoRA and other patches are kept."),
                StreamingCam.Input("cam", tooltip="CAM of the same file."),
                io.Vae.Input("vae", tooltip="VAE of the same file."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; officially empty."),
                io.Conditioning.Input("positive", optional=True, tooltip="One prompt for the whole video."),
                ChunkPrompts.Input("prompts", optional=True, tooltip="A prompt per chunk, instead of positive."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="OpenCLIP image tower; used once per video."),
                StreamingApm.Input(
                    "apm", optional=True, tooltip="APM of the same file. Unconnected: no memory of the anchor."
                ),
                io.Model.Input(
                    "first_model",
                    optional=True,
                    tooltip="Model of the first clip, officially ModelScope T2V. Unconnected: the StreamingModelscope "
                    "model without CAM and APM.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Any sampler. Unconnected: DDIM with eta 1, the official one."
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps per chunk; 50 is official. (The released program ignores its own setting.)",
                ),
                io.Float.Input(
                    "cfg", default=7.5, min=0.0, max=100.0, step=0.1, tooltip="Guidance of chunks; 7.5 is official."
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How much of the anchor is mixed into the text, 0 to 4 without unit. 1 is official, 0 off.",
                ),
                io.Int.Input(
                    "first_steps", default=50, min=1, max=1000, tooltip="Steps of the first clip; 50 is official."
                ),
                io.Float.Input(
                    "first_cfg",
                    default=9.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of the first clip; 9 is official.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels per chunk instead of steps."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoder of the same file, for the prompts of a Chunk Plan."
                ),
            ],
            outputs=[ChunkSampler.Output(display_name="chunk_sampler", tooltip="For Stream Sampler or Stream Chunk.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        cam,
        vae,
        negative,
        steps,
        cfg,
        anchor_weight,
        first_steps,
        first_cfg,
        positive=None,
        prompts=None,
        clip_vision=None,
        apm=None,
        first_model=None,
        sampler=None,
        sigmas=None,
        clip=None,
    ):
        if prompts is None and positive is None and clip is None:
            raise SettingsError(
                "a video needs a prompt; connect positive or prompts, or clip for those of a Chunk Plan"
            )
        if (clip_vision is None) != (apm is None):
            raise SettingsError("APM needs clip_vision and apm together; connect both, or neither to go without")
        official = modelscope.official_sampling(steps, cfg)
        return io.NodeOutput(
            modelscope.ModelscopeChunkSampler(
                model=model,
                cam=cam,
                vae=vae,
                prompts=tuple(prompts or ([] if positive is None else [positive])),
                negative=negative,
                clip_vision=clip_vision,
                apm=apm,
                first_model=first_model or model,
                anchor_weight=anchor_weight,
                sampling=modelscope.ModelscopeSampling(
                    sampler or official.sampler, official.sigmas if sigmas is None else sigmas, cfg
                ),
                first_sampling=modelscope.first_clip_sampling(first_steps, first_cfg),
                clip=clip,
            )
        )


NODES = (
    LoadStreamingModelscope,
    LoadModelscopeT2V,
    ApmAnchorEncode,
    DdimStreamingModelscope,
    ChunkPromptsNode,
    StreamingModelscopeChunkSampler,
)
