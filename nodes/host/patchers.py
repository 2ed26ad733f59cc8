"""Our networks under the host's memory management."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_patcher
import torch
from torch import Tensor, nn


def managed(network: nn.Module, load_device: torch.device, offload_device: torch.device):
    """`network` under the host's current patcher class (the dynamic-memory one where the host has switched to it)."""
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(network, load_device=load_device, offload_device=offload_device)


def assign_option(patcher) -> dict:
    """Dynamic patchers want weights assigned, not copied; older hosts do not know the option."""
    return {"assign": patcher.is_dynamic()} if hasattr(patcher, "is_dynamic") else {}


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type most weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)
