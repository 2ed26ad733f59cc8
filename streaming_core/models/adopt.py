"""Put another library's network onto the host's casting layers.

A host can move, cast and quantize the weights of a network only where it made the layers itself. `adopt` exchanges
every layer of a built network for the counterpart of an `operations` namespace, keeping the parameters and their names,
so a public class of another library is loaded, offloaded and cast like a network of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import SettingsError


def _linear(layer: nn.Linear) -> dict[str, Any]:
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


def _conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


def _transposed_conv(layer: nn.ConvTranspose1d | nn.ConvTranspose2d) -> dict[str, Any]:
    return _conv(layer) | {"output_padding": layer.output_padding}


def _group_norm(layer: nn.GroupNorm) -> dict[str, Any]:
    names = ("num_groups", "num_channels", "eps", "affine")
    return {name: getattr(layer, name) for name in names}


def _layer_norm(layer: nn.LayerNorm) -> dict[str, Any]:
    arguments = {"normalized_shape": layer.normalized_shape, "eps": layer.eps}
    arguments["elementwise_affine"] = layer.elementwise_affine
    if layer.elementwise_affine:
        arguments["bias"] = layer.bias is not None
    return arguments


def _embedding(layer: nn.Embedding) -> dict[str, Any]:
    names = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    return {name: getattr(layer, name) for name in names}


LAYERS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _transposed_conv,
    nn.ConvTranspose2d: _transposed_conv,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
"""Layer class -> the constructor arguments that rebuild it."""


def _layer_class(layer: nn.Module) -> type[nn.Module] | None:
    """The class of `LAYERS` that computes like `layer`: its own class, or one it inherits an unchanged forward from."""
    for kind in LAYERS:
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return kind
    return None


def _counterpart(layer: nn.Module, kind: type[nn.Module], operations: Any) -> nn.Module:
    # Built on meta: the new layer's own weights are thrown away, so they should never be allocated or initialized.
    twin = getattr(operations, kind.__name__)(**LAYERS[kind](layer), device="meta", dtype=torch.float32)
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(twin, name, parameter)
    return twin.train(layer.training)


def adopt(module: nn.Module, operations: Any) -> nn.Module:
    """Exchange every layer below `module` for `operations`' counterpart with the same parameters; returns `module`.

    `operations` is a namespace with torch's layer names, such as `torch.nn` or the host's casting ops. The exchange
    happens in place and keeps names, parameters (the same objects, on whatever device, meta included), hyperparameters
    and the training flag; a layer used twice stays one layer. Layers that already are of `operations` are left alone.

    Raises `SettingsError` when something below `module` holds parameters of its own and has no counterpart, since the
    host could neither cast nor offload those.
    """
    done: dict[nn.Module, nn.Module] = {}
    for path, parent in list(module.named_modules()):
        # Not named_children: it leaves out the second name of a child that has two.
        for name, child in list(parent._modules.items()):
            kind = _layer_class(child)
            if kind is None or type(child) is getattr(operations, kind.__name__, None):
                continue
            if not hasattr(operations, kind.__name__):
                where = f"{path}.{name}" if path else name
                raise SettingsError(f"layer {where} is a {kind.__name__}, which the given operations do not offer")
            if child not in done:
                done[child] = _counterpart(child, kind, operations)
            setattr(parent, name, done[child])
    _refuse_own_parameters(module, operations)
    return module


def _refuse_own_parameters(module: nn.Module, operations: Any) -> None:
    classes = tuple(getattr(operations, kind.__name__) for kind in LAYERS if hasattr(operations, kind.__name__))
    for path, child in module.named_modules():
        own = [name for name, _ in child.named_parameters(recurse=False)]
        if own and not isinstance(child, classes):
            raise SettingsError(
                f"{type(child).__name__} at {path or 'the top'} holds the parameters {', '.join(own)} itself; "
                "only plain linear, convolution, norm and embedding layers can be adopted"
            )
