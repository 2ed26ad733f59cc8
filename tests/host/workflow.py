"""Workflows as the page saves them (UI format) to prompts as the server takes them (API format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOTES = {"Note", "MarkdownNote"}


def load_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _is_widget(declaration: list) -> bool:
    kind = declaration[0]
    options = declaration[1] if len(declaration) > 1 else {}
    plain = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return plain and not options.get("forceInput")


def _widget_values(node: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Saved values by widget name. Values are stored by position; a seed stores its control choice behind its own."""
    declared = {
        name: declaration
        for section in ("required", "optional")
        for name, declaration in description["input"].get(section, {}).items()
        if _is_widget(declaration)
    }
    values, saved = {}, iter(node.get("widgets_values", []))
    for name, declaration in declared.items():
        value = next(saved, None)
        if value is None:
            raise ValueError(f"node {node['id']} ({node['type']}) stores no value for {name}")
        values[name] = value
        options = declaration[1] if len(declaration) > 1 else {}
        if options.get("control_after_generate"):
            next(saved, None)
        if options.get("image_upload") or options.get("video_upload"):
            next(saved, None)
    if left := list(saved):
        raise ValueError(f"node {node['id']} ({node['type']}) stores {len(left)} values too many: {left}")
    return values


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, dict]:
    """The API prompt of a UI workflow without subgraphs; raises where the page would show a red node."""
    # A switched-off or bypassed node gives nothing; sockets that hang on it stay empty, as on the page.
    off = {node["id"] for node in workflow["nodes"] if node.get("mode", 0) in (2, 4)}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node["id"] in off:
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']} is of type {node['type']}, which the host does not know")
        inputs: dict[str, Any] = _widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                origin, slot = links[socket["link"]]
                if origin not in off:
                    inputs[socket["name"]] = [str(origin), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def set_inputs(prompt: Mapping[str, dict], node_type: str, **values: Any) -> None:
    """Set widget values on every node of a type; a name the node does not have is an error."""
    nodes = [node for node in prompt.values() if node["class_type"] == node_type]
    if not nodes:
        raise ValueError(f"the workflow has no {node_type}")
    for node in nodes:
        unknown = values.keys() - node["inputs"].keys()
        if unknown:
            raise ValueError(f"{node_type} has no input {', '.join(sorted(unknown))}")
        node["inputs"].update(values)
