"""OPTICAL_FLOW as newer hosts load it themselves: the folder, its files, RAFT-large under a patcher."""

from __future__ import annotations

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher

from ....streaming_core.metrics.flow import RAFT_FOLDER, RAFT_LARGE, build_raft
from ..files import add_model_folder, model_file, model_names, open_network
from ..patchers import managed


def ensure_folder() -> None:
    """`models/optical_flow`, for hosts that do not have it yet."""
    add_model_folder(RAFT_FOLDER)


def optical_flow_names() -> list[str]:
    """Weight files in `models/optical_flow`."""
    return model_names(RAFT_FOLDER)


def optical_flow_file(name: str) -> str:
    """Path of one of them; raises when it is not there or leads outside."""
    return model_file(RAFT_FOLDER, name)


def load_raft(name: str) -> ModelPatcher:
    """OPTICAL_FLOW: torchvision's RAFT-large in float32 under a patcher."""
    with open_network(optical_flow_file(name), RAFT_LARGE) as found:
        network = build_raft(found.tensors, name).float()
    return managed(network, mm.get_torch_device(), mm.unet_offload_device())
