"""INTERP_MODEL on every host: ours for the host's node, the host's for ours (reference: comfyui-host, 17.2)."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher

from ....streaming_core.errors import SettingsError
from ....streaming_core.interpolation.stream import InterpolationModel
from ....streaming_core.loop.fillers import InterpolatedGaps
from ....streaming_core.models.ema_vfi.detect import ARCHITECTURE
from ....streaming_core.models.ema_vfi.interpolator import EmaVfiSettings, build
from ..compat import is_out_of_memory
from ..files import add_model_folder, model_file, model_names, open_network
from ..identity.identities import identities
from ..patchers import managed
from ..progress import check_cancel

INTERPOLATION_FOLDER = "frame_interpolation"
DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""`auto`: half on devices where the host would use it."""


_PLAIN = (bool, int, float, str, tuple, list)


def ensure_folder() -> None:
    """`models/frame_interpolation`, for hosts that do not have it yet."""
    add_model_folder(INTERPOLATION_FOLDER)


def interpolation_names() -> list[str]:
    """Weight files in `models/frame_interpolation`."""
    return model_names(INTERPOLATION_FOLDER)


def interpolation_file(name: str) -> str:
    """Path of one of them; raises when it is not there or leads outside."""
    return model_file(INTERPOLATION_FOLDER, name)


def load_ema_vfi(name: str, settings: EmaVfiSettings, dtype: torch.dtype | None) -> ModelPatcher:
    """An INTERP_MODEL: EMA-VFI under the host's patcher, in `dtype` or in what the host would choose."""
    device = mm.get_torch_device()
    if dtype is None:
        dtype = torch.float16 if mm.should_use_fp16(device) else torch.float32
    with open_network(interpolation_file(name), ARCHITECTURE) as found:
        network = build(found.tensors, settings, operations=comfy.ops.disable_weight_init, dtype=dtype)
    return managed(network, device, mm.unet_offload_device())


def gap_filler(patcher: Any, stride: int) -> InterpolatedGaps:
    """Any INTERP_MODEL as what fills gaps between keyframes. Raises as `to_core`."""
    model = to_core(patcher)
    # What a network is set to, besides its weights: times, augmentation, scales.
    settings = {
        name: value
        for name, value in vars(model.network).items()
        if not name.startswith("_") and name != "training" and (isinstance(value, _PLAIN) or is_dataclass(value))
    }
    return InterpolatedGaps(model, identities(network=patcher, settings=settings), stride)


def to_core(patcher: Any) -> InterpolationModel:
    """Any INTERP_MODEL, the host's RIFE and FILM included, as what the core works with.

    Raises `SettingsError` for values that are something else.
    """
    network: Any = getattr(patcher, "model", None)
    lacking = [name for name in ("memory_used_forward", "extract_features") if not hasattr(network, name)]
    if lacking:
        raise SettingsError(
            f"{type(network).__name__} is not an interpolation model (it lacks {', '.join(lacking)}); connect "
            "Load EMA-VFI or the host's Load Frame Interpolation Model"
        )
    device, dtype = patcher.load_device, patcher.model_dtype() or torch.float32

    def prepare(shape: tuple[int, ...]) -> None:
        mm.load_models_gpu([patcher], memory_required=network.memory_used_forward(shape, dtype))

    return InterpolationModel(
        network,
        device,
        dtype,
        prepare=prepare,
        free_bytes=lambda: None if mm.is_device_cpu(device) else mm.get_free_memory(device),
        recover=mm.soft_empty_cache,
        is_out_of_memory=is_out_of_memory,
        check_cancel=check_cancel,
    )
