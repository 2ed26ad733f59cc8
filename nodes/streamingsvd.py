"""Nodes of the StreamingSVD family: load, CAM, anchor, schedule, and its chunk sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from ..streaming_core.frames import to_rgb
from ..streaming_core.frames.fitting import FITS, Fit, fit
from ..streaming_core.schedules.svd import align_your_steps_sigmas, karras_sigmas
from .forms import seed_input
from .host import pixels
from .host.compat import io, schema
from .host.files import checkpoint_names, file_stamp
from .host.svd import sampler as svd
from .host.svd.load import load_streamingsvd
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkSampler, StreamingCam

CATEGORY = f"{PACK_CATEGORY}/StreamingSVD"


def motion_inputs() -> list:
    """Widgets for SVD's motion settings, with the same defaults and tooltips in every node."""
    return [
        io.Int.Input(
            "motion_bucket_id",
            default=127,
            min=1,
            max=1023,
            tooltip="Amount of motion (1-1023, unitless). Higher values move more; 127 is the official value.",
        ),
        io.Int.Input(
            "model_fps",
            default=7,
            min=1,
            max=1024,
            tooltip="Frame rate the model is conditioned on, in frames per second, 1 to 1024. Higher values make "
            "motion per frame slower; 7 is the official value. Does not change the frame rate of the saved video.",
        ),
        io.Float.Input(
            "augmentation_level",
            default=0.02,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Noise on the anchor image, 0 to 10, for pixel values from -1 to 1. Higher values let the video "
            "deviate more from the image; 0.02 is the official value. (ComfyUI's SVD node uses a scale of 0 to 1: "
            "0.01 there is 0.02 here.)",
        ),
        io.Combo.Input(
            "augmentation_noise",
            options=["gaussian", "uniform"],
            default="gaussian",
            tooltip="Kind of noise on the anchor image. SVD was trained with gaussian. The official StreamingSVD "
            "program uses uniform, which brightens the image by half the level.",
        ),
        io.Combo.Input(
            "preprocessing",
            options=list(svd.PREPROCESSINGS),
            default="official",
            tooltip="How the image is downscaled for CLIP vision. official: as in the official program. comfyui: as "
            "in ComfyUI's own nodes, without their crop. The embeddings differ slightly.",
        ),
    ]


def motion_settings(motion_bucket_id, model_fps, augmentation_level, augmentation_noise) -> svd.MotionSettings:
    return svd.MotionSettings(model_fps, motion_bucket_id, augmentation_level, augmentation_noise)


class LoadStreamingSVD(io.ComfyNode):
    """Loads the official file as the host's objects."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadStreamingSVD",
            display_name="Load StreamingSVD",
            category=CATEGORY,
            description="Loads the official StreamingSVD checkpoint (model.safetensors): the video model, CLIP "
            "vision, VAE and CAM.",
            search_aliases=["streamingt2v", "long video", "svd"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="StreamingSVD checkpoint in models/checkpoints: model.safetensors from PAIR/StreamingSVD.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="SVD video model; also works with any sampler node."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="OpenCLIP image encoder."),
                io.Vae.Output(display_name="vae", tooltip="VAE with image encoder and temporal decoder."),
                StreamingCam.Output(
                    display_name="cam",
                    tooltip="Conditional attention module; makes chunks continue the previous frames.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name):
        return file_stamp("checkpoints", ckpt_name)

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
            description="Makes conditioning from an anchor image: the image that a video starts from or whose "
            "appearance it keeps.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image encoder of the checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the checkpoint."),
                io.Image.Input(
                    "anchor",
                    tooltip="Anchor image, resized to width and height. Only the first image of a batch is used.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=64,
                    max=8192,
                    step=64,
                    tooltip="Width in pixels, a multiple of 64. Official value: 1024.",
                ),
                io.Int.Input(
                    "height",
                    default=576,
                    min=64,
                    max=8192,
                    step=64,
                    tooltip="Height in pixels, a multiple of 64. Official value: 576.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=25,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of the empty latent. The model was trained with 25.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="crop fills the size and cuts off the rest, pad repeats the border, stretch distorts the "
                    "image.",
                ),
                *motion_inputs(),
                seed_input(default=0, tooltip="Seed for the augmentation noise, 0 to 2^64 - 1."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Conditioning with the anchor."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="Conditioning without the anchor, for guidance."
                ),
                io.Latent.Output(display_name="latent", tooltip="Empty latent of num_frames frames in this size."),
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


def fit_frame(images: Tensor, height: int, width: int, mode: Fit) -> Tensor:
    """The first image of an IMAGE as one core frame of the given size."""
    return fit(pixels.images_to_core(to_rgb(images[:1])), height, width, mode)


class AlignYourStepsStreamingSVD(io.ComfyNode):
    """The official schedule."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VAlignYourSteps",
            display_name="Align Your Steps (StreamingSVD)",
            category=CATEGORY,
            description="Outputs the official StreamingSVD noise levels. ComfyUI's own node interpolates them "
            "differently.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=30,
                    min=2,
                    max=1000,
                    tooltip="Sampling steps, 2 to 1000. 30 is the official value, 10 is fast.",
                )
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels from 700 down to 0.")],
        )

    @classmethod
    def execute(cls, steps):
        return io.NodeOutput(align_your_steps_sigmas(steps).float())


class StreamingSVDChunkSampler(io.ComfyNode):
    """Everything that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VStreamingSVDChunkSampler",
            display_name="StreamingSVD Chunk Sampler",
            category=CATEGORY,
            description="Defines how StreamingSVD makes a chunk. Defaults are the official values.",
            inputs=[
                io.Model.Input("model", tooltip="StreamingSVD video model, including LoRAs and other patches."),
                StreamingCam.Input("cam", tooltip="CAM from the same checkpoint."),
                io.ClipVision.Input("clip_vision", tooltip="OpenCLIP image encoder; used once per video."),
                io.Vae.Input("vae", tooltip="VAE from the same checkpoint."),
                io.Model.Input(
                    "first_model",
                    optional=True,
                    tooltip="Model for the first chunk; officially stock SVD-XT. If not connected, the StreamingSVD "
                    "model without CAM is used.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Any sampler. If not connected, euler (the official one) is used."
                ),
                io.Int.Input(
                    "steps",
                    default=30,
                    min=2,
                    max=1000,
                    tooltip="Sampling steps per chunk (Align Your Steps schedule). 30 is the official value.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale at the last frame of a chunk. 3 is the official value.",
                ),
                io.Float.Input(
                    "min_cfg",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale at the first frame of a chunk; it rises to cfg over the frames. 1.5 is the "
                    "official value.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps for the first chunk (Karras schedule). 25 is the official value.",
                ),
                io.Float.Input(
                    "first_min_cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale at the first frame of the first chunk; it rises to cfg over the frames. 1 is "
                    "the official value.",
                ),
                *motion_inputs(),
                io.Combo.Input(
                    "decode",
                    options=["overlapping", "official"],
                    default="overlapping",
                    tooltip="How frames are grouped for the temporal decoder. overlapping decodes only the needed "
                    "frames, without seams between groups; official decodes groups of 8, 8, 8 and 1 like the released "
                    "program.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels for each chunk, instead of steps."),
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
