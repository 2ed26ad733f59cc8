"""From files of the ModelScope family to the host's objects."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ....streaming_core.models.i2vgenxl.detect import ARCHITECTURE as I2VGENXL
from ....streaming_core.models.modelscope.cam import ModelscopeCam
from ....streaming_core.models.modelscope.detect import (
    APM_PREFIX,
    ARCHITECTURE,
    BASE_ARCHITECTURE,
    CLIP_VISION_PREFIX,
    TEXT_PREFIX,
    VAE_PREFIX,
    detect_streamingmodelscope,
    detect_unet,
)
from ....streaming_core.models.modelscope.vid2vid import ARCHITECTURE as ORIGINAL_LAYOUT
from ....streaming_core.models.modelscope.vid2vid import VELOCITY_MARK, check_role, rename
from ....streaming_core.models.modelscope.weights import cam_part, refuse_unread, unet_part
from ....streaming_core.models.registry import WrongCheckpointError, shapes_of, take
from ..cam import StreamingCam, build_cam
from ..encoders import build_clip_vision
from ..files import model_file, open_network
from .apm import StreamingApm, build_apm
from .model import build_modelscope
from .towers import build_kl_vae, build_text_encoder, write_safetensors_copy

log = logging.getLogger(__name__)


class StreamingModelscope(NamedTuple):
    """MODEL, CLIP, CLIP_VISION, VAE, STREAMING_CAM and STREAMING_APM of one file."""

    model: ModelPatcher
    clip: CLIP
    clip_vision: ClipVisionModel
    vae: VAE
    cam: StreamingCam
    apm: StreamingApm


def load_streamingmodelscope(name: str, safetensors_copy: bool = False) -> StreamingModelscope:
    """Load `name` from the host's checkpoints folder, strictly.

    `safetensors_copy` writes one next to the file, once: it loads faster and needs no memory for what is not in use.
    Raises `CheckpointError` when the file is damaged, of another kind (which it then names) or incomplete.
    """
    path = model_file("checkpoints", name)
    source = os.path.basename(path)
    with open_network(path, ARCHITECTURE) as found:
        tensors = found.tensors
        config = detect_streamingmodelscope(shapes_of(tensors), source)
        refuse_unread(tensors, source)
        loaded = StreamingModelscope(
            model=build_modelscope(unet_part(tensors), config.unet, "the video UNet"),
            clip=build_text_encoder(take(tensors, TEXT_PREFIX), config.text_encoder),
            clip_vision=build_clip_vision(take(tensors, CLIP_VISION_PREFIX), config.clip_vision),
            vae=build_kl_vae(take(tensors, VAE_PREFIX), config.vae),
            cam=build_cam(ModelscopeCam, cam_part(tensors), config.cam),
            apm=build_apm(take(tensors, APM_PREFIX), config.image_projector),
        )
    if safetensors_copy and (written := write_safetensors_copy(path, tensors)):
        log.info("wrote %s; choose it in the loader from now on", written)
    return loaded


def load_modelscope_unet(name: str) -> ModelPatcher:
    """MODEL of the base text-to-video UNet from the host's diffusion_models folder.

    The file has the diffusers layout, or ModelScope's own (`text2video_pytorch_model.pth`), or is what the host saved
    of such a MODEL. Raises `CheckpointError`.
    """
    path = model_file("diffusion_models", name)
    source = os.path.basename(path)
    with open_network(path, I2VGENXL, BASE_ARCHITECTURE, ORIGINAL_LAYOUT, wanted=BASE_ARCHITECTURE) as found:
        tensors = found.tensors
        if found.architecture is I2VGENXL:
            raise WrongCheckpointError(f"{source} is an I2VGen-XL UNet, which Load Enhancer reads")
        if found.has(VELOCITY_MARK):
            raise WrongCheckpointError(f"{source} is an MS-Vid2Vid UNet as ComfyUI saves it, which Load Enhancer reads")
        if found.architecture is ORIGINAL_LAYOUT:
            check_role(source, "ModelScope text-to-video")
            tensors = rename(tensors)
        return build_modelscope(tensors, detect_unet(shapes_of(tensors)), "the video UNet")
