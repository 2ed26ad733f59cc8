"""Nodes of the StreamingSVD family: load, CAM, anchor, schedule, and its chunk sampler."""

from __future__ import annotations

import torch

from ..streaming_core.frames import to_rgb
from ..streaming_core.frames.fitting import FITS, fit
from ..streaming_core.schedules.svd import align_your_steps_sigmas, karras_sigmas
from .host import pixels
from .host.compat import io, schema
from .host.files import checkpoint_names, file_stamp, model_file
from .host.svd import sampler as svd
from .host.svd.load import load_streamingsvd
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkSampler, StreamingCam

CATEGORY = f"{PACK_CATEGORY}/StreamingSVD"


def motion_inputs() -> list:
    """What SVD is told about motion; the same widgets, defaults and words wherever they appear."""
    return [
        io.Int.Input(
            "motion_bucket_id",
            default=127,
            min=1,
            max=1023,
            tooltip="How much should move, 1 to 1023 without unit. Higher moves more; 127 is official.",
        ),
        io.Int.Input(
            "model_fps",
            default=7,
            min=1,
            max=1024,
            tooltip="Playback rate the model is told, in frames per second, 1 to 1024. Higher makes slower motion per "
            "frame; 7 is official. The video file's own rate is set where it is written.",
        ),
        io.Float.Input(
            "augmentation_level",
            default=0.02,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Noise on the anchor image, 0 to 10 on the scale of [-1, 1]. More lets the video leave the image "
            "further; 0.02 is official. (ComfyUI's own SVD node measures on [0, 1]: 0.01 there is 0.02 here.)",
        ),
        io.Combo.Input(
            "augmentation_noise",
            options=["gaussian", "uniform"],
            default="gaussian",
            tooltip="Kind of that noise. gaussian is what SVD was trained with; uniform is what the official "
            "StreamingSVD program draws, which brightens the image by half the level.",
        ),
        io.Combo.Input(
            "preprocessing",
            options=list(svd.PREPROCESSINGS),
            default="official",
            tooltip="How the image is shrunk for CLIP vision: as the official program does, or as ComfyUI's own nodes "
            "do (without their crop). Slightly different embeddings.",
        ),
    ]


def motion_settings(motion_bucket_id, model_fps, augmentation_level, augmentation_noise) -> svd.MotionSettings:
    return svd.MotionSettings(model_fps, motion_bucket_id, augmentation_level, augmentation_noise)


class LoadStreamingSVD(io.ComfyNode):
    """The official file to the host's objects."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadStreamingSVD",
            display_name="Load StreamingSVD",
            category=CATEGORY,
            description="Loads the official StreamingSVD model.safetensors: the video model, CLIP vision, VAE and CAM.",
            search_aliases=["streamingt2v", "long video", "svd"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="StreamingSVD file in models/checkpoints: model.safetensors of PAIR/StreamingSVD.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="SVD video model; works with any sampler by itself."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="OpenCLIP image tower."),
                io.Vae.Output(display_name="vae", tooltip="Image encoder and temporal decoder."),
                StreamingCam.Output(display_name="cam", tooltip="Short-term memory that continues control frames."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name):
        return file_stamp(model_file("checkpoints", ckpt_name))

    @classmethod
    def execute(cls, ckpt_name):
        return io.NodeOutput(*load_streamingsvd(ckpt_name))


class SvdAnchorEncode(io.ComfyNode):
    """SVD's image conditioning with the official preprocessing."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VSvdAnchorEncode",
            display_name="SVD Anchor Encode",
            category=CATEGORY,
            description="Conditioning from the anchor: the image that a video starts from or keeps looking like.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image tower of the checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the checkpoint."),
                io.Image.Input("anchor", tooltip="One image; of a batch the first. Resized to width and height."),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=64,
                    max=8192,
                    step=64,
                    tooltip="Pixels, multiple of 64; 1024 is official.",
                ),
                io.Int.Input(
                    "height", default=576, min=64, max=8192, step=64, tooltip="Pixels, multiple of 64; 576 is official."
                ),
                io.Int.Input(
                    "num_frames",
                    default=25,
                    min=1,
                    max=4096,
                    tooltip="Frames of the empty latent; 25 is what the model was trained for.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="crop fills the size and cuts the rest, pad repeats the border, stretch ignores the shape.",
                ),
                *motion_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the augmentation noise, 0 to 2^64 - 1; the same seed gives the same noise.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With the anchor."),
                io.Conditioning.Output(display_name="negative", tooltip="Without it, for guidance."),
                io.Latent.Output(display_name="latent", tooltip="Empty latent of num_frames at this size."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, vae, anchor, width, height, num_frames, fit, preprocessing, seed, **motion):
        frame = fit_frame(anchor, height, width, fit)
        settings = motion_settings(**motion)
        chunk = svd.Chunk(0, 0, num_frames, num_frames, 0, seed)
        latent_shape = (num_frames, vae.latent_channels, height // 8, width // 8)
        noise = svd.draw_noise(chunk, tuple(frame.shape), latent_shape, settings.augmentation_noise)
        embedding = svd.embed_image(clip_vision, frame, preprocessing)
        positive, negative = svd.image_conditioning(vae, frame, embedding, noise.augmentation, settings)
        return io.NodeOutput(positive, negative, {"samples": torch.zeros(latent_shape)})


def fit_frame(images, height, width, how):
    """The first image of an IMAGE as one core frame of the given size."""
    return fit(pixels.images_to_core(to_rgb(images[:1])), height, width, how)


class AlignYourStepsStreamingSVD(io.ComfyNode):
    """The official schedule."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VAlignYourSteps",
            display_name="Align Your Steps (StreamingSVD)",
            category=CATEGORY,
            description="The official StreamingSVD noise levels. ComfyUI's own node interpolates differently.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=30,
                    min=2,
                    max=1000,
                    tooltip="Sampling steps, 2 to 1000; 30 is official, 10 is fast.",
                )
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels from 700 down to 0.")],
        )

    @classmethod
    def execute(cls, steps):
        return io.NodeOutput(align_your_steps_sigmas(steps).float())


class StreamingSVDChunkSampler(io.ComfyNode):
    """All that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamingSVDChunkSampler",
            display_name="StreamingSVD Chunk Sampler",
            category=CATEGORY,
            description="How StreamingSVD makes a chunk, for Stream Sampler. Defaults are the official numbers.",
            inputs=[
                io.Model.Input("model", tooltip="StreamingSVD's video model; LoRA and other patches are kept."),
                StreamingCam.Input("cam", tooltip="CAM of the same file."),
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image tower; used once per video."),
                io.Vae.Input("vae", tooltip="VAE of the same file."),
                io.Model.Input(
                    "first_model",
                    optional=True,
                    tooltip="Model of the first clip, officially stock SVD-XT. Unconnected: the StreamingSVD model "
                    "without CAM.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Any sampler. Unconnected: euler, the official one."
                ),
                io.Int.Input(
                    "steps", default=30, min=2, max=1000, tooltip="Align-Your-Steps steps per chunk; 30 is official."
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance at the last frame; 3 is official.",
                ),
                io.Float.Input(
                    "min_cfg",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance at the first frame of a chunk, rising to cfg over its frames; 1.5 is official.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Karras steps of the first clip; 25 is official.",
                ),
                io.Float.Input(
                    "first_min_cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance at the first frame of the first clip, rising to cfg; 1 is official.",
                ),
                *motion_inputs(),
                io.Combo.Input(
                    "decode",
                    options=["overlapping", "official"],
                    default="overlapping",
                    tooltip="How frames are grouped for the temporal decoder. overlapping decodes only needed frames "
                    "without group seams; official decodes 8, 8, 8 and 1 as the released program does.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels per chunk instead of steps."),
            ],
            outputs=[ChunkSampler.Output(display_name="chunk_sampler", tooltip="For Stream Sampler or Stream Chunk.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        cam,
        clip_vision,
        vae,
        steps,
        cfg,
        min_cfg,
        first_steps,
        first_min_cfg,
        preprocessing,
        decode,
        first_model=None,
        sampler=None,
        sigmas=None,
        **motion,
    ):
        sampler = sampler or svd.default_sampling().sampler
        sigmas = align_your_steps_sigmas(steps).float() if sigmas is None else sigmas
        return io.NodeOutput(
            svd.SvdChunkSampler(
                model=model,
                cam=cam,
                vae=vae,
                clip_vision=clip_vision,
                first_model=first_model or model,
                motion=motion_settings(**motion),
                sampling=svd.SamplingSettings(sampler, sigmas, cfg, min_cfg),
                first_sampling=svd.SamplingSettings(sampler, karras_sigmas(first_steps), cfg, first_min_cfg),
                grouping=decode,
                preprocessing=preprocessing,
            )
        )


NODES = (LoadStreamingSVD, SvdAnchorEncode, AlignYourStepsStreamingSVD, StreamingSVDChunkSampler)
