"""The describer that knows the host's objects, and what they keep for themselves while they work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ....streaming_core.identity import NOT_MINE, Describer, NotMine, Plain, Rule, RunTimeState

STATE = RunTimeState()
"""What of the objects of this process changed while a run sampled."""

_HOST_STATE = ("comfy_", "prev_comfy_", "model_loaded_", "model_lowvram", "lowvram_", "current_weight_patches")
_HOST_NAMES = frozenset(
    {
        "training",
        "device",
        "seed_key",
        "current_patcher",
        "model_offload_buffer_memory",
        "dynamic_vbars",
        "latent_shapes",
    }
    | {"dynamic_pins", "dynamic_patchers", "weight_function", "bias_function", "memory_usage_factor"}
    | {"memory_usage_factor_conds", "memory_usage_shape_process", "_v", "_v_block", "_v_signature", "_pin_state"}
)


def is_host_state(owner: object, name: str) -> bool:
    """Whether an attribute is how the host manages memory: it says nothing about results."""
    if not isinstance(owner, nn.Module):
        return False
    return name in _HOST_NAMES or name.startswith(_HOST_STATE) or name.endswith(("_lowvram_function", "_model_dtype"))


class HostDescriber(Describer):
    """Describes host objects by rules.

    `weights=False` leaves the weights of networks out, where only settings are compared.
    """

    def __init__(self, rules: Sequence[Rule], weights: bool = True) -> None:
        super().__init__((_part_of_a_model, *rules), is_host_state, STATE)
        self.weights = weights
        self.known_weights: dict[int, str] = {}
        self.places: dict[int, tuple[str, nn.Module]] = {}

    def register(self, model: nn.Module, prefix: str = "") -> None:
        """Remember all parts of a model by name, for patches that hold them."""
        for name, part in model.named_modules():
            self.places.setdefault(id(part), (".".join(filter(None, (prefix, name))), part))


def _part_of_a_model(describer: Describer, value: Any) -> Plain | NotMine:
    """Parts of a model that is described stand by name: their weights may be patched at the moment."""
    if isinstance(describer, HostDescriber) and id(value) in describer.places:
        return {"part of the model": describer.places[id(value)][0] or "all of it"}
    return NOT_MINE
