"""`python -m tests.help_pages [--write]`: the parts of the help pages that the nodes themselves decide.

Each page in `web/docs` is written by hand but for an image of the node between its usual neighbors and the lists of
its inputs and outputs, between two marks. Both come from the node's schema, so no input is undocumented and none is
stale. Without `--write` only says which pages differ.
"""

from __future__ import annotations

import argparse
import html
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dev

PAGES = dev.ROOT / "web" / "docs"
IMAGES = "images"
BEGIN, END = "<!-- sockets -->", "<!-- /sockets -->"
BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)

MAKERS = {
    "MODEL": "Load Checkpoint",
    "CLIP": "Load Checkpoint",
    "VAE": "Load Checkpoint",
    "CLIP_VISION": "Load CLIP Vision",
    "CONDITIONING": "CLIP Text Encode",
    "IMAGE": "Load Image",
    "VIDEO": "Load Video",
    "AUDIO": "Stream from Video",
    "LATENT": "VAE Encode",
    "SIGMAS": "BasicScheduler",
    "SAMPLER": "KSamplerSelect",
    "FRAME_STREAM": "Stream Sampler",
    "CHUNK_SAMPLER": "... Chunk Sampler",
    "CHUNK_PLAN": "Chunk Plan",
    "VIDEO_STATE": "Start Video",
    "CHUNK_PROMPTS": "Chunk Prompts",
    "STREAMING_CAM": "Load Streaming...",
    "STREAMING_APM": "Load StreamingModelscope",
    "INTERP_MODEL": "Load EMA-VFI",
    "OPTICAL_FLOW": "Load RAFT",
}
"""Nodes that usually give a type."""
TAKERS = {
    "MODEL": "KSampler",
    "CLIP": "CLIP Text Encode",
    "VAE": "VAE Decode",
    "CLIP_VISION": "CLIP Vision Encode",
    "CONDITIONING": "KSampler",
    "IMAGE": "Preview Image",
    "VIDEO": "Save Video",
    "AUDIO": "Save Stream",
    "LATENT": "VAE Decode",
    "SIGMAS": "SamplerCustom",
    "SAMPLER": "SamplerCustom",
    "FRAME_STREAM": "Save Stream",
    "CHUNK_SAMPLER": "Stream Sampler",
    "CHUNK_PLAN": "Stream Sampler",
    "VIDEO_STATE": "Stream Chunk",
    "CHUNK_PROMPTS": "... Chunk Sampler",
    "STREAMING_CAM": "... Chunk Sampler",
    "STREAMING_APM": "APM Anchor Encode",
    "INTERP_MODEL": "Interpolate Stream",
    "OPTICAL_FLOW": "Video Report",
    "STRING": "Preview Any",
}
"""Nodes that usually take a type."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True)
class Socket:
    """An input or output as its page shows it. `usual`: default and range of a widget, empty for a link."""

    name: str
    type: str
    text: str
    usual: str = ""
    optional: bool = False

    @property
    def is_link(self) -> bool:
        return self.type not in WIDGETS


@dataclass(frozen=True)
class Node:
    """What a page says of a node."""

    id: str
    title: str
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]


@dataclass(frozen=True)
class Wiring:
    """Which of the pack's nodes meet in the templates: titles by (node id, name of the input or output)."""

    makers: Mapping[tuple[str, str], str]
    takers: Mapping[tuple[str, str], str]


def read_wiring(nodes: Sequence[Node]) -> Wiring:
    titles = {node.id: node.title for node in nodes}
    makers: dict[tuple[str, str], str] = {}
    takers: dict[tuple[str, str], str] = {}
    for path in sorted((dev.ROOT / "workflows").glob("*.json")):
        graph = json.loads(path.read_text("utf-8"))
        found = {node["id"]: node for node in graph["nodes"]}
        for _, source, slot, target, place, *_ in graph["links"]:
            maker, taker = found[source]["type"], found[target]["type"]
            if maker in titles and taker in titles:
                makers.setdefault((taker, found[target]["inputs"][place]["name"]), titles[maker])
                takers.setdefault((maker, found[source]["outputs"][slot]["name"]), titles[taker])
    return Wiring(makers, takers)


def node_schemas() -> Iterator:
    """The schema of every node of the pack."""
    from hosting.inprocess import PACK_NAME, import_host, import_pack

    import_host()
    import_pack()
    rooms = importlib.import_module(f"{PACK_NAME}.nodes")
    for room in rooms.MODULES:
        for node in importlib.import_module(f"{PACK_NAME}.nodes.{room}").NODES:
            yield node.GET_SCHEMA()


def describe(schema) -> Node:
    inputs = [
        Socket(each.id, type_name(each), tooltip(schema, each.id, each), usual(each), bool(each.optional))
        for each in schema.inputs
    ]
    outputs = [
        Socket(each.display_name, each.io_type, tooltip(schema, each.display_name, each)) for each in schema.outputs
    ]
    return Node(schema.node_id, schema.display_name, tuple(inputs), tuple(outputs))


def type_name(each) -> str:
    return str(each.get_io_type()).replace(",", " or ")


def tooltip(schema, name: str, each) -> str:
    if not each.tooltip:
        raise ValueError(f"{schema.node_id}: {name} has no tooltip")
    return each.tooltip


def usual(each) -> str:
    """Default and range of a widget."""
    if each.io_type not in WIDGETS:
        return ""
    default, options = getattr(each, "default", None), getattr(each, "options", None)
    if each.io_type == "COMBO":
        return f"{default}; one of {', '.join(map(str, options))}" if default is not None and options else "a file"
    if each.io_type == "BOOLEAN":
        return "on" if default else "off"
    if each.io_type == "STRING":
        return "text" if getattr(each, "multiline", False) or not default else str(default)
    return f"{default}, {each.min} to {each.max}"


def sockets(node: Node) -> str:
    """Image, inputs and outputs as Markdown; lists, since the page shows them in a narrow column."""
    parts = [f"![{node.title} between its usual neighbors]({IMAGES}/{node.id}.svg)"]
    for heading, found in (("Inputs", node.inputs), ("Outputs", node.outputs)):
        if found:
            parts.append(f"## {heading}\n\n" + "\n".join(map(bullet, found)))
    return f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"


def bullet(each: Socket) -> str:
    details = "; ".join(filter(None, [each.type + (", optional" if each.optional else ""), each.usual]))
    return f"* **{each.name}** ({details}) — {each.text}"


ROW, TOP, WIDTH, SIDE, GAP = 22, 30, 190, 165, 26


def image(node: Node, wiring: Wiring) -> str:
    """The node between its usual neighbors, as SVG."""
    left, right = [each for each in node.inputs if each.is_link], list(node.outputs)
    widgets = [each for each in node.inputs if not each.is_link]
    rows = max(len(left), len(right), 1)
    height = TOP + ROW * (rows + len(widgets)) + 10
    x = SIDE + GAP
    total = 2 * (SIDE + GAP) + WIDTH
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height + 20}" width="{total}" '
        f'height="{height + 20}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" rx="8" fill="#202020"/>',
        f'<rect x="{x}" y="10" width="{WIDTH}" height="{height}" rx="8" fill="#353535" stroke="#5a5a5a"/>',
        label(x + 12, 29, node.title, "#ffffff", weight="bold"),
    ]
    for index, each in enumerate(left):
        y = TOP + 20 + ROW * index
        out += neighbor(0, y, wiring.makers.get((node.id, each.name)) or usual_maker(each.type), each.optional)
        out.append(line(SIDE, x, y, each.optional))
        out += [dot(x, y), label(x + 12, y + 4, each.name, "#d0d0d0")]
    for index, each in enumerate(right):
        y = TOP + 20 + ROW * index
        out += neighbor(
            x + WIDTH + GAP, y, wiring.takers.get((node.id, each.name)) or TAKERS.get(each.type, each.type), True
        )
        out.append(line(x + WIDTH, x + WIDTH + GAP, y, True))
        out += [dot(x + WIDTH, y), label(x + WIDTH - 12, y + 4, each.name, "#d0d0d0", anchor="end")]
    for index, each in enumerate(widgets):
        y = TOP + 20 + ROW * (rows + index)
        out.append(f'<rect x="{x + 10}" y="{y - 9}" width="{WIDTH - 20}" height="18" rx="9" fill="#222222"/>')
        out.append(label(x + 20, y + 4, each.name, "#999999"))
    return "\n".join([*out, "</svg>\n"])


def usual_maker(types: str) -> str:
    """Of a socket for several types, the maker of the last, which is the pack's own."""
    return MAKERS.get(types.split(" or ")[-1], types)


def label(x: int, y: int, text: str, color: str, anchor: str = "start", weight: str = "normal") -> str:
    style = f'fill="{color}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(text, quote=False)}</text>'


def dot(x: int, y: int) -> str:
    return f'<circle cx="{x}" cy="{y}" r="5" fill="#8fb8de"/>'


def line(x: int, to: int, y: int, dashed: bool) -> str:
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="M{x} {y}H{to}" stroke="#8fb8de" stroke-width="2"{dashes}/>'


def neighbor(x: int, y: int, title: str, optional: bool) -> list[str]:
    color = "#777777" if optional else "#b0b0b0"
    box = f'<rect x="{x + 4}" y="{y - 9}" width="{SIDE - 4}" height="18" rx="4" fill="#2b2b2b" stroke="{color}"/>'
    return [box, label(x + 14, y + 4, title, color)]


def expected(node: Node, page: str) -> str:
    """The page with its generated part as it should be; appended where there is none yet."""
    block = sockets(node)
    return BLOCK.sub(lambda _: block, page) if BLOCK.search(page) else f"{page.rstrip()}\n\n{block}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="bring pages and images up to date")
    args = parser.parse_args(argv)
    dev.ensure_environment("tests.help_pages")
    different = 0
    nodes = [describe(schema) for schema in node_schemas()]
    wiring = read_wiring(nodes)
    for node in nodes:
        path, drawing = PAGES / f"{node.id}.md", PAGES / IMAGES / f"{node.id}.svg"
        page = path.read_text("utf-8") if path.is_file() else f"# {node.title}\n"
        for file, text in ((path, expected(node, page)), (drawing, image(node, wiring))):
            if not file.is_file() or file.read_text("utf-8") != text:
                different += 1
                print(file.relative_to(dev.ROOT))
                if args.write:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text, "utf-8")
    return int(bool(different) and not args.write)


if __name__ == "__main__":
    sys.exit(main())
