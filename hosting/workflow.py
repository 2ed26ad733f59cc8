"""Workflows as the page saves them (UI format) to prompts as the server takes them (API format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACK = "StreamingT2V"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""Of newer hosts: a choice that brings widgets of its own, which come after it and have its name before theirs."""
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4


def load_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _is_widget(declaration: list) -> bool:
    kind = declaration[0]
    options = declaration[1] if len(declaration) > 1 else {}
    plain = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
    return plain and not options.get("forceInput")


def _sections(declared: Mapping[str, Any]) -> dict[str, list]:
    return {**declared.get("required", {}), **declared.get("optional", {})}


def _widget_values(node: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Saved values by widget name. Values are stored by position; a seed stores its control choice after its own."""
    waiting = [(name, declared) for name, declared in _sections(description["input"]).items() if _is_widget(declared)]
    values, saved = {}, iter(node.get("widgets_values", []))
    while waiting:
        name, declaration = waiting.pop(0)
        options = declaration[1] if len(declaration) > 1 else {}
        choices = options.get("options") or []
        dynamic = declaration[0] == DYNAMIC
        # A later host may have added widgets to its own nodes; its page fills them in, too.
        default = options.get("default", choices[0]["key"] if dynamic else None)
        value = next(saved, None if node["type"].startswith(PACK) else default)
        if value is None:
            raise ValueError(f"node {node['id']} ({node['type']}) stores no value for {name}")
        values[name] = value
        if dynamic:
            [chosen] = [choice for choice in choices if choice["key"] == value]
            waiting = [(f"{name}.{own}", declared) for own, declared in _sections(chosen["inputs"]).items()] + waiting
        if options.get("control_after_generate"):
            next(saved, None)
        if options.get("image_upload") or options.get("video_upload"):
            next(saved, None)
    if left := list(saved):
        raise ValueError(f"node {node['id']} ({node['type']}) stores {len(left)} values too many: {left}")
    return values


def _bypass_socket(node: Mapping[str, Any], slot: int) -> Mapping[str, Any] | None:
    """The input that the page connects with an output of a bypassed node.

    The one at the same place, else the first of the same type, else the first that takes the type among others.
    """
    kind, sockets = node["outputs"][slot]["type"], node["inputs"]
    same_place = sockets[slot : slot + 1]
    for fits in (lambda found: found == kind, lambda found: kind in found.split(",")):
        match = next((socket for socket in [*same_place, *sockets] if fits(socket["type"])), None)
        if match is not None:
            return match
    return None


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, dict]:
    """The API prompt of a UI workflow without subgraphs; raises where the page would show a red node."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def source(link: int) -> tuple[int, int] | None:
        """What a link brings. A muted node gives nothing; a bypassed one what comes in at the socket of that type."""
        origin, slot = links[link]
        node = nodes[origin]
        if node.get("mode", 0) != BYPASSED:
            return None if node.get("mode", 0) == MUTED else (origin, slot)
        way_in = _bypass_socket(node, slot)
        return None if way_in is None or way_in["link"] is None else source(way_in["link"])

    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']} is of type {node['type']}, which the host does not know")
        inputs: dict[str, Any] = _widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            found = None if socket.get("link") is None else source(socket["link"])
            if found is not None:
                inputs[socket["name"]] = [str(found[0]), found[1]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def switched_on(workflow: Mapping[str, Any], *words: str) -> dict[str, Any]:
    """A copy of a workflow whose bypassed groups with one of these words in their title work."""
    copy = json.loads(json.dumps(workflow))
    for node in copy["nodes"]:
        x, y = node["pos"][:2]
        for group in copy["groups"]:
            left, top, width, height = group["bounding"]
            inside = left <= x < left + width and top <= y < top + height
            if inside and node.get("mode") == BYPASSED and any(word in group["title"] for word in words):
                node["mode"] = 0
    return copy


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
