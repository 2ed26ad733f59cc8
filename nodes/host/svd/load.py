"""From a StreamingSVD file to the host's objects."""

from __future__ import annotations

import os
from typing import NamedTuple

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ....streaming_core.models.registry import shapes_of
from ....streaming_core.models.streamingsvd.detect import ARCHITECTURE, detect_streamingsvd
from ....streaming_core.models.streamingsvd.file import split_file
from ....streaming_core.models.streamingsvd.network import CamNetwork
from ..cam import StreamingCam, build_cam
from ..encoders import build_clip_vision
from ..files import model_file, open_network
from .build import build_vae, build_video_unet


class StreamingSVD(NamedTuple):
    """MODEL, CLIP_VISION, VAE and STREAMING_CAM of one file."""

    model: ModelPatcher
    clip_vision: ClipVisionModel
    vae: VAE
    cam: StreamingCam


def load_streamingsvd(name: str) -> StreamingSVD:
    """Load `name` from the host's checkpoints folder; see `open_streamingsvd`."""
    return open_streamingsvd(model_file("checkpoints", name))


def open_streamingsvd(path: str) -> StreamingSVD:
    """Load a file, strictly.

    Raises `CheckpointError` when the file is damaged, of another kind (which it then names) or incomplete.
    """
    source = os.path.basename(path)
    with open_network(path, ARCHITECTURE) as found:
        config = detect_streamingsvd(shapes_of(found.tensors), source)
        weights = split_file(found.tensors, source)
        return StreamingSVD(
            model=build_video_unet(weights.unet, config.cam.unet),
            clip_vision=build_clip_vision(weights.clip_vision, config.clip_vision),
            vae=build_vae(weights.vae, config.image_encoder, config.first_stage),
            cam=build_cam(CamNetwork, weights.cam, config.cam),
        )
