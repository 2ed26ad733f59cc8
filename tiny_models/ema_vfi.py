"""Small EMA-VFI networks and weight files with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from streaming_core.models.ema_vfi.config import EmaVfiConfig, standard_config
from streaming_core.models.ema_vfi.network import EmaVfi

from .streamingsvd import write

TINY = standard_config(4, (2, 2, 2, 2, 2))


def random_network(seed: int = 0, config: EmaVfiConfig = TINY) -> EmaVfi:
    """Weights large enough that features, flow and refinement all show in the image."""
    network = EmaVfi(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        spread = 0.3 if parameter.ndim == 1 else 1.4 * parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        if parameter.ndim == 1 and not name.endswith("bias"):
            parameter.abs_()
    return network


def official_tensors_of(network: EmaVfi) -> dict[str, Tensor]:
    """As published: every key prefixed, run-time buffers left in."""
    tensors = {f"module.{key}": value.clone() for key, value in network.state_dict().items()}
    tensors["module.feature_bone.block4.1.attn_mask"] = torch.zeros(1, 49, 49)
    tensors["module.feature_bone.block4.1.HW"] = torch.tensor([64])
    return tensors


def write_tiny_ema_vfi(path: Path, seed: int = 0, config: EmaVfiConfig = TINY) -> Path:
    """A file as published, .pkl or .safetensors by its name."""
    return write(path, official_tensors_of(random_network(seed, config)))
