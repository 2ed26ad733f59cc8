"""From an enhancer's UNet file to a host MODEL; the file's keys say which of the two networks it is."""

from __future__ import annotations

import os

import torch
from comfy.model_patcher import ModelPatcher

from ....streaming_core.models.i2vgenxl.detect import ARCHITECTURE as I2VGENXL
from ....streaming_core.models.modelscope.detect import BASE_ARCHITECTURE as BASE
from ....streaming_core.models.modelscope.vid2vid import ARCHITECTURE as VID2VID
from ....streaming_core.models.modelscope.vid2vid import VELOCITY_MARK, check_role
from ..files import model_file, open_network
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
    source, keep_in = os.path.basename(path), WEIGHT_TYPES[weight_type]
    with open_network(path, VID2VID, I2VGENXL, BASE, wanted=I2VGENXL) as found:
        if found.architecture is I2VGENXL:
            return build_i2vgenxl(found.tensors, source, keep_in)
        if found.architecture is VID2VID:
            check_role(source, "MS-Vid2Vid")
        elif not found.has(VELOCITY_MARK):
            raise I2VGENXL.refusal(found.tensors, source)
        return build_vid2vid(found.tensors, source, keep_in=keep_in)
