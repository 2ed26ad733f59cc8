"""ComfyUI's page as a user works with it: loads and saves graphs, adds and wires nodes, runs and cancels."""

from __future__ import annotations

import json
import time

from hosting.server import HostServer
from tests.browser.page import Page, PageError

APP = "(window.app ?? window.comfyAPI.app.app)"
READY = f"!!(window.LiteGraph && {APP}.canvas && LiteGraph.registered_node_types.StreamingT2VStreamSampler)"
EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4} | {
    "last_node_id": 0,
    "last_link_id": 0,
}
DRAWN_ONLY = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
"""Node types that only the page knows."""

LOAD = """async (graph) => {
  await APP.loadGraphData(structuredClone(graph));
  await new Promise(done => setTimeout(done, 500));
}"""
LOOK = """() => {
  const graph = APP.graph, known = LiteGraph.registered_node_types;
  return {
    nodes: graph._nodes.map(node => ({
      id: node.id, type: node.type, title: node.title, mode: node.mode, known: node.type in known,
      error: !!node.has_errors, widgets: node.serialize().widgets_values ?? null,
    })),
    links: (graph.links instanceof Map ? [...graph.links.values()] : Object.values(graph.links)).filter(Boolean)
      .map(link => [link.origin_id, link.origin_slot, link.target_id, link.target_slot]),
  };
}"""
SAVE = "() => JSON.parse(JSON.stringify(APP.graph.serialize()))"
PROMPT = "async () => (await APP.graphToPrompt()).output"
FIT = """(x, y, width, height) => {
  const canvas = APP.canvas, nodes = APP.graph._nodes, title = LiteGraph.NODE_TITLE_HEIGHT;
  const boxes = [...nodes.map(n => [n.pos[0], n.pos[1] - title, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
    ...APP.graph._groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]])];
  const edges = [Math.min, Math.min, Math.max, Math.max].map((pick, i) => pick(...boxes.map(box => box[i])));
  const [left, top, right, bottom] = edges, area = canvas.canvas.getBoundingClientRect();
  const scale = Math.min(1, width / (right - left), height / (bottom - top));
  canvas.ds.scale = scale;
  canvas.ds.offset = [(x - area.left) / scale - left, (y - area.top) / scale - top];
  canvas.setDirty(true, true);
  return [x, y, (right - left) * scale, (bottom - top) * scale];
}"""
VIEW = """() => {
  const { scale, offset } = APP.canvas.ds, area = APP.canvas.canvas.getBoundingClientRect();
  const corners = [...APP.graph._groups.map(group => group.pos), ...APP.graph._nodes.map(node => node.pos)];
  const [x, y] = [0, 1].map(i => Math.min(...corners.map(corner => corner[i])));
  return [scale, area.left + (x + offset[0]) * scale, area.top + (y + offset[1]) * scale];
}"""
ZOOM = "(scale) => { const ds = APP.canvas.ds; ds.scale = scale; ds.offset = [0, 0]; APP.canvas.setDirty(true, true); }"
WIDGETS = """(type, values) => {
  const nodes = APP.graph._nodes.filter(node => node.type === type);
  for (const [name, value] of Object.entries(values)) {
    const widgets = nodes.flatMap(node => node.widgets).filter(widget => widget.name === name);
    if (!widgets.length) throw new Error(`${type} has no widget ${name}`);
    for (const widget of widgets) { widget.value = value; widget.callback?.(value); }
  }
}"""
MIDDLE = """(selector) => {
  const found = document.querySelector(selector), box = found.getBoundingClientRect();
  const at = [box.x + box.width / 2, box.y + box.height / 2];
  return found.contains(document.elementFromPoint(...at)) ? at : null;
}"""
TEXT = """(text) => {
  // Newer pages hyphenate the names of their menus.
  const words = element => element.innerText?.replaceAll("\u00ad", "").trim();
  const shows = element => !element.children.length && words(element) === text;
  const found = [...document.querySelectorAll('body *')].filter(element => shows(element) && element.offsetWidth).pop();
  found?.scrollIntoView({ block: "center" });
  const box = found?.getBoundingClientRect();
  return box?.width ? [box.x + box.width / 2, box.y + box.height / 2] : null;
}"""
FREE = "(x, y) => document.elementFromPoint(x, y)?.tagName === 'CANVAS'"
PLACE = """(id, output, slot) => {
  const node = APP.graph.getNodeById(id), canvas = APP.canvas;
  const at = output === null ? [node.pos[0] + node.size[0] / 2, node.pos[1] - 15]
    : node.getConnectionPos(!output, slot);
  const box = canvas.canvas.getBoundingClientRect();
  return [box.left + (at[0] + canvas.ds.offset[0]) * canvas.ds.scale,
          box.top + (at[1] + canvas.ds.offset[1]) * canvas.ds.scale];
}"""


def script(text: str) -> str:
    return text.replace("APP", APP)


def known_inputs(prompt: dict, object_info: dict) -> dict:
    """A prompt as (node type, inputs) by node id: no titles, and of inputs only those that the server declares.

    What belongs to a choice in a combo (newer hosts: `format.codec`) has no declaration of its own.
    """
    made = {}
    for node, entry in prompt.items():
        declared = {name for section in object_info[entry["class_type"]]["input"].values() for name in section}
        own = {name: value for name, value in entry["inputs"].items() if name in declared}
        made[node] = (entry["class_type"], own)
    return made


class GraphPage:
    """The page of a running server."""

    def __init__(self, page: Page, server: HostServer):
        self.page, self.server = page, server

    def open(self) -> None:
        """The page from scratch, without the tour for new users."""
        self.server.post("/settings/Comfy.TutorialCompleted", True)
        self.page.open(f"http://127.0.0.1:{self.server.port}")
        self.page.wait_for(READY, "the page's nodes", 180)
        time.sleep(1)
        self.close_dialogs()

    def close_dialogs(self) -> None:
        """Closes what opened by itself: missing models, news."""
        deadline = time.monotonic() + 20
        while self.page.run("!!document.querySelector('.p-dialog-mask')"):
            if time.monotonic() > deadline:
                raise PageError("a dialog does not close")
            self.page.press("Escape")
            time.sleep(0.3)

    def load(self, graph: dict) -> dict:
        """Load a graph as dropping its file does; what is there afterwards, see `LOOK`."""
        self.page.ask(script(LOAD), graph)
        return self.look()

    def look(self) -> dict:
        return self.page.ask(script(LOOK))

    def save(self) -> dict:
        return self.page.ask(script(SAVE))

    def prompt(self) -> dict:
        """What Run would send."""
        return self.page.ask(script(PROMPT))

    def view(self) -> tuple[float, ...]:
        """Scale of the graph, and where on the page its left and its upper edge are."""
        return tuple(self.page.ask(script(VIEW)))

    def zoom(self, scale: float) -> None:
        self.page.ask(script(ZOOM), scale)

    def set_widgets(self, node_type: str, **values) -> None:
        self.page.ask(script(WIDGETS), node_type, values)

    def refresh_lists(self) -> None:
        """What the R key does: lists of files are asked for again."""
        self.page.run(f"{APP}.refreshComboInNodes()")

    def add_by_search(self, text: str, x: float, y: float) -> None:
        """Double click on the canvas, type, Enter."""
        known = len(self.look()["nodes"])
        self.wait_until_free(x, y)
        self.page.click(x, y, times=2)
        self.page.wait_for("document.activeElement?.tagName === 'INPUT'", "the search box", 20)
        self.page.type(text)
        results = "[...document.querySelectorAll('[role=option]')].map(option => option.textContent.toLowerCase())"
        found = f"{results}.some(result => result.includes({json.dumps(text)}))"
        self.page.wait_for(found, f"{text} among the results", 20)
        self.page.press("Enter")
        self.page.wait_for(f"{APP}.graph._nodes.length > {known}", f"a new node {text}", 20)
        self.wait_until_free(x, y)
        if self.page.run(f"{APP}.canvas.state?.ghostNodeId != null"):  # newer pages: it follows the mouse until a click
            self.page.click(x, y)
            self.page.wait_for(f"{APP}.canvas.state.ghostNodeId == null", f"the place of {text}", 20)

    def wait_until_free(self, x: float, y: float) -> None:
        """Until the graph, and no fading dialog, is at a position."""
        self.page.wait_for(f"({FREE})({x}, {y})", f"the graph at {x}, {y}", 20)

    def press_button(self, selector: str) -> None:
        """Click on the middle of the first element that a CSS selector finds, once nothing covers it."""
        call = f"({MIDDLE})({json.dumps(selector)})"
        self.page.wait_for(call, f"the button {selector}", 30)
        time.sleep(0.5)  # menus slide into place
        self.page.click(*self.page.wait_for(call, f"the button {selector}", 30))

    def press_text(self, text: str) -> None:
        """Click on what shows just this text, once it stands still."""
        call, last = f"({TEXT})({json.dumps(text)})", None
        while last != (last := self.page.wait_for(call, f"the words {text}", 120)):
            time.sleep(0.5)
        self.page.click(*last)

    def history(self) -> list[dict]:
        """Prompts that have ended, oldest first."""
        return list(self.server.get("/history").values())

    def wait_for_history(self, count: int = 1, seconds: float = 180.0) -> list[dict]:
        """The history once `count` prompts have ended."""
        deadline = time.monotonic() + seconds
        while len(found := self.history()) < count:
            if time.monotonic() > deadline:
                raise PageError(f"{len(found)} of {count} prompts ended within {seconds:g} s")
            time.sleep(0.2)
        return found

    def fit(self) -> None:
        """All of the graph between the menus."""
        self.fit_into(80, 132, 1480, 700)

    def fit_into(self, left: float, top: float, width: float, height: float) -> tuple[float, ...]:
        """All of the graph in a region of the page; the part that it takes."""
        taken = tuple(self.page.ask(script(FIT), left, top, width, height))
        time.sleep(0.5)
        return taken

    def place(self, node: int, output: bool | None = None, slot: int = 0) -> tuple[float, float]:
        """Where on the page a node's title or one of its sockets is."""
        return tuple(self.page.ask(script(PLACE), node, output, slot))

    def find(self, node_type: str) -> int:
        """Id of the only node of a type."""
        found = [node["id"] for node in self.look()["nodes"] if node["type"] == node_type]
        if len(found) != 1:
            raise PageError(f"the graph has {len(found)} nodes of type {node_type}")
        return found[0]
