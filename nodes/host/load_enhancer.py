"""From an enhancer's UNet file to a host MODEL, told apart by its keys."""

from __future__ import annotations

import os

import torch

from .files import model_file, read_weights
from .i2vgenxl import build_i2vgenxl

FOLDER = "diffusion_models"
WEIGHT_TYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def load_enhancer(name: str, weight_type: str = "default"):
    """MODEL of the enhancer file `name` in the host's diffusion_models folder.

    Raises `CheckpointError` when the file is damaged, another network (which is then named) or incomplete.
    """
    path = model_file(FOLDER, name)
    return build_i2vgenxl(read_weights(path), os.path.basename(path), WEIGHT_TYPES[weight_type])
