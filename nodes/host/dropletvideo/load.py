"""From files of DropletVideo to the host's MODEL and VAE."""

from __future__ import annotations

import json
import logging
import os
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher

from ....streaming_core.errors import CheckpointError
from ....streaming_core.models.dropletvideo.detect import ARCHITECTURE, VAE_ARCHITECTURE, detect, detect_vae
from ....streaming_core.models.registry import shapes_of
from ....streaming_core.schedules.dropletvideo import DEFAULT_SCHEDULE, DropletSchedule, schedule_from
from ..files import model_file, open_network
from .model import build_dropletvideo
from .vae import DropletVae, build_vae

log = logging.getLogger(__name__)
TRANSFORMER_FOLDER, VAE_FOLDER = "diffusion_models", "vae"


class Loaded(NamedTuple):
    """MODEL and VAE."""

    model: ModelPatcher
    vae: DropletVae


def load_dropletvideo(name: str, vae_name: str, scaling_factor: float = 0.0) -> Loaded:
    """Load both files from the host's folders, strictly, each with the config.json next to it, if there is one.

    scaling_factor: of the VAE, in place of what config.json says; 0 for that, or 0.7 without one.

    Raises:
        CheckpointError: a file is damaged, of another kind (which it then names) or incomplete.
    """
    vae_path = model_file(VAE_FOLDER, vae_name)
    settings = _settings(vae_path, "config.json")
    if scaling_factor:
        settings["scaling_factor"] = scaling_factor
    with open_network(vae_path, VAE_ARCHITECTURE) as found:
        config = detect_vae(shapes_of(found.tensors), os.path.basename(vae_path), settings)
        vae = build_vae(found.tensors, config)
    if "scaling_factor" not in settings:
        log.info(
            "%s has no config.json next to it; its scaling factor is taken to be %g", vae_name, config.scaling_factor
        )
    path = model_file(TRANSFORMER_FOLDER, name)
    with open_network(path, ARCHITECTURE) as found:
        sizes = detect(shapes_of(found.tensors), os.path.basename(path), _settings(path, "config.json"))
        model = build_dropletvideo(found.tensors, sizes, config.scaling_factor, _schedule(path))
    return Loaded(model, vae)


def _schedule(path: str) -> DropletSchedule:
    """That of the published folder a transformer lies in, or else the published one."""
    settings = _settings(os.path.dirname(path), "scheduler", "scheduler_config.json")
    return schedule_from(settings) if settings else DEFAULT_SCHEDULE


def _settings(path: str, *names: str) -> dict[str, Any]:
    """The JSON object in a file next to `path`; empty where there is none."""
    beside = os.path.join(os.path.dirname(path), *names)
    if not os.path.isfile(beside):
        return {}
    try:
        with open(beside, encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{beside} is damaged ({error}); download it again, or remove it") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{beside} holds no settings; download it again, or remove it")
    return settings
