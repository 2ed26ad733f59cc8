"""Weight files in the host's model folders."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.cli_args
import comfy.ops
import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...streaming_core.errors import CheckpointError, StreamingError
from ...streaming_core.models import weight_file
from ...streaming_core.models.quantized import Layer, plain_weights
from ...streaming_core.models.registry import Architecture
from ...streaming_core.models.wrappers import NamedWeights, named_weights
from .handed_out import file_changes, hand_out_files

log = logging.getLogger(__name__)

_PACKED = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")
"""Formats with two values in a byte."""


def model_file(folder: str, name: str) -> str:
    """Path of `name`, to be loaded, in a model folder of the host; raises when it is not there or leads outside."""
    path = folder_paths.get_full_path_or_raise(folder, name)
    hand_out_files(folder, name, [path])
    return path


def add_model_folder(folder: str) -> None:
    """A model folder of that name, for hosts that do not have it yet. Paths a user has added stay."""
    if not folder_paths.folder_names_and_paths.get(folder, ((), ()))[1]:
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder), is_default=True)
        paths = folder_paths.folder_names_and_paths[folder][0]
        # A folder made this way accepts every file; the host's own folders list weight files only.
        folder_paths.folder_names_and_paths[folder] = (paths, folder_paths.supported_pt_extensions)


def model_names(folder: str) -> list[str]:
    """Files in a model folder of the host."""
    return folder_paths.get_filename_list(folder)


def file_stamp(folder: str, name: str | None) -> str:
    """Text that changes when a file of a model folder does: name, size and time of its last change.

    A name that comes by link is None while the host asks: then the link decides, and whether a file that was loaded
    from the folder is no longer what it was.
    """
    if name is None:
        return str(file_changes(folder))
    status = os.stat(folder_paths.get_full_path_or_raise(folder, name))
    return f"{name}:{status.st_size}:{status.st_mtime_ns}"


def read_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a weights file, memory-mapped where the format allows; pickles load weights only.

    Of a sharded file any shard stands for all, which lie next to it. Quantized weights come as plain ones. Raises
    `CheckpointError` in one sentence when the file is damaged, something else, or holds more than weights.
    """
    tensors: dict[str, Tensor] = {}
    for part in weight_file.shards_of(path):
        tensors.update(_read_part(part))
    return tensors


def _read_part(path: str) -> dict[str, Tensor]:
    name = os.path.basename(path)
    try:
        weight_file.refuse_other_content(path)
        content, metadata = _open(path)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise CheckpointError(f"{name} is damaged or cut off (no readable pickle); download it again") from error
        raise CheckpointError(
            f"{name} holds Python objects besides weights and is not opened, because they could run code; "
            "use a file with weights only, best a safetensors one"
        ) from error
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name} is damaged or cut off ({reason}); download it again") from error
    tensors, quantized = plain_weights(weight_file.state_dict_of(content, name), name, metadata, decode_by_host)
    if quantized:
        log.info("%s: %d quantized layers are loaded as 16-bit weights", name, quantized)
    return tensors


def _open(path: str) -> tuple[Any, dict[str, str] | None]:
    """What the file holds, and the metadata of a safetensors one. The host goes by the ending, this by the content."""
    if not weight_file.is_safetensors(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=comfy.cli_args.args.mmap_torch_files), None
    if path.lower().endswith(weight_file.SAFETENSORS_ENDINGS):
        return comfy.utils.load_torch_file(path, return_metadata=True)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@contextmanager
def open_network(path: str, *architectures: Architecture, wanted: Architecture | None = None) -> Iterator[NamedWeights]:
    """The weights of the first of `architectures` that the file has, under the network's own names.

    What else the file holds is named in the log. Every `CheckpointError` raised inside of the `with` names the file.
    Raises `WrongCheckpointError`, worded by `wanted` (else by the first of them), when the file has none.
    """
    source = os.path.basename(path)
    with errors_named(source):
        weights = named_weights(read_weights(path), architectures, source, wanted or architectures[0])
        log_ignored(source, weights.ignored)
        yield weights


def log_ignored(source: str, ignored: Mapping[str, Sequence[str]]) -> None:
    """Say in the log which keys of the file `source` are not read, by reason."""
    for reason, keys in ignored.items():
        log.info("%s: %d keys are not read: %s (first %s)", source, len(keys), reason, keys[0])


@contextmanager
def errors_named(source: str) -> Iterator[None]:
    """Let every error of weights that is raised inside of the `with` be a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError as error:
        if source in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
    except StreamingError:
        raise
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:  # layers of sizes that cannot be
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{source} holds weights whose shapes do not make one network ({reason}); use an unmodified file"
        ) from error


def diffusion_model_names() -> list[str]:
    """Files in the host's diffusion_models folder."""
    return model_names("diffusion_models")


def checkpoint_names() -> list[str]:
    """Files in the host's checkpoints folder."""
    return model_names("checkpoints")


def decode_by_host(layer: Layer, described: Mapping[str, Any], dtype: torch.dtype) -> Tensor | None:
    """The weight of one quantized linear layer in `dtype`, or None where this host does not know its format."""
    make = getattr(comfy.ops, "mixed_precision_ops", None)
    kind = described.get("format")
    if make is None or kind not in getattr(comfy.ops, "QUANT_ALGOS", {}) or layer["weight"].ndim != 2:
        return None
    rows, columns = layer["weight"].shape
    columns *= 2 if kind in _PACKED else 1
    described_bytes = torch.tensor(list(json.dumps(dict(described)).encode()), dtype=torch.uint8)
    linear = make({"mixed_ops": True}, dtype).Linear(columns, rows, bias=False, device="cpu", dtype=dtype)
    linear.load_state_dict({**layer, "comfy_quant": described_bytes}, strict=False)
    weight: Any = linear.weight
    return weight.dequantize().to(dtype) if hasattr(weight, "dequantize") else None
