"""The pack's nodes: schema, unpack, one call into the core or the host room, wrap."""

from __future__ import annotations

import importlib

from .host.compat import ComfyExtension
from .host.guard import guarded

MODULES = (
    "streamingsvd",
    "cam",
    "modelscope",
    "dropletvideo",
    "lvdm",
    "native",
    "stream",
    "drift",
    "extend",
    "plan",
    "runs",
    "frames",
    "save",
    "interpolation",
    "blending",
    "enhancer",
    "refine",
    "metrics",
)
"""Modules of this package, in the order in which the host lists their nodes. Each has a tuple `NODES`."""


class StreamingT2V(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type]:
        modules = (importlib.import_module(f".{name}", __name__) for name in MODULES)
        return [guarded(node) for module in modules for node in module.NODES]
