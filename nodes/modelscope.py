"""Nodes of the StreamingModelscope family: load, APM, schedule, prompts, and its chunk sampler."""

from __future__ import annotations

import logging

from ..streaming_core.errors import SettingsError
from ..streaming_core.frames import to_rgb
from ..streaming_core.loop.script import chunk_prompts
from ..streaming_core.schedules.modelscope import modelscope_sigmas
from .host.compat import io, schema
from .host.files import checkpoint_names, diffusion_model_names, file_stamp
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
    """Loads the official file as the host's objects."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadStreamingModelscope",
            display_name="Load StreamingModelscope",
            category=CATEGORY,
            description="Loads the official StreamingModelscope checkpoint (streaming_t2v.ckpt): video model, CLIP, "
            "CLIP vision, VAE, CAM and APM.",
            search_aliases=["streamingt2v", "long video", "text to video"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="StreamingModelscope checkpoint in models/checkpoints: streaming_t2v.ckpt from "
                    "PAIR/StreamingT2V, or a safetensors copy of it. Pickles are opened for weights only.",
                ),
                io.Boolean.Input(
                    "safetensors_copy",
                    default=False,
                    tooltip="Write a safetensors copy into the same folder, once. It needs 13 GB of disk space, loads "
                    "faster and needs less RAM; select it here from then on.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Video model; also works with any sampler node."),
                io.Clip.Output(display_name="clip", tooltip="Text encoder of the checkpoint."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="OpenCLIP image encoder, for APM."),
                io.Vae.Output(display_name="vae", tooltip="VAE. Decodes every frame as a separate image."),
                StreamingCam.Output(
                    display_name="cam",
                    tooltip="Conditional attention module; makes chunks continue the previous frames.",
                ),
                StreamingApm.Output(
                    display_name="apm",
                    tooltip="Appearance preservation module; keeps the appearance of an anchor image.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name, safetensors_copy):
        return file_stamp("checkpoints", ckpt_name)

    @classmethod
    def execute(cls, ckpt_name, safetensors_copy):
        return io.NodeOutput(*load_streamingmodelscope(ckpt_name, safetensors_copy))


class LoadModelscopeT2V(io.ComfyNode):
    """The base model, which makes the first chunk in the official program."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadModelscope",
            display_name="Load ModelScope T2V",
            category=CATEGORY,
            description="Loads the UNet of ModelScope text-to-video 1.7B, which makes the first chunk in the official "
            "program.",
            search_aliases=["text to video", "damo"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=diffusion_model_names(),
                    tooltip="UNet file in models/diffusion_models, in the diffusers layout: "
                    "unet/diffusion_pytorch_model.safetensors from ali-vilab/text-to-video-ms-1.7b, fp16 or fp32.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="Text-to-video model for 16 frames; works with any sampler."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name):
        return file_stamp("diffusion_models", unet_name)

    @classmethod
    def execute(cls, unet_name):
        return io.NodeOutput(load_modelscope_unet(unet_name))


class ApmAnchorEncode(io.ComfyNode):
    """Conditioning from an anchor, whose appearance the video keeps."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VApmAnchorEncode",
            display_name="APM Anchor Encode",
            category=CATEGORY,
            description="Adds anchor images to the conditioning so that generated frames keep their appearance.",
            search_aliases=["appearance preservation", "long-term memory", "image prompt"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image encoder of the checkpoint."),
                StreamingApm.Input("apm", tooltip="APM of the checkpoint."),
                io.Image.Input(
                    "anchor",
                    tooltip="Images of any size whose appearance is kept; several are averaged. The official program "
                    "uses the first frame of the video.",
                ),
                io.Conditioning.Input("positive", tooltip="Prompt, encoded with the checkpoint's CLIP."),
                io.Conditioning.Input(
                    "negative", tooltip="Negative prompt. As in the official program it gets a gray image."
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the anchor, 0 to 4. 1 is the official value, 0 uses the text alone.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt with the anchor."),
                io.Conditioning.Output(display_name="negative", tooltip="Negative prompt with the gray image."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, apm, anchor, positive, negative, weight):
        tokens = anchor_tokens(clip_vision, apm, images_to_core(to_rgb(anchor)))
        return io.NodeOutput(
            with_tokens(positive, tokens.positive, weight), with_tokens(negative, tokens.negative, weight)
        )


class DdimStreamingModelscope(io.ComfyNode):
    """The official sampler and its noise levels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VModelscopeDdim",
            display_name="DDIM (StreamingModelscope)",
            category=CATEGORY,
            description="Outputs the official sampler and noise levels for SamplerCustom. Any other sampler works too.",
            inputs=[
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Sampling steps, 1 to 1000. 50 is the official value."
                ),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Amount of fresh noise per step, 0 (none) to 1 (official value).",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="DDIM sampler with this eta."),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="steps + 1 noise levels. The last one is slightly above 0."
                ),
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
            description="One prompt per chunk, so the scene can change over time.",
            search_aliases=["prompt schedule", "prompt travel"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the video model."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One line per chunk, the first for the first chunk; an empty line repeats the line above. "
                    "Lines may be numbered: '4: it jumps' applies from chunk 4. The last prompt is used for all "
                    "remaining chunks.",
                ),
            ],
            outputs=[
                ChunkPrompts.Output(display_name="prompts", tooltip="Connect to StreamingModelscope Chunk Sampler.")
            ],
        )

    @classmethod
    def execute(cls, clip, prompts):
        lines = chunk_prompts(prompts)
        encoded = modelscope.encode_prompts(clip, lines)
        return io.NodeOutput(tuple(encoded[line] for line in lines))


class StreamingModelscopeChunkSampler(io.ComfyNode):
    """Everything that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VModelscopeChunkSampler",
            display_name="StreamingModelscope Chunk Sampler",
            category=CATEGORY,
            description="Defines how StreamingModelscope makes a chunk. Defaults are the official values; set Stream "
            "Sampler to chunk_frames 16, overlap_frames 8, 256x256 and anchor_frame 0.",
            inputs=[
                io.Model.Input("model", tooltip="StreamingModelscope video model, including LoRAs and other patches."),
                StreamingCam.Input("cam", tooltip="CAM from the same checkpoint."),
                io.Vae.Input("vae", tooltip="VAE from the same checkpoint."),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Empty in the official program."),
                io.Conditioning.Input("positive", optional=True, tooltip="Prompt for the whole video."),
                ChunkPrompts.Input("prompts", optional=True, tooltip="One prompt per chunk, instead of positive."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="OpenCLIP image encoder; used once per video."
                ),
                StreamingApm.Input(
                    "apm",
                    optional=True,
                    tooltip="APM from the same checkpoint. If not connected, the anchor is not used.",
                ),
                io.Model.Input(
                    "first_model",
                    optional=True,
                    tooltip="Model for the first chunk; officially ModelScope T2V. If not connected, the "
                    "StreamingModelscope model without CAM and APM is used.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Any sampler. If not connected, DDIM with eta 1 (the official one) is used.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps per chunk. 50 is the official value. (The released program ignores its "
                    "own setting.)",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale for all chunks after the first. 7.5 is the official value.",
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the anchor, 0 to 4. 1 is the official value, 0 uses the text alone.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps for the first chunk. 50 is the official value.",
                ),
                io.Float.Input(
                    "first_cfg",
                    default=9.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale for the first chunk. 9 is the official value.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels for each chunk, instead of steps."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder from the same checkpoint, for the prompts of a Chunk Plan.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
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
                "a video needs a prompt; connect positive or prompts, or clip for the prompts of a Chunk Plan"
            )
        if (clip_vision is None) != (apm is None):
            raise SettingsError("APM needs both clip_vision and apm; connect both, or neither to generate without it")
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
