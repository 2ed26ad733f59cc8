"""DropletVideo: the loader, its prompt, known frames and sampling for graphs of one's own, and its chunk sampler."""

from __future__ import annotations

import torch

from ..streaming_core.errors import SettingsError
from ..streaming_core.frames import to_rgb
from ..streaming_core.frames.fitting import FITS, Fit, fit
from ..streaming_core.models.dropletvideo.conditioning import REFERENCE_NOISE
from ..streaming_core.models.dropletvideo.config import TEMPORAL_SCALE, decoded_frames, latent_count
from ..streaming_core.schedules.dropletvideo import dropletvideo_sigmas
from .forms import seed_input
from .host import pixels
from .host.compat import io, schema
from .host.dropletvideo import sampler as droplet
from .host.dropletvideo.ddim import DropletDdim
from .host.dropletvideo.load import TRANSFORMER_FOLDER, VAE_FOLDER, load_dropletvideo
from .host.dropletvideo.model import DEFAULT_FPS, FPS, INPAINT, DropletModel
from .host.dropletvideo.text import NEGATIVE, QUALITY, encode_text
from .host.files import file_stamp, model_names
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkSampler

CATEGORY = f"{PACK_CATEGORY}/DropletVideo"


def motion_input() -> io.Float.Input:
    """How strongly things move."""
    return io.Float.Input(
        "motion_fps",
        default=DEFAULT_FPS,
        min=0.1,
        max=240.0,
        step=0.1,
        tooltip="How fast things move: frames per second that the video claims to have. Lower means more motion from "
        "frame to frame. 4 and 8 are strong, 16 is the official default, 32 is calm. It does not change the frame rate "
        "of the video.",
    )


def noise_input() -> io.Float.Input:
    """Noise on the known frames."""
    return io.Float.Input(
        "reference_noise",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.0001,
        tooltip="Noise on the known frames, against drift. -1: as the model's config.json says (officially "
        f"{REFERENCE_NOISE} or 0). Not together with Perturb Tail.",
    )


def reference_noise(model, value: float) -> float:
    """What the widget means for a MODEL."""
    if value >= 0:
        return value
    if not isinstance(model.model, DropletModel):
        raise SettingsError("the model is not DropletVideo; load it with Load DropletVideo")
    return REFERENCE_NOISE if model.model.config.noise_on_reference else 0.0


class LoadDropletVideo(io.ComfyNode):
    """MODEL and VAE of DropletVideo."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadDropletVideo",
            display_name="Load DropletVideo",
            category=CATEGORY,
            description="Loads DropletVideo-5B: its transformer from models/diffusion_models and its VAE from "
            "models/vae, in the diffusers layout.",
            search_aliases=["cogvideox", "image to video", "motion control"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(TRANSFORMER_FOLDER),
                    tooltip="DropletVideo's transformer in models/diffusion_models. A config.json next to it is read.",
                ),
                io.Combo.Input(
                    "vae_name",
                    options=model_names(VAE_FOLDER),
                    tooltip="DropletVideo's VAE in models/vae. A config.json next to it is read.",
                ),
                io.Float.Input(
                    "scaling_factor",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.00001,
                    optional=True,
                    tooltip="Scaling factor of the VAE. 0: as config.json says, or 0.7 without one.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The video model; any sampler node can run it."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, vae_name, **_):
        return file_stamp(TRANSFORMER_FOLDER, model_name), file_stamp(VAE_FOLDER, vae_name)

    @classmethod
    def execute(cls, model_name, vae_name, scaling_factor=0.0):
        return io.NodeOutput(*load_dropletvideo(model_name, vae_name, scaling_factor))


class DropletVideoText(io.ComfyNode):
    """A prompt as DropletVideo was trained with."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VDropletVideoText",
            display_name="DropletVideo Text",
            category=CATEGORY,
            description="Encodes a prompt and a negative prompt as DropletVideo needs them: 400 tokens of T5 XXL, "
            "without weights for single words. Long, detailed prompts work best.",
            inputs=[
                io.Clip.Input("clip", tooltip="T5 XXL text encoder: Load CLIP, type sd3."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the video shows."),
                io.String.Input(
                    "quality", multiline=True, default=QUALITY, tooltip="Added to the prompt. May be empty."
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default=NEGATIVE,
                    tooltip="What the video should not be. May be empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    def execute(cls, clip, prompt, quality, negative_prompt):
        return io.NodeOutput(
            encode_text(clip, f"{prompt.strip()} {quality.strip()}".strip()), encode_text(clip, negative_prompt)
        )


class DropletVideoConditioning(io.ComfyNode):
    """Known frames and the motion setting, for any sampler node."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VDropletVideoConditioning",
            display_name="DropletVideo Conditioning",
            category=CATEGORY,
            description="Tells DropletVideo which frames are known and how fast things move, for KSampler and other "
            "sampler nodes. Long videos: use DropletVideo Chunk Sampler instead.",
            inputs=[
                io.Model.Input("model", tooltip="DropletVideo."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Conditioning.Input("positive", tooltip="The prompt, from DropletVideo Text."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Image.Input(
                    "start_images",
                    optional=True,
                    tooltip="First frames of the video, 1 or more. Not connected: the video is made from the prompt.",
                ),
                io.Image.Input("end_image", optional=True, tooltip="Last frame of the video."),
                *size_inputs(),
                io.Int.Input(
                    "num_frames",
                    default=81,
                    min=5,
                    max=4097,
                    step=4,
                    tooltip="Frames of the video, 4n + 1. 85 is the official number, and 88 come out; 81 are exact.",
                ),
                motion_input(),
                noise_input(),
                seed_input("the noise on the known frames"),
                fit_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt, known frames and motion."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
                io.Latent.Output(display_name="latent", tooltip="Empty latent of this size and length."),
                io.Int.Output(display_name="decoded_frames", tooltip="How many frames the VAE makes of the latent."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, negative, width, height, num_frames, **rest):
        droplet.check_family(model, vae)
        if (num_frames - 1) % TEMPORAL_SCALE:
            raise SettingsError(f"DropletVideo makes 4n + 1 frames, not {num_frames}; 81 is a good number")
        start, end = (_frames(rest.get(name), height, width, rest["fit"]) for name in ("start_images", "end_image"))
        known = droplet.known_conditioning(
            vae,
            (height, width),
            num_frames,
            start,
            end,
            reference_noise(model, rest["reference_noise"]),
            torch.Generator().manual_seed(rest["seed"]),
        )
        options = {INPAINT: known, FPS: rest["motion_fps"]}
        latents = latent_count(num_frames)
        empty = torch.zeros(1, vae.latent_channels, latents, height // 8, width // 8)
        conds = (droplet.with_options(cond, **options) for cond in (positive, negative))
        return io.NodeOutput(*conds, {"samples": empty}, decoded_frames(latents))


def _frames(images, height: int, width: int, how: Fit):
    """IMAGE as core frames of the given size; None stays None."""
    return None if images is None else fit(pixels.images_to_core(to_rgb(images)), height, width, how)


def size_inputs() -> list[io.Int.Input]:
    return [
        io.Int.Input(
            name,
            default=default,
            min=64,
            max=4096,
            step=16,
            tooltip=f"{name.capitalize()} in pixels, a multiple of 16. 672x384 is the official size; up to 1120x640 "
            "works.",
        )
        for name, default in (("width", 672), ("height", 384))
    ]


def fit_input() -> io.Combo.Input:
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default="crop",
        tooltip="crop fills the size and cuts off the rest, pad repeats the border, stretch distorts the image, which "
        "is what the official program does.",
    )


class DropletVideoSampling(io.ComfyNode):
    """The official sampler with its noise levels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VDropletVideoSampling",
            display_name="DropletVideo Sampling",
            category=CATEGORY,
            description="Outputs the official sampler (DDIM) and its noise levels, for SamplerCustom. Other samplers "
            "work with the same noise levels.",
            inputs=[
                io.Model.Input("model", tooltip="DropletVideo."),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Sampling steps, 1 to 1000. 50 is the official value."
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="The official sampler, for these noise levels only."),
                io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels down to 0."),
            ],
        )

    @classmethod
    def execute(cls, model, steps):
        return io.NodeOutput(*official_sampling(model, steps))


def official_sampling(model, steps: int):
    """SAMPLER and SIGMAS of a DropletVideo MODEL."""
    if not isinstance(model.model, DropletModel):
        raise SettingsError("the model is not DropletVideo; load it with Load DropletVideo")
    schedule = model.model.schedule
    return DropletDdim(steps, schedule), dropletvideo_sigmas(steps, schedule)


class DropletVideoChunkSampler(io.ComfyNode):
    """Everything that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VDropletVideoChunkSampler",
            display_name="DropletVideo Chunk Sampler",
            category=CATEGORY,
            description="Defines how DropletVideo makes a chunk of a long video: each chunk begins with the last "
            "frames of the one before. Give Stream Sampler 81 frames per chunk.",
            inputs=[
                io.Model.Input("model", tooltip="DropletVideo, including LoRAs."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, from DropletVideo Text."),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="The prompt of all chunks without one of their own."
                ),
                io.Clip.Input("clip", optional=True, tooltip="T5 XXL text encoder, for the prompts of a Chunk Plan."),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Any sampler. If not connected, the official one is used."
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels for each chunk, instead of steps."),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Sampling steps per chunk. 50 is the official value."
                ),
                io.Float.Input(
                    "cfg", default=6.0, min=0.0, max=100.0, step=0.1, tooltip="CFG scale. 6 is the official value."
                ),
                motion_input(),
                io.Combo.Input(
                    "prefix_frames",
                    options=["1", "4", "5", "9", "13"],
                    default="4",
                    tooltip="Last frames of a chunk that the next one begins with. The model was trained with 1 and 4; "
                    "more keep motion longer, but are experiments.",
                ),
                noise_input(),
                io.String.Input(
                    "quality",
                    multiline=True,
                    default=QUALITY,
                    tooltip="Added to each prompt of a Chunk Plan. May be empty.",
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="Image that the video ends with: its last frame is the model's version of it. Fitted to "
                    "the size as start_image is. Only the first image of a batch is used, and only the last chunk "
                    "depends on it.",
                ),
                io.Combo.Input(
                    "join",
                    options=list(droplet.JOINS),
                    default=droplet.DROP,
                    optional=True,
                    tooltip="How chunks are joined. drop: the frames that a chunk begins with are shown as the chunk "
                    "before made them. cross-fade: they fade into this chunk's version of them; needs a prefix_frames "
                    "of at least 4, and Stream Sampler.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
        )

    @classmethod
    def execute(cls, model, vae, negative, steps, cfg, motion_fps, prefix_frames, quality, **rest):
        droplet.check_family(model, vae)
        positive, clip, sigmas, end = (rest.get(name) for name in ("positive", "clip", "sigmas", "end_image"))
        if positive is None and clip is None:
            raise SettingsError("a video needs a prompt; connect positive, or clip for the prompts of a Chunk Plan")
        if rest.get("sampler") is None and sigmas is not None:
            raise SettingsError("the official sampler belongs to its own sigmas; connect sampler too, or use steps")
        official, levels = official_sampling(model, steps)
        return io.NodeOutput(
            droplet.DropletChunkSampler(
                model=model,
                vae=vae,
                prompts=() if positive is None else (positive,),
                negative=negative,
                sampler=rest.get("sampler") or official,
                sigmas=levels if sigmas is None else sigmas,
                cfg=cfg,
                fps=motion_fps,
                prefix_frames=int(prefix_frames),
                reference_noise=reference_noise(model, rest["reference_noise"]),
                suffix=quality.strip(),
                clip=clip,
                join=rest.get("join", droplet.DROP),
                end_image=None if end is None else pixels.images_to_core(to_rgb(end[:1])),
            )
        )


NODES = (
    LoadDropletVideo,
    DropletVideoText,
    DropletVideoConditioning,
    DropletVideoSampling,
    DropletVideoChunkSampler,
)
