"""Trained parts joined to whole files of the official layouts, which the pack's loaders take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.lvdm.config import LATENT_SCALES
from streaming_core.models.lvdm.detect import detect, detect_autoencoder
from streaming_core.models.lvdm.weights import FIRST_STAGE, UNET, parts_of
from streaming_core.models.modelscope import detect as modelscope
from streaming_core.models.modelscope.weights import refuse_unread
from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.detect import CAM_PREFIX, UNET_PREFIX, detect_streamingsvd
from streaming_core.models.streamingsvd.file import cam_weights, split_file

from .configs import DEMO_DROPLET_VAE
from .layout import Base, Weights, host, read_base, read_stage
from .modelscope_towers import frozen_parts


def streamingsvd(base: Base, cam: Mapping[str, Tensor]) -> Weights:
    """A whole StreamingSVD file; `cam` is keyed as `CamNetwork`. A CAM that the base brings along is left out.

    Raises `CheckpointError` where the parts make no file that the loader would take.
    """
    former = {key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key for key in cam_weights(base.tensors)}
    tensors = {key: tensor for key, tensor in base.tensors.items() if key not in former}
    tensors.update({key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key: tensor for key, tensor in cam.items()})
    detect_streamingsvd(shapes_of(tensors), "the joined file")
    split_file(tensors, "the joined file")
    return tensors


def streamingmodelscope(base: Base, unet: Mapping[str, Tensor], cam_and_apm: Mapping[str, Tensor]) -> Weights:
    """A whole StreamingModelscope file. Raises `CheckpointError` where the loader would."""
    host()  # for its torchvision, which diffusers' classes import
    tensors = {modelscope.UNET_PREFIX + key: tensor for key, tensor in unet.items()}
    tensors = {**frozen_parts(base), **tensors, **cam_and_apm}
    modelscope.detect_streamingmodelscope(shapes_of(tensors), "the joined file")
    refuse_unread(tensors, "the joined file")
    return tensors


def lvdm(unet: Mapping[str, Tensor], autoencoder: Mapping[str, Tensor]) -> Weights:
    """A whole LVDM file, without the second names and the moving average that official ones have besides.

    Raises `CheckpointError` where the loader would.
    """
    tensors = {
        **{UNET + key: tensor for key, tensor in unet.items()},
        **{FIRST_STAGE + key: tensor for key, tensor in autoencoder.items()},
        "scale_factor": torch.tensor(LATENT_SCALES["sky"].scale),
        "shift_factor": torch.tensor(LATENT_SCALES["sky"].shift),
    }
    parts = parts_of(tensors)
    parts.check_known("the joined file")
    detect(shapes_of(parts.unet), "the joined file")
    detect_autoencoder(shapes_of(parts.first_stage), "the joined file")
    return tensors


def narrowed(tensors: Mapping[str, Tensor]) -> Weights:
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def files_of(folder: Path, stage: str, base: Path | None = None) -> tuple[Weights, ...]:
    """What `export.FILES` names, from a training folder. `base`: the file trained on, if not the folder's own."""
    if stage == "cam":
        return (streamingsvd(read_base(folder, base, with_unet=True), read_stage(folder, "cam")),)
    if stage == "ms_cam":
        unet = read_stage(folder, "ms_unet")
        return streamingmodelscope(read_base(folder, base), unet, read_stage(folder, "ms_cam")), unet
    if stage == "droplet":
        return read_stage(folder, "droplet"), read_stage(folder, "droplet_vae")
    if stage.startswith("lvdm_"):
        return (lvdm(read_stage(folder, stage), read_stage(folder, "lvdm_ae")),)
    return (read_stage(folder, stage),)


def settings_of(stage: str) -> tuple[dict[str, Any] | None, ...]:
    """Of the files of `files_of`, what goes into a config.json because shapes do not say it; None for nothing."""
    if stage != "droplet":
        return ()
    vae = DEMO_DROPLET_VAE
    return None, {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": list(vae.channels),
        "layers_per_block": vae.layers_per_block,
        "latent_channels": vae.latent_channels,
        "norm_num_groups": vae.norm_groups,
        "norm_eps": vae.norm_eps,
        "scaling_factor": vae.scaling_factor,
    }
