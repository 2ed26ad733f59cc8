"""From an enhancer's UNet file to a host MODEL; the file's keys say which of the two networks it is."""

from __future__ import annotations

import os

import torch
from comfy.model_patcher import ModelPatcher

from ....streaming_core.models.modelscope.vid2vid import ARCHITECTURE as VID2VID
from ..files import model_file, read_weights
from ..modelscope.vid2vid import build_vid2vid
from .i2vgenxl import build_i2vgenxl

FOLDER = "diffusion_models"
WEIGHT_TYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def load_enhancer(name: str, weight_type: str = "default") -> ModelPatcher:
    """MODEL of the enhancer file `name` in the host's diffusion_models folder.

    Raises:
        CheckpointError: the file is damaged, incomplete, or another network, which is then named.
    """
    path = model_file(FOLDER, name)
    tensors, source = read_weights(path), os.path.basename(path)
    if not VID2VID.missing(tensors):
        return build_vid2vid(tensors, source, keep_in=WEIGHT_TYPES[weight_type])
    return build_i2vgenxl(tensors, source, WEIGHT_TYPES[weight_type])
