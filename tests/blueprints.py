"""`python -m tests.blueprints [--write]`: subgraph blueprints, cut out of the templates.

ComfyUI offers `subgraphs/NAME.json` of every pack in the page's search and node library: one node that holds a chain of
nodes, with the sockets and widgets named here. Everything inside stays as it is in the template.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dev
from hosting.workflow import load_workflow
from tests.node_forms import PATH as FORMS

FOLDER = dev.ROOT / "subgraphs"
WAY_IN, WAY_OUT = -10, -20
"""Ids by which links inside a subgraph name its own inputs and outputs."""
TITLE, ROW, BAR, GAP = 30, 20, 160, 100
"""Pixels of a drawn graph: a node's title, a socket, the width of the bars at both ends, the space beside them."""


@dataclass(frozen=True)
class Blueprint:
    """A chain of a template.

    inputs, widgets: (node type, name there, name of the blueprint's own), in the order in which they are shown.
    outputs: (node type, name there).
    """

    name: str
    template: str
    description: str
    aliases: tuple[str, ...]
    nodes: tuple[str, ...]
    inputs: tuple[tuple[str, str, str], ...]
    widgets: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str], ...]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def uuid(self, part: str) -> str:
        """The same in every version of the file."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-streamingt2v/{self.name}/{part}"))


def same_names(node: str, *names: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((node, name, name) for name in names)


LOADER, SAMPLER = "StreamingT2VLoadStreamingSVD", "StreamingT2VStreamSampler"
ENHANCE, VFI = "StreamingT2VEnhanceVideo", "StreamingT2VLoadEmaVfi"
INTERPOLATE, SAVE = "StreamingT2VInterpolateStream", "StreamingT2VSaveStream"

BLUEPRINTS = (
    Blueprint(
        "Image to Long Video (StreamingSVD)",
        "streamingsvd_image_to_video",
        "Makes a long video from one image with StreamingSVD, chunk by chunk. Finished chunks are kept on disk, so a "
        "video that was stopped can be continued.",
        ("long video", "image to video", "streamingt2v", "i2v"),
        (LOADER, "StreamingT2VStreamingSVDChunkSampler", SAMPLER),
        ((SAMPLER, "start_image", "start_image"),),
        (
            *same_names(LOADER, "ckpt_name"),
            *same_names(SAMPLER, "num_frames", "width", "height"),
            *same_names("StreamingT2VStreamingSVDChunkSampler", "steps", "motion_bucket_id"),
            *same_names(SAMPLER, "seed", "fps"),
        ),
        ((SAMPLER, "frames"), (SAMPLER, "video")),
    ),
    Blueprint(
        "Enhance Long Video (Randomized Blending)",
        "enhance_video",
        "Enlarges and sharpens a video of any length in overlapping windows, which switch at a new random frame in "
        "every step.",
        ("upscale video", "i2vgen-xl", "refine", "streamingt2v"),
        ("StreamingT2VLoadEnhancer", "CLIPLoader", "CLIPVisionLoader", "VAELoader", ENHANCE),
        ((ENHANCE, "frames", "frames"), (ENHANCE, "image", "image")),
        (
            *same_names("StreamingT2VLoadEnhancer", "unet_name"),
            *same_names("CLIPLoader", "clip_name"),
            ("CLIPVisionLoader", "clip_name", "clip_vision_name"),
            *same_names("VAELoader", "vae_name"),
            *same_names(ENHANCE, "width", "height", "prompt", "strength", "steps", "window", "overlap", "seed"),
        ),
        ((ENHANCE, "frames"), (ENHANCE, "images")),
    ),
    Blueprint(
        "Interpolate and Save Long Video",
        "interpolate_video",
        "Adds frames to a video of any length, pair by pair, and writes them to a file as they are made.",
        ("frame interpolation", "slow motion", "fps", "ema-vfi", "streamingt2v"),
        (VFI, INTERPOLATE, SAVE),
        ((INTERPOLATE, "frames", "frames"), (SAVE, "audio", "audio")),
        (
            *same_names(VFI, "model_name"),
            *same_names(INTERPOLATE, "target", "multiplier", "num_frames", "fps"),
            *same_names(SAVE, "filename_prefix"),
        ),
        ((SAVE, "video"),),
    ),
)


def complete(node: Mapping[str, Any], form: Mapping[str, list[str]]) -> dict[str, Any]:
    """A node of a template with the sockets that it has got since. Links are by place, and the page adds none here."""
    known = {socket["name"]: socket for socket in node["inputs"]}
    inputs = []
    for name, kind in (entry.split(": ") for entry in (*form["links"], *form["widgets"])):
        added = {"localized_name": name, "name": name, "shape": 7, "type": kind.replace(" or ", ","), "link": None}
        inputs.append(known.pop(name, added))
    if known:
        raise ValueError(f"{node['type']} has no input {', '.join(known)}")
    return {**node, "inputs": inputs}


def place(sockets: list[Mapping[str, Any]], name: str) -> int:
    return next(position for position, socket in enumerate(sockets) if socket["name"] == name)


def bars(nodes: list[Mapping[str, Any]], ways_in: int, ways_out: int) -> tuple[list[float], list[float]]:
    """Boxes (x, y, width, height) of the subgraph's inputs and outputs, left and right of its nodes."""
    left = min(node["pos"][0] for node in nodes)
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    top = min(node["pos"][1] for node in nodes)
    return (
        [left - GAP - BAR, top, BAR, TITLE + ROW * (ways_in + 1)],
        [right + GAP, top, BAR, TITLE + ROW * (ways_out + 1)],
    )


def make(blueprint: Blueprint) -> dict[str, Any]:
    """The file's content: a workflow of one subgraph node, and what is in it."""
    template = load_workflow(dev.ROOT / "workflows" / f"{blueprint.template}.json")
    forms = json.loads(FORMS.read_text("utf-8"))
    nodes = {node["type"]: node for node in template["nodes"] if node["type"] in blueprint.nodes}
    if sorted(nodes) != sorted(blueprint.nodes):
        raise ValueError(f"{blueprint.template} lacks {', '.join(set(blueprint.nodes) - nodes.keys())}")
    places = {node["id"]: [socket["name"] for socket in node["inputs"]] for node in nodes.values()}
    nodes = {kind: complete(node, forms[kind]) if kind in forms else node for kind, node in nodes.items()}
    ids = {node["id"]: kind for kind, node in nodes.items()}
    links = []

    def link(origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        ends = {"origin_id": origin, "origin_slot": origin_slot, "target_id": target, "target_slot": target_slot}
        links.append({"id": len(links) + 1, **ends, "type": kind})
        return len(links)

    for node in nodes.values():
        for socket in node["inputs"]:
            socket["link"] = None
        for socket in node["outputs"]:
            socket["links"] = []
    for _, origin, slot, target, target_slot, kind in template["links"]:
        if origin in ids and target in ids:
            position = place(nodes[ids[target]]["inputs"], places[target][target_slot])
            number = link(origin, slot, target, position, kind)
            nodes[ids[origin]]["outputs"][slot]["links"].append(number)
            nodes[ids[target]]["inputs"][position]["link"] = number

    ways_in, ways_out, outside_in, outside_out = [], [], [], []
    for slot, (kind, inner, name) in enumerate((*blueprint.inputs, *blueprint.widgets)):
        position = place(nodes[kind]["inputs"], inner)
        socket = nodes[kind]["inputs"][position]
        socket["link"] = link(WAY_IN, slot, nodes[kind]["id"], position, socket["type"])
        shape = {"shape": socket["shape"]} if "shape" in socket else {}
        ways_in.append(
            {"id": blueprint.uuid(f"in {name}"), "name": name, "type": socket["type"], **shape}
            | {"linkIds": [socket["link"]], "localized_name": name}
        )
        widget = {"widget": {"name": name}} if "widget" in socket else {}
        outside_in.append(
            {"localized_name": name, "name": name, "type": socket["type"], **shape, **widget, "link": None}
        )
    for slot, (kind, name) in enumerate(blueprint.outputs):
        position = place(nodes[kind]["outputs"], name)
        socket = nodes[kind]["outputs"][position]
        number = link(nodes[kind]["id"], position, WAY_OUT, slot, socket["type"])
        socket["links"].append(number)
        ways_out.append(
            {"id": blueprint.uuid(f"out {name}"), "name": name, "type": socket["type"]}
            | {"linkIds": [number], "localized_name": name}
        )
        outside_out.append({"localized_name": name, "name": name, "type": socket["type"], "links": []})

    inside = sorted(nodes.values(), key=lambda node: node["order"])
    box_in, box_out = bars(inside, len(ways_in), len(ways_out))
    for box, ways in ((box_in, ways_in), (box_out, ways_out)):
        for row, way in enumerate(ways):
            way["pos"] = [box[0] + (box[2] if ways is ways_in else 0), box[1] + TITLE + ROW * row]
    number = max(ids) + 1
    extra = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)}
    subgraph = {
        "id": blueprint.uuid("subgraph"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(ids), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": WAY_IN, "bounding": box_in},
        "outputNode": {"id": WAY_OUT, "bounding": box_out},
        "inputs": ways_in,
        "outputs": ways_out,
        "widgets": [],
        "nodes": [{**node, "order": order} for order, node in enumerate(inside)],
        "groups": [],
        "links": links,
        "extra": {},
        "category": "StreamingT2V",
        "description": blueprint.description,
    }
    outside = {
        "id": number,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [400, 60 + ROW * len(blueprint.inputs) + 26 * len(blueprint.widgets)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": outside_in,
        "outputs": outside_out,
        "title": blueprint.name,
        "properties": {},
        "widgets_values": [],
    }
    return {
        "revision": 0,
        "last_node_id": number,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": extra,
        "version": 0.4,
    }


def text(blueprint: Blueprint) -> str:
    """ASCII only: some hosts read these files in whatever encoding their system prefers."""
    return json.dumps(make(blueprint), indent=1, ensure_ascii=True) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files, which otherwise are only compared")
    args = parser.parse_args(argv)
    stale = [one for one in BLUEPRINTS if not one.path.is_file() or one.path.read_text("utf-8") != text(one)]
    for blueprint in stale:
        print(blueprint.path.relative_to(dev.ROOT))
        if args.write:
            blueprint.path.parent.mkdir(exist_ok=True)
            blueprint.path.write_text(text(blueprint), "utf-8")
    return int(bool(stale) and not args.write)


if __name__ == "__main__":
    sys.exit(main())
