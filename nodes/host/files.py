"""Weight files in the host's model folders."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping

import comfy.utils
import folder_paths
from safetensors import SafetensorError
from torch import Tensor

from ...streaming_core.errors import CheckpointError


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


def file_stamp(path: str) -> str:
    """Text that changes when the file does: name, size and time of its last change."""
    status = os.stat(path)
    return f"{os.path.basename(path)}:{status.st_size}:{status.st_mtime_ns}"


def read_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a weights file, memory-mapped where the format allows; pickles load weights only.

    Raises `CheckpointError` in one sentence when the file is damaged or holds more than weights.
    """
    name = os.path.basename(path)
    try:
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
    return {key: tensor for key, tensor in nested.items() if isinstance(tensor, Tensor)}


def diffusion_model_names() -> list[str]:
    """Files in the host's diffusion_models folder."""
    return model_names("diffusion_models")


def checkpoint_names() -> list[str]:
    """Files in the host's checkpoints folder."""
    return model_names("checkpoints")
