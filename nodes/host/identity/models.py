"""A model under the host's patcher: weights as they were loaded, and everything that was put onto them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....streaming_core.identity import Plain, digest, tensor_digest
from ....streaming_core.identity.describe import WEIGHTS
from ....streaming_core.identity.modules import MACHINERY, weights_of
from .describer import HostDescriber, is_host_state

_CONFIG_WITHOUT = frozenset({"dtype", "device", "operations"})
_METHODS = (types.FunctionType, types.MethodType, functools.partial)


@contextlib.contextmanager
def _ejected(patcher: Any) -> Iterator[None]:
    """The model without injected parts, which are in it only while it is loaded."""
    if getattr(patcher, "is_injected", False) and hasattr(patcher, "use_ejected"):
        with patcher.use_ejected():
            yield
    else:
        yield


def _replaced(patcher: Any) -> dict[str, Any]:
    """Objects of the model whose places are taken by object patches while it is loaded, by name."""
    return dict(getattr(patcher, "object_patches_backup", None) or {})


def _is_under(name: str, keys: Mapping[str, Any]) -> bool:
    return any(name == key or name.startswith(key + ".") for key in keys)


def _original_attribute(patcher: Any, name: str) -> Any:
    return _replaced(patcher).get(name, getattr(patcher.model, name, None))


def original_weights(patcher: Any) -> dict[str, Tensor]:
    """Weights as they were loaded, wherever the host keeps them at the moment.

    While a model is in use the host writes LoRA and hooks into its weights, puts other objects in, and keeps what was
    there before. Clones share the weights, so the patches found in them may be another clone's.
    """
    replaced = _replaced(patcher)
    weights = {name: weight for name, weight in weights_of(patcher.model).items() if not _is_under(name, replaced)}
    for key, old in replaced.items():
        if isinstance(old, nn.Module):
            weights.update({f"{key}.{name}": weight for name, weight in weights_of(old).items()})
        elif isinstance(old, Tensor):
            weights[key] = old
    kept = {key: saved[0] for key, saved in (getattr(patcher, "hook_backup", None) or {}).items()}
    kept |= {key: saved.weight for key, saved in (getattr(patcher, "backup", None) or {}).items()}
    kept |= getattr(patcher, "backup_buffers", None) or {}
    weights.update({key: _tensor(weight) for key, weight in kept.items() if key in weights})
    return {name: _as_computed(patcher.model, name, weight) for name, weight in weights.items()}


def _tensor(weight: Any) -> Tensor:
    found: Tensor = weight[0] if isinstance(weight, (tuple, list)) else weight
    return found


def _as_computed(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """Weights of models with further networks, which hosts with dynamic memory convert to the compute type for good."""
    *path, last = name.split(".")
    try:
        owner = functools.reduce(getattr, path, model)
    except AttributeError:
        return weight
    dtype = getattr(owner, f"{last}_comfy_model_dtype", None)
    inner = isinstance(owner, nn.Module) and any(True for part in owner.children() for _ in part.parameters())
    return weight.to(dtype) if inner and isinstance(dtype, torch.dtype) else weight


def _structure(patcher: Any) -> str:
    """Names and classes of all parts; weights of the same values may come in another file."""
    replaced = _replaced(patcher)
    parts = [(name, part) for name, part in patcher.model.named_modules() if not _is_under(name, replaced)]
    for key, old in replaced.items():
        if isinstance(old, nn.Module):
            parts += [(f"{key}.{name}".rstrip("."), part) for name, part in old.named_modules()]
    lines = sorted(f"{name} {type(part).__name__}" for name, part in parts)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _written_over(patcher: Any) -> dict[str, Any]:
    """Methods that a pack wrote into parts of the model directly, by name."""
    replaced, found = _replaced(patcher), {}
    for name, part in patcher.model.named_modules():
        for attribute, value in vars(part).items():
            key = f"{name}.{attribute}".lstrip(".")
            if attribute in MACHINERY or not isinstance(value, _METHODS) or is_host_state(part, attribute):
                continue
            # Restoring an object patch leaves the class's own method in the object.
            own = getattr(value, "__func__", None) is getattr(type(part), attribute, value)
            if not own and not _is_under(key, replaced):
                found[key] = value
    return found


def _compute_dtype(patcher: Any) -> Any:
    """The type that a network computes in; the type its weights are stored in may be another."""
    model = patcher.model
    cast = _original_attribute(patcher, "manual_cast_dtype")
    if cast is not None:
        return cast
    with contextlib.suppress(AttributeError):
        return model.get_dtype()
    for name in ("compute_dtype", "dtype", "dtypes"):
        if (found := getattr(model, name, None)) is not None:
            return found
    return None


def _settings(patcher: Any) -> dict[str, Any]:
    """What kind of model it is, weights left out."""
    model, replaced = patcher.model, _replaced(patcher)
    config = getattr(model, "model_config", None)
    found: dict[str, Any] = {"compute dtype": _compute_dtype(patcher)}
    if config is not None:
        unet = {key: item for key, item in config.unet_config.items() if key not in _CONFIG_WITHOUT}
        found.update(
            {
                "configuration": type(config).__name__,
                "unet config": unet,
                "sampling settings": getattr(config, "sampling_settings", None),
                "optimizations": getattr(config, "optimizations", None),
                "latent format": getattr(model, "latent_format", None),
                "model type": getattr(model, "model_type", None),
                "model sampling": replaced.get("model_sampling", getattr(model, "model_sampling", None)),
            }
        )
    if config is None and hasattr(model, "config"):
        found["config"] = model.config
    return found


def _attributes(patcher: Any, prefix: str = "") -> dict[str, Any]:
    """Plain attributes of the model, or of its network. Hosts add some while they sample, which are None afterwards."""
    owner, replaced = getattr(patcher.model, prefix) if prefix else patcher.model, _replaced(patcher)
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, (bool, int, float, str))
        and not name.startswith("_")
        and not is_host_state(owner, name)
        and not _is_under(f"{prefix}.{name}".lstrip("."), replaced)
    }


def _content(describer: HostDescriber, value: Any) -> Plain:
    """A LoRA or another weight patch by its values; the names its file gave them do not count."""
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, (list, tuple)):
        return [_content(describer, item) for item in value]
    if isinstance(value, dict):
        return {
            str(key): _content(describer, item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        }
    if hasattr(value, "weights"):
        return [type(value).__name__, _content(describer, value.weights)]
    return describer.value(value)


def content_digest(describer: HostDescriber, value: Any) -> str:
    """Stands for all values of a weight patch or of a table of them."""
    return str(digest(_content(describer, value)))


def _kind_of_patch(patch: Any) -> str:
    if isinstance(patch, (tuple, list)):
        return str(patch[0]) if patch and isinstance(patch[0], str) else "weights"
    return type(patch).__name__


def weight_patches(describer: HostDescriber, patches: Mapping[str, list[Any]]) -> list[Plain]:
    """LoRA and other weight patches, those with the same strengths together, so that a strength stays readable."""
    groups: dict[str, dict[str, Plain]] = {}
    contents: dict[str, list[Plain]] = {}
    for key in sorted(patches):
        for place, patch in enumerate(patches[key]):
            strength, value, base, *others = patch
            settings = {"strength": strength, "strength of the weight": base}
            settings |= dict(zip(("offset", "function"), others, strict=False))
            about = {name: describer.value(item) for name, item in settings.items() if item is not None}
            about["kind"] = _kind_of_patch(value)
            group = digest(dict(about))
            groups.setdefault(group, about)
            contents.setdefault(group, []).append([key, place, content_digest(describer, value)])
    return [
        {**groups[group], "weights patched": len(contents[group]), "values of the patch": digest(list(contents[group]))}
        for group in groups
    ]


def _filled(value: Any) -> Any:
    """Nested tables without empty ones: the host makes a place for every kind of wrapper beforehand."""
    if not isinstance(value, dict):
        return value
    inner = {key: _filled(item) for key, item in value.items()}
    return {key: item for key, item in inner.items() if not (isinstance(item, (dict, list)) and not item)}


def _stored_dtypes(patcher: Any, weights: Mapping[str, Tensor], patched: bool) -> list[str] | None:
    """Storage types where they matter: patched weights are rounded to them, and eight bits may be computed with."""
    types_ = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    found = sorted(str(dtype).removeprefix("torch.") for dtype in types_)
    small = any(dtype.itemsize == 1 for dtype in types_)
    return found if patched or small else None


def describe_model(describer: HostDescriber, patcher: Any) -> Plain:
    """A MODEL (or whatever else the host's patcher manages) with everything that decides its results."""
    model = patcher.model
    with _ejected(patcher):
        describer.register(model)
        for key, old in _replaced(patcher).items():
            if isinstance(old, nn.Module):
                describer.register(old, key)
        about: dict[str, Plain] = {"class": type(model).__name__, "structure": _structure(patcher)}
        weights = original_weights(patcher)
        if describer.weights:
            if id(model) not in describer.known_weights:
                describer.known_weights[id(model)] = WEIGHTS.digest(model, weights)
            about["weights"] = describer.known_weights[id(model)]
        written = _written_over(patcher)
    patches = getattr(patcher, "patches", None) or {}
    hooks = getattr(patcher, "hook_patches_backup", None)
    hooks = (getattr(patcher, "hook_patches", None) if hooks is None else hooks) or {}
    if patches and describer.weights:
        about["weight patches"] = weight_patches(describer, patches)
    if hooks and describer.weights:
        about["hook patches"] = [list(weight_patches(describer, each)) for each in hooks.values()]
    models = {
        key: each for key, each in (getattr(patcher, "additional_models", None) or {}).items() if key != "multigpu"
    }
    parts = {
        "settings": _settings(patcher),
        "stored as": _stored_dtypes(patcher, weights, bool(patches or hooks)),
        "written over": written,
        "object patches": getattr(patcher, "object_patches", None),
        "options": _filled(getattr(patcher, "model_options", None)),
        "weight functions": _filled(getattr(patcher, "weight_wrapper_patches", None)),
        "wrappers": _filled(getattr(patcher, "wrappers", None)),
        "callbacks": _filled(getattr(patcher, "callbacks", None)),
        "injections": getattr(patcher, "injections", None),
        "additional models": models,
        "attachments": getattr(patcher, "attachments", None),
        "hooks of the model": getattr(patcher, "forced_hooks", None),
        "casts weights": getattr(patcher, "force_cast_weights", None) or None,
    }
    # Described in full, though they may stand in the model at the moment.
    for part in (*_modules(parts["object patches"]), parts["settings"].get("model sampling")):
        describer.places.pop(id(part), None)
    if attributes := describer.parts_of(model, _attributes(patcher)):
        about["attributes"] = dict(attributes)
    if hasattr(model, "diffusion_model") and (network := _attributes(patcher, "diffusion_model")):
        about["network"] = dict(describer.parts_of(model.diffusion_model, network))
    return {**about, **describer.parts(parts, empty=False)}


def _modules(patches: Mapping[str, Any] | None) -> Iterator[nn.Module]:
    for value in (patches or {}).values():
        if isinstance(value, nn.Module) and type(value).__name__ != "OptimizedModule":
            yield value
