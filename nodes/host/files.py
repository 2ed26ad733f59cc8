"""Weight files in the host's model folders."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping

import comfy.utils
import folder_paths
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...streaming_core.errors import CheckpointError

_SAFETENSORS = (".safetensors", ".sft")


def model_file(folder: str, name: str) -> str:
    """Path of `name` in a model folder of the host; raises when it is not there or leads outside."""
    return folder_paths.get_full_path_or_raise(folder, name)


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

    A name that comes by link is None while the host asks: then the link alone decides.
    """
    if name is None:
        return ""
    status = os.stat(model_file(folder, name))
    return f"{name}:{status.st_size}:{status.st_mtime_ns}"


def read_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a weights file, memory-mapped where the format allows; pickles load weights only.

    Raises `CheckpointError` in one sentence when the file is damaged or holds more than weights.
    """
    name = os.path.basename(path)
    try:
        begin = _first_bytes(path)
        _refuse_other_content(begin, name)
        if _is_safetensors(begin) and not path.endswith(_SAFETENSORS):
            tensors = load_file(path)  # the host goes by the ending
        else:
            tensors = comfy.utils.load_torch_file(path, safe_load=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise CheckpointError(f"{name} is damaged or cut off (no readable pickle); download it again") from error
        raise CheckpointError(
            f"{name} holds Python objects besides weights and is not opened, because they could run code; "
            "use a file with weights only, best a safetensors one"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name} is damaged or cut off ({reason}); download it again") from error
    nested = tensors.get("state_dict", tensors) if isinstance(tensors, Mapping) else None
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{name} does not contain a state dict; use the official file")
    return _unwrapped({key: tensor for key, tensor in nested.items() if isinstance(tensor, Tensor)})


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _is_safetensors(begin: bytes) -> bool:
    """Whether a file begins with the length of a header and the header, whatever its name says."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 100_000_000


def _refuse_other_content(begin: bytes, name: str) -> None:
    """Raise `CheckpointError` for what downloads leave in place of weights."""
    text = begin.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a Git LFS pointer, a text of a few lines that stands for the weights; download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{name} is a web page, not weights; download it again with the page's download button")


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what DataParallel and torch.compile put before the names of a network that was saved inside them."""
    keys = [key.replace("_orig_mod.", "") for key in tensors]
    if keys and all(key.startswith("module.") for key in keys):
        keys = [key.removeprefix("module.") for key in keys]
    return dict(zip(keys, tensors.values(), strict=True))


def diffusion_model_names() -> list[str]:
    """Files in the host's diffusion_models folder."""
    return model_names("diffusion_models")


def checkpoint_names() -> list[str]:
    """Files in the host's checkpoints folder."""
    return model_names("checkpoints")
