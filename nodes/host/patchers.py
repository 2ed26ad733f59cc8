"""Our networks under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.sd import VAE
from comfy.supported_models_base import BASE
from torch import Tensor, nn

from ...streaming_core.loop.sampler import StepMemory
from ...streaming_core.models.layers import Device, Operations
from ...streaming_core.models.registry import compare_keys, shapes_of
from ...streaming_core.models.unet3d import UNet3D, UNet3DSizes
from .unet_patches import PatchHooks, check_patches


def managed(network: nn.Module, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    """`network` under the host's current patcher class (the dynamic-memory one where the host has switched to it)."""
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(network, load_device=load_device, offload_device=offload_device)


class HostNetwork(nn.Module):
    """The constructor, call, wrappers and patches that the host expects of a diffusion model, before a UNet of ours.

    A class derives from this first and from the network second, and does its work in `_run`. `called` names the model
    in errors.
    """

    called: str
    sizes: UNet3DSizes
    _run: Callable[..., Tensor]

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype | None = None,
        device: Device = None,
        operations: Operations = nn,
    ) -> None:
        super().__init__(config, operations, dtype, device)
        # The host asks for the type in which weights are stored.
        self.dtype = dtype
        self.requires_grad_(False).eval()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        transformer_options = transformer_options or {}
        self.check(transformer_options)
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._run, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **conds)

    def check(self, transformer_options: Mapping[str, Any]) -> None:
        """Raise `SettingsError` for patches that have no place here."""
        check_patches(transformer_options, cast(UNet3D, self), self.called)

    def hooks(self, options: dict[str, Any], x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> PatchHooks:
        """What runs the patches in `options` during the pass on `x`; `options` is of this pass and is written to."""
        return PatchHooks(options, self.sizes.channels[0], x, timesteps, context)

    def to(self, *args: Any, **options: Any) -> HostNetwork:
        """As for any module, but a memory format of images is given to images only: convolutions over time stay."""
        memory_format = options.pop("memory_format", torch.preserve_format)
        moved = super().to(*args, **options) if args or options else self
        for parameter in moved.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=memory_format)
        return moved


def check_model(model: ModelPatcher) -> None:
    """Raise `SettingsError` for a MODEL of ours that carries patches it cannot run; other MODELs are the host's matter.

    The network refuses them at its first call; nodes that load, encode or sample other things before ask here.
    """
    network = model.model.diffusion_model
    if isinstance(network, HostNetwork):
        network.check(model.model_options.get("transformer_options", {}))


def choose_dtype(
    model_config: BASE, weight_dtype: torch.dtype, parameters: int, keep_in: torch.dtype | None = None
) -> torch.dtype:
    """Let the host choose, as for a file, in which types a model keeps and computes; returns that of the weights.

    `keep_in` is the type of the weights instead of the host's choice.
    """
    supported = list(model_config.supported_inference_dtypes)
    dtype = keep_in or mm.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=weight_dtype)
    model_config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, mm.get_torch_device(), supported))
    return dtype


def load_model(model: BaseModel, tensors: Mapping[str, Tensor], what: str) -> ModelPatcher:
    """MODEL: `model` under the host's patcher, with `tensors`, keyed as in its network, loaded strictly.

    `what` names the network in errors. Raises `IncompleteCheckpointError`.
    """
    compare_keys(shapes_of(model.diffusion_model.state_dict()), shapes_of(tensors), what)
    patcher = managed(model, mm.get_torch_device(), mm.unet_offload_device())
    # Dynamic patchers want weights assigned, not copied; older hosts do not know the option.
    assign = {"assign": patcher.is_dynamic()} if hasattr(patcher, "is_dynamic") else {}
    model.load_model_weights(dict(tensors), "", **assign)
    return patcher


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers `tensors` hold."""
    return sum(tensor.numel() for tensor in tensors.values())


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type most weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)


def step_memory(
    model: ModelPatcher, shape: Sequence[int], vae: VAE, decoded_together: int, networks: Sequence[ModelPatcher]
) -> StepMemory:
    """What a step on latents of `shape` takes, by the host's estimates.

    `decoded_together`: frames of one call of the decoder, where frames are the batch. `networks`: patchers of all that
    a step runs.
    """
    # The two halves of guidance run together where there is room, else one by one.
    least = int(model.memory_required(tuple(shape)))
    if len(shape) == 4:  # frames are a batch, decoded by few; whole videos the host decodes in tiles
        decoding = vae.memory_used_decode((decoded_together, *shape[1:]), vae.vae_dtype)
        least = max(least, int(decoding) * decoded_together)
    if model.load_device.type == "cpu":
        return StepMemory(least, least, None)
    both = int(model.memory_required((2 * shape[0], *shape[1:])))
    weights = sum(patcher.model_size() for patcher in networks)
    return StepMemory(least, both + weights, mm.get_total_memory(model.load_device))
