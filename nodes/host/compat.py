"""The one place that reads `comfy_api`, and that tells hosts apart by their features, never by their version.

Which host lacks what is in docs/hosts.md.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from comfy_api.latest import ComfyExtension, Input, InputImpl, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

__all__ = [
    "FIXED_SEED",
    "ComfyExtension",
    "Input",
    "InputImpl",
    "blocked",
    "classes",
    "io",
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


def blocked(message: str) -> ExecutionBlocker:
    """A value for an output that is not made: nodes after it do not run and show `message`."""
    return ExecutionBlocker(message)
