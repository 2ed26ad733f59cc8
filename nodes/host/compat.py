"""The one place that reads `comfy_api`, and that tells hosts apart by their features, never by their version.

Which host lacks what is in docs/hosts.md.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import ComfyExtension, Input, InputImpl, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

__all__ = [
    "FIXED_SEED",
    "ComfyExtension",
    "Input",
    "InputImpl",
    "blocked",
    "classes",
    "intermediate_dtype",
    "io",
    "is_out_of_memory",
    "schema",
    "supported",
    "ui",
]

FIXED_SEED: Any = io.ControlAfterGenerate.fixed if hasattr(io, "ControlAfterGenerate") else True
"""`control_after_generate` of a seed that stays as it is until the user says otherwise.

Pages take True as "randomize", so that a second press of Run would start another video. Pages of hosts without the
enum take nothing but True and False, and False would shift the values of saved workflows by one; web/seeds.js sets new
nodes to "fixed" there.
"""

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """`io.Schema` without the fields this host does not know yet (search_aliases, ...)."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def supported(function: Callable, **options: Any) -> dict[str, Any]:
    """Those of `options` that `function` (or a class's constructor) takes on this host."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def classes(module: ModuleType, *names: str) -> tuple[type, ...]:
    """Those classes of a module of the host that this host has, for isinstance: with none of them it is false."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


def intermediate_dtype() -> torch.dtype:
    """In what the host keeps latents between nodes: a start flag of newer hosts."""
    return mm.intermediate_dtype() if hasattr(mm, "intermediate_dtype") else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device has no memory left, whichever allocator and torch raised it.

    Beside torch's own class that is AcceleratorError since torch 2.8, and RuntimeError from the driver: their number or
    their words say it.
    """
    if isinstance(error, (mm.OOM_EXCEPTION, torch.OutOfMemoryError)):
        return True
    if hasattr(mm, "is_oom") and mm.is_oom(error):
        return True
    if not isinstance(error, RuntimeError):
        return False
    cuda_number = 2  # cudaErrorMemoryAllocation
    found = getattr(error, "error_code", None) == cuda_number or "out of memory" in str(error).lower()
    if found and hasattr(mm, "discard_cuda_async_error"):
        mm.discard_cuda_async_error()  # else the next call on the device raises it once more
    return found


def blocked(message: str) -> ExecutionBlocker:
    """A value for an output that is not made: nodes after it do not run and show `message`."""
    return ExecutionBlocker(message)
