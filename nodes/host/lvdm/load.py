"""From files of LVDM to the host's MODEL, VAE and CLIP."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ....streaming_core.errors import CheckpointError, SettingsError
from ....streaming_core.models.lvdm.config import LATENT_SCALES, LatentScale, LvdmConfig
from ....streaming_core.models.lvdm.detect import detect, detect_autoencoder
from ....streaming_core.models.lvdm.weights import LvdmFile, averaged, check_autoencoder, check_unet, parts_of
from ....streaming_core.models.modelscope.detect import detect_text_encoder
from ....streaming_core.models.registry import shapes_of
from ....streaming_core.models.towers import detect_vae
from ..files import errors_named, log_ignored, model_file, read_weights
from ..modelscope.towers import build_image_vae, build_text_encoder, write_safetensors_copy
from .model import build_lvdm
from .vae import build_vae

log = logging.getLogger(__name__)
CHECKPOINTS, AUTOENCODERS = "checkpoints", "vae"
IN_CHECKPOINT = "in the checkpoint"
OFFICIAL, AVERAGE, LAST = "as released", "moving average", "as trained last"
WEIGHTS = (OFFICIAL, AVERAGE, LAST)
"""Which weights are loaded; officially the average of long models and the last ones of the others."""
DETECT = "detect"
LATENTS = (DETECT, "sky", "taichi", "ucf")


class Loaded(NamedTuple):
    """MODEL, VAE and CLIP; the last two are None where the file has none and none is asked for."""

    model: ModelPatcher
    vae: VAE | None
    clip: CLIP | None


def load_lvdm(
    name: str,
    autoencoder: str = IN_CHECKPOINT,
    weights: str = OFFICIAL,
    latents: str = DETECT,
    safetensors_copy: bool = False,
) -> Loaded:
    """Load `name` from the host's checkpoints folder, strictly.

    Args:
        autoencoder: a file in the host's vae folder, or `IN_CHECKPOINT`.
        weights: one of `WEIGHTS`.
        latents: one of `LATENTS`: what the networks were trained on, which decides how latents are scaled.
        safetensors_copy: write one next to the checkpoint, once.

    Raises:
        CheckpointError: a file is damaged, of another kind (which it then names) or incomplete.
        SettingsError: nothing says how latents are scaled, or a choice has no effect.
    """
    path = model_file(CHECKPOINTS, name)
    source = os.path.basename(path)
    with errors_named(source):
        tensors = read_weights(path)
        file = parts_of(tensors)
        check_unet(file, tensors, source)
        config = detect(shapes_of(file.unet), source)
        file.check_known(source)
        log_ignored(source, file.ignored)
        own = autoencoder == IN_CHECKPOINT
        scale = _scale(config, latents, file.latents, source if own else f"{source} {autoencoder}")
        model = build_lvdm(_chosen(file, config, weights, source), config, scale)
        vae = _own_vae(file, config, source) if own else None
        clip = None
        if file.text:
            clip = build_text_encoder(file.text, detect_text_encoder(shapes_of(file.text), ""), openai=True)
        if safetensors_copy and (written := write_safetensors_copy(path, tensors)):
            log.info("wrote %s; choose it in the loader from now on", written)
    return Loaded(model, vae if own else _other_vae(config, autoencoder), clip)


def _chosen(file: LvdmFile, config: LvdmConfig, weights: str, source: str) -> dict:
    if weights == AVERAGE or (weights == OFFICIAL and config.kind == "conditional" and file.average):
        return averaged(file.average, file.unet, source)
    return file.unet


def _scale(config: LvdmConfig, latents: str, found: LatentScale | None, names: str) -> LatentScale:
    """How latents are scaled: as chosen, as the file says, or as its name does."""
    if config.kind == "text":
        if latents != DETECT:
            raise SettingsError(
                f"text-to-video has latents of Stable Diffusion, not those of {latents}; choose {DETECT}"
            )
        return found or LATENT_SCALES["text"]
    if latents != DETECT:
        return LATENT_SCALES[latents]
    if found is not None:
        return found
    named = [kind for kind in LATENTS[1:] if kind in names.lower()]
    if len(named) != 1:
        raise SettingsError(
            "nothing in the file or its name says how its latents are scaled; choose sky, taichi or ucf as latents, "
            "whatever the model was trained on"
        )
    log.info("%s: latents are scaled as those of %s, by the name", names, named[0])
    return LATENT_SCALES[named[0]]


def _own_vae(file: LvdmFile, config: LvdmConfig, source: str) -> VAE | None:
    shapes = shapes_of(file.first_stage)
    if config.kind == "text":
        if not shapes:
            log.info("%s holds no VAE; use Load VAE with that of Stable Diffusion 1", source)
            return None
        return build_image_vae(file.first_stage, detect_vae(shapes, ""))
    if not shapes:
        raise CheckpointError(f"{source} holds no autoencoder; choose a file of its own as autoencoder (ae_sky.ckpt)")
    return build_vae(file.first_stage, detect_autoencoder(shapes, source))


def _other_vae(config: LvdmConfig, name: str) -> VAE:
    if config.kind == "text":
        raise SettingsError(
            f"text-to-video has its VAE in the checkpoint; choose {IN_CHECKPOINT!r}, or use Load VAE for another"
        )
    path = model_file(AUTOENCODERS, name)
    source = os.path.basename(path)
    with errors_named(source):
        tensors = read_weights(path)
        file = parts_of(tensors)
        check_autoencoder(file, tensors, source)
        log_ignored(source, file.ignored)
        return build_vae(file.first_stage, detect_autoencoder(shapes_of(file.first_stage), source))
