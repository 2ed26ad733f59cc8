"""LVDM: the loader, its sampling for graphs of one's own, and its chunk sampler."""

from __future__ import annotations

from ..streaming_core.errors import SettingsError
from ..streaming_core.models.lvdm.config import NOISE_LEVELS
from ..streaming_core.schedules.lvdm import ddim_sigmas, ddpm_sigmas
from .host.compat import io, schema
from .host.encoders import encode_prompt
from .host.files import checkpoint_names, file_stamp, model_names
from .host.lvdm import sampler as lvdm
from .host.lvdm.load import (
    AUTOENCODERS,
    CHECKPOINTS,
    DETECT,
    IN_CHECKPOINT,
    LATENTS,
    OFFICIAL,
    WEIGHTS,
    load_lvdm,
)
from .host.lvdm.model import no_text, schedule_of
from .host.modelscope.ddim import Ddim
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkSampler

CATEGORY = f"{PACK_CATEGORY}/LVDM"
DDIM, DDPM = "DDIM", "DDPM"
PAPER, RELEASED = "as in the paper", "as released"


class LoadLvdm(io.ComfyNode):
    """MODEL, VAE and CLIP of LVDM."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadLvdm",
            display_name="Load LVDM",
            category=CATEGORY,
            description="Loads a checkpoint of LVDM: short videos from noise or from text, or the prediction and "
            "interpolation models that make long ones. What it is shows in its weights.",
            search_aliases=["latent video diffusion", "sky timelapse", "taichi", "text to video"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="LVDM checkpoint in models/checkpoints: short_sky.ckpt, short_taichi.ckpt, t2v.ckpt, or "
                    "one of your own training. Pickles are opened for weights only.",
                ),
                io.Combo.Input(
                    "autoencoder",
                    options=[IN_CHECKPOINT, *model_names(AUTOENCODERS)],
                    default=IN_CHECKPOINT,
                    tooltip="Where the autoencoder over frames is: in the checkpoint, as released, or in a file in "
                    "models/vae (ae_sky.ckpt, ae_taichi.ckpt).",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(WEIGHTS),
                    default=OFFICIAL,
                    tooltip="Which weights are used: the moving average of training (EMA) or those trained last. As "
                    "released: the average for prediction and interpolation, the last ones for short videos.",
                ),
                io.Combo.Input(
                    "latents",
                    options=list(LATENTS),
                    default=DETECT,
                    tooltip="What the model was trained on, which decides how its latents are scaled. detect reads it "
                    "from the file, or from its name.",
                ),
                io.Boolean.Input(
                    "safetensors_copy",
                    default=False,
                    tooltip="Write a safetensors copy into the same folder, once. It loads faster and needs less RAM; "
                    "select it here from then on.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The video model; any sampler node can run it."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.Clip.Output(
                    display_name="clip", tooltip="Text encoder of the text-to-video checkpoint; others have none."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name, autoencoder, **_):
        other = "" if autoencoder == IN_CHECKPOINT else file_stamp(AUTOENCODERS, autoencoder)
        return file_stamp(CHECKPOINTS, ckpt_name), other

    @classmethod
    def execute(cls, ckpt_name, autoencoder, weights, latents, safetensors_copy):
        return io.NodeOutput(*load_lvdm(ckpt_name, autoencoder, weights, latents, safetensors_copy))


def method_inputs() -> list:
    """The official samplers."""
    return [
        io.Combo.Input(
            "method",
            options=[DDIM, DDPM],
            default=DDIM,
            tooltip="Official sampler. DDIM takes as many steps as you choose, DDPM always all 1000, which is the "
            "release's own default.",
        ),
        io.Int.Input(
            "steps",
            default=50,
            min=1,
            max=1000,
            tooltip="DDIM steps per model call, 1 to 1000; 50 is the official value. Where steps does not divide 1000, "
            "officially some more are made. DDPM ignores it.",
        ),
    ]


def official_sampling(model, method: str, steps: int):
    """SAMPLER and SIGMAS of an LVDM MODEL."""
    schedule = schedule_of(lvdm.config_of(model))
    return Ddim(1.0), ddpm_sigmas(schedule) if method == DDPM else ddim_sigmas(steps, schedule)


class LvdmSampling(io.ComfyNode):
    """The official samplers with their noise levels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLvdmSampling",
            display_name="LVDM Sampling",
            category=CATEGORY,
            description="Outputs an official sampler of LVDM and its noise levels, for SamplerCustom, and the empty "
            "conditioning that models without text need there.",
            inputs=[io.Model.Input("model", tooltip="LVDM."), *method_inputs()],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="DDIM with eta 1, which DDPM is on all levels."),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="Noise levels. Those of DDIM end at the lowest level and not at 0, as released.",
                ),
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="Positive and negative of models without text. Text-to-video takes an encoded prompt "
                    "instead.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, method, steps):
        return io.NodeOutput(*official_sampling(model, method, steps), no_text())


class LvdmChunkSampler(io.ComfyNode):
    """Everything that decides how one chunk is sampled, for Stream Sampler and Stream Chunk."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLvdmChunkSampler",
            display_name="LVDM Chunk Sampler",
            category=CATEGORY,
            description="Defines how LVDM makes a chunk of a long video. A prediction model continues the last latents "
            "of the chunk before; short models only hold them. Give Stream Sampler 16 frames per chunk and 4 of "
            "overlap, or 52 and 4 with interpolation_model.",
            inputs=[
                io.Model.Input("model", tooltip="LVDM: a prediction model, or one of short videos."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                io.Model.Input(
                    "interpolation_model",
                    optional=True,
                    tooltip="LVDM's interpolation model. The prediction model then makes every 4th latent, and this "
                    "one the 3 between; it also fills gaps for Fill Between.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Text-to-video: prompt of all chunks without one of their own."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Text-to-video: what the video should not be. Not connected: the empty prompt of clip, as "
                    "released.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Text-to-video: encodes the prompts of a Chunk Plan."),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Any sampler. If not connected, the official one is used."
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels for each call, instead of steps."),
                *method_inputs(),
                io.Float.Input(
                    "cfg",
                    default=15.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Text-to-video: CFG scale. 15 is the official value. Models without text do not use it.",
                ),
                io.Int.Input(
                    "noise_level",
                    default=100,
                    min=-1,
                    max=NOISE_LEVELS,
                    tooltip="Noise on the latents that a prediction or interpolation model continues, against drift; "
                    "the model is told it. 100 is the official value, -1 leaves them clean. The video keeps clean "
                    "ones.",
                ),
                io.Float.Input(
                    "previous_guidance",
                    default=0.1,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Guidance towards what a prediction or interpolation model continues. 0.1 is the official "
                    "value; 0 is off and halves the time.",
                ),
                io.Combo.Input(
                    "mask",
                    options=[PAPER, RELEASED],
                    default=PAPER,
                    tooltip="Which latents a prediction model is told to be known: those it continues, as in the paper "
                    "and in training, or all of a chunk, as the released program does by mistake.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
        )

    @classmethod
    def execute(cls, model, vae, method, steps, cfg, noise_level, previous_guidance, mask, **rest):
        lvdm.check_family(model, vae, rest.get("interpolation_model"))
        official, levels = official_sampling(model, method, steps)
        return io.NodeOutput(
            lvdm.LvdmChunkSampler(
                model=model,
                vae=vae,
                sampler=rest.get("sampler") or official,
                sigmas=levels if rest.get("sigmas") is None else rest["sigmas"],
                interpolation=rest.get("interpolation_model"),
                cfg=cfg,
                noise_level=noise_level,
                previous_guidance=previous_guidance,
                whole_mask=mask == RELEASED,
                **_text(model, rest.get("positive"), rest.get("negative"), rest.get("clip")),
            )
        )


def _text(model, positive, negative, clip) -> dict:
    """What the sampler knows of prompts; refused for models that take none, and where text-to-video has none."""
    given = [
        name for name, value in (("positive", positive), ("negative", negative), ("clip", clip)) if value is not None
    ]
    if lvdm.config_of(model).kind != "text":
        if given:
            raise SettingsError(f"{given[0]} has no effect: this LVDM model takes no text; disconnect it")
        return {}
    if positive is None and clip is None:
        raise SettingsError("text-to-video needs a prompt; connect positive, or clip for the prompts of a Chunk Plan")
    if negative is None and clip is None:
        raise SettingsError("text-to-video needs a negative prompt; connect negative (an empty prompt), or clip")
    return {
        "prompts": () if positive is None else (positive,),
        "negative": encode_prompt(clip, "") if negative is None else negative,
        "clip": clip,
    }


NODES = (LoadLvdm, LvdmSampling, LvdmChunkSampler)
