"""What the CAMs of all families share: the handle, how it is made, the control frames, the strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...streaming_core.errors import FrameMismatchError, SettingsError
from ...streaming_core.models.layers import Device
from ...streaming_core.models.modelscope.cam import ModelscopeCam
from ...streaming_core.models.modelscope.config import ModelscopeCamConfig
from ...streaming_core.models.registry import load_strict
from ...streaming_core.models.streamingsvd.config import CamConfig
from ...streaming_core.models.streamingsvd.network import CamNetwork
from .patchers import managed, parameter_count, stored_dtype
from .pixels import core_to_images
from .remedies.frames import ShownTail
from .remedies.steps import SigmaRange

AnyCamNetwork = CamNetwork | ModelscopeCam
AnyCamConfig = CamConfig | ModelscopeCamConfig


@dataclass(frozen=True)
class StreamingCam:
    """A STREAMING_CAM: the CAM network of a family under the host's patcher."""

    patcher: ModelPatcher

    @property
    def network(self) -> AnyCamNetwork:
        return self.patcher.model

    @property
    def config(self) -> AnyCamConfig:
        return self.network.config


def empty_cam(
    make: Callable[..., AnyCamNetwork],
    config: AnyCamConfig,
    weight_dtype: torch.dtype,
    parameters: int,
    device: Device = None,
) -> AnyCamNetwork:
    """A CAM network of class `make` on the host's operations, without weights; type and device chosen as for a UNet.

    `device`, where given, is where the weights are made; otherwise the host decides.
    """
    dtype = mm.unet_dtype(model_params=parameters, weight_dtype=weight_dtype)
    compute_dtype = mm.unet_manual_cast(dtype, mm.get_torch_device())
    operations = comfy.ops.pick_operations(dtype, compute_dtype)
    device = device or mm.unet_inital_load_device(parameters, dtype)
    network = make(config, operations=operations, dtype=dtype, device=device).eval()
    network.compute_dtype = compute_dtype or dtype
    return network


def build_cam(make: Callable[..., AnyCamNetwork], tensors: Mapping[str, Tensor], config: AnyCamConfig) -> StreamingCam:
    """STREAMING_CAM from the tensors of a network of class `make`, keyed as there, loaded strictly."""
    network = empty_cam(make, config, stored_dtype(tensors), parameter_count(tensors))
    load_strict(network, tensors, "the CAM network")
    return StreamingCam(managed(network, mm.get_torch_device(), mm.unet_offload_device()))


def encode_control_frames(cam: StreamingCam, control_frames: Tensor) -> Tensor:
    """Run the pixel encoder once: `[k, H, W, 3]` in [0, 1] to the embedding, on the host's intermediate device."""
    pixels = rearrange(control_frames[..., :3], "k h w c -> k c h w") * 2 - 1
    # Three maps of the widest early layer dominate: 32 channels at full resolution, and its normalized copies.
    memory = 4 * pixels.shape[0] * pixels[0, 0].numel() * 4 * max(cam.config.pixel_channels[:2])
    mm.load_models_gpu([cam.patcher], memory_required=memory)
    pixels = pixels.to(device=cam.patcher.load_device, dtype=cam.network.compute_dtype)
    with torch.inference_mode():
        return cam.network.encode_pixels(pixels).to(mm.intermediate_device())


@dataclass(frozen=True, eq=False)
class PerturbedControl:
    """The embedding of control frames with noise on them, which the network is shown within `steps` instead."""

    embedding: Tensor
    steps: SigmaRange


def encode_shown(cam: StreamingCam, shown: Tensor | ShownTail) -> tuple[Tensor, PerturbedControl | None]:
    """Encode control frames once per chunk: IMAGE `[k, H, W, 3]`, or core frames that differ between steps.

    Raises `FrameMismatchError` for a size that the network cannot take.
    """
    images = shown if isinstance(shown, Tensor) else core_to_images(shown.frames)
    check_control_frames(images, cam.config.unet.multiple_px)
    embedding = encode_control_frames(cam, images)
    if isinstance(shown, Tensor) or shown.perturbed is None:
        return embedding, None
    return embedding, PerturbedControl(encode_control_frames(cam, core_to_images(shown.perturbed)), shown.steps)


def embedding_at(
    embedding: Tensor, perturbed: PerturbedControl | None, transformer_options: Mapping[str, Any]
) -> Tensor:
    """What a call of the network is shown of the control frames."""
    if perturbed is not None and perturbed.steps.is_in(transformer_options):
        return perturbed.embedding
    return embedding


def at_strength(plain: Tensor, merged: Tensor, strength: float) -> Tensor:
    """`merged` at strength 1, `plain` at 0, in between and beyond on the line through both."""
    return merged if strength == 1 else torch.lerp(plain, merged.to(plain.dtype), strength)


def check_control_frames(control_frames: Tensor, multiple_px: int) -> None:
    """Raise `FrameMismatchError` unless height and width of IMAGE `[k, H, W, 3]` are multiples of `multiple_px`."""
    height, width = control_frames.shape[1:3]
    if height % multiple_px or width % multiple_px:
        raise FrameMismatchError(
            f"control frames are {width}x{height}, but this model works in multiples of {multiple_px} pixels; "
            "resize or crop them first"
        )


def check_call(control_embedding: Tensor, x: Tensor, frames: int) -> None:
    """Whether control frames fit a call of the UNet on `x` `[.., h, w]` with `frames` frames per video.

    Raises:
        SettingsError: no new frame would be left.
        FrameMismatchError: the latent is of another size.
    """
    control_frames = control_embedding.shape[0]
    if control_frames >= frames:
        raise SettingsError(
            f"{control_frames} control frames leave nothing new in a chunk of {frames} frames; "
            "use fewer control frames or a longer chunk"
        )
    if control_embedding.shape[-2:] != x.shape[-2:]:
        have, want = ((8 * t.shape[-1], 8 * t.shape[-2]) for t in (control_embedding, x))
        raise FrameMismatchError(
            f"control frames are {have[0]}x{have[1]}, but the model was called with a latent for {want[0]}x{want[1]}; "
            "give both the same size, and remove nodes that sample in tiles"
        )


ALREADY_ATTACHED = "CAM is already attached to this model; connect the model from before CAM Conditioning"
