"""Rules for the host's other objects: VAE, text encoder, CLIP vision, ControlNet, hooks, and the pack's own."""

from __future__ import annotations

import contextlib
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.latent_formats
import comfy.model_patcher
from torch import nn

from ....streaming_core.identity import NOT_MINE, Describer, NotMine, Plain
from .describer import HostDescriber
from .models import content_digest, describe_model

_VAE_STATE = ("first_stage_model", "device", "output_device", "working_dtypes", "size", "disable_offload")
_CONTROL_STATE = frozenset(
    {"cond_hint", "timestep_range", "extra_concat", "model_sampling_current", "control_model", "control_input"}
    | {"load_device", "device", "multigpu_clones", "previous_controlnet"}
)
_HOOK_STATE = ("hook_ref", "_skip_adding")


def _patcher(describer: Describer, value: Any) -> Plain | NotMine:
    if isinstance(value, comfy.model_patcher.ModelPatcher) and isinstance(describer, HostDescriber):
        return describe_model(describer, value)
    return NOT_MINE


def _has(value: Any, *names: str) -> bool:
    attributes = getattr(value, "__dict__", {})
    return not isinstance(value, nn.Module) and all(name in attributes for name in names)


def _vae(describer: Describer, value: Any) -> Plain | NotMine:
    if not _has(value, "patcher", "first_stage_model"):
        return NOT_MINE
    memory = [name for name in vars(value) if name.startswith("memory_used")]
    return describer.plain_object(value, but=(*_VAE_STATE, *memory))


def _text_encoder(describer: Describer, value: Any) -> Plain | NotMine:
    if not _has(value, "patcher", "cond_stage_model", "tokenizer"):
        return NOT_MINE
    names = ("patcher", "layer_idx", "use_clip_schedule", "apply_hooks_to_conds", "tokenizer_options")
    parts = {name: getattr(value, name, None) for name in names}
    tokenizer = type(value.tokenizer).__name__
    return {"class": "CLIP", "tokenizer": tokenizer, "values": dict(describer.parts(parts, empty=False))}


def _clip_vision(describer: Describer, value: Any) -> Plain | NotMine:
    if not _has(value, "patcher", "model") or not hasattr(value, "encode_image"):
        return NOT_MINE
    return describer.plain_object(value, but=("model", "load_device"))


def _control(describer: Describer, value: Any) -> Plain | NotMine:
    """A ControlNet by its settings and weights. The host's copy of it has no run-time state."""
    if not isinstance(value, comfy.controlnet.ControlBase):
        return NOT_MINE
    copy = value
    with contextlib.suppress(Exception):  # other packs' copies may fail; then the object itself serves
        copy = value.copy()
    kept = {name: item for name, item in vars(copy).items() if name not in _CONTROL_STATE}
    kept["extra_args"] = {key: item for key, item in copy.extra_args.items() if not isinstance(item, nn.Module)}
    if "control_weights" in kept:
        # A control LoRA builds its network, and takes its type, from the model whenever it samples.
        kept = {name: item for name, item in kept.items() if name not in ("control_model_wrapped", "manual_cast_dtype")}
        if isinstance(describer, HostDescriber):
            kept["control_weights"] = content_digest(describer, kept["control_weights"])
    parts = describer.parts({**kept, "previous_controlnet": value.previous_controlnet}, empty=False)
    return {"class": type(value).__name__, "values": dict(parts)}


def _hook(describer: Describer, value: Any) -> Plain | NotMine:
    if not isinstance(value, comfy.hooks.Hook) or not isinstance(describer, HostDescriber):
        return NOT_MINE
    kept = {name: item for name, item in vars(value).items() if name not in _HOOK_STATE}
    for name in ("weights", "weights_clip"):
        if isinstance(kept.get(name), dict):
            kept[name] = content_digest(describer, kept[name])
    return {"class": type(value).__name__, "values": dict(describer.parts(kept, empty=False))}


def _hook_group(describer: Describer, value: Any) -> Plain | NotMine:
    if isinstance(value, comfy.hooks.HookGroup):
        return {"hooks": describer.value(list(value.hooks))}
    if isinstance(value, comfy.hooks.HookKeyframeGroup):
        return {"keyframes": describer.value(list(value.keyframes))}
    if isinstance(value, comfy.hooks.HookKeyframe):
        return describer.plain_object(value, but=("start_t",))
    return NOT_MINE


def _latent_format(describer: Describer, value: Any) -> Plain | NotMine:
    """How latents are scaled; colors for previews are left out."""
    if not isinstance(value, comfy.latent_formats.LatentFormat):
        return NOT_MINE
    colors = [name for name in vars(value) if name.startswith(("latent_rgb", "taesd"))]
    return describer.plain_object(value, but=colors)


RULES = (_latent_format, _patcher, _vae, _text_encoder, _clip_vision, _control, _hook, _hook_group)
