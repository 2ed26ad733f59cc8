"""The one place that reads `comfy_api`, and that tells hosts apart by their features, never by their version.

Which host lacks what is in docs/hosts.md.
"""

from __future__ import annotations

import dataclasses
import inspect

from comfy_api.latest import ComfyExtension, InputImpl, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

__all__ = ["ComfyExtension", "InputImpl", "blocked", "io", "schema", "supported", "ui"]

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields) -> io.Schema:
    """`io.Schema` without the fields this host does not know yet (search_aliases, ...)."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def supported(function, **options) -> dict:
    """Those of `options` that `function` (or a class's constructor) takes on this host."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def blocked(message: str) -> ExecutionBlocker:
    """A value for an output that is not made: nodes behind it do not run and show `message`."""
    return ExecutionBlocker(message)
