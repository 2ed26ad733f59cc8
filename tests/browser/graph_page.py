"""ComfyUI's page as a user works with it: loads and saves graphs, adds and wires nodes, runs and cancels."""

from __future__ import annotations

import time
from pathlib import Path

from tests.browser.page import Page, PageError
from tests.host.harness import HostServer

APP = "(window.app ?? window.comfyAPI.app.app)"
READY = f"!!(window.LiteGraph && {APP}.canvas && LiteGraph.registered_node_types.StreamingT2VStreamSampler)"
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
FIT = """() => {
  const canvas = APP.canvas, nodes = APP.graph._nodes;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1] - 40));
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
  const scale = Math.min(1, (innerWidth - 160) / (right - left), (innerHeight - 160) / (bottom - top));
  canvas.ds.scale = scale;
  canvas.ds.offset = [90 / scale - left, 90 / scale - top];
  canvas.setDirty(true, true);
}"""
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
        self.page.press("Escape")

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

    def fit(self) -> None:
        self.page.ask(script(FIT))
        time.sleep(0.5)

    def picture(self, path: Path) -> None:
        self.fit()
        self.page.picture(path)

    def place(self, node: int, output: bool | None = None, slot: int = 0) -> tuple[float, float]:
        """Where on the page a node's title or one of its sockets is."""
        return tuple(self.page.ask(script(PLACE), node, output, slot))

    def find(self, node_type: str) -> int:
        """Id of the only node of a type."""
        found = [node["id"] for node in self.look()["nodes"] if node["type"] == node_type]
        if len(found) != 1:
            raise PageError(f"the graph has {len(found)} nodes of type {node_type}")
        return found[0]
