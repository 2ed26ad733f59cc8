"""`python -m tests.browser.thumbnails [NAME ...]`: images of the templates, made by the templates themselves.

Writes `workflows/NAME.jpg` beside `NAME.json`, which the page shows in its list of templates. Above: frames of a video
that this template made with the demo models on a real host; `thumbnail_videos.py` says what is exchanged for it. Below:
its graph in the real page.
"""

from __future__ import annotations

import sys
import time

import dev

PAGE = (2720, 1480)
"""Pixels. In a smaller page the widest graphs would be drawn without texts."""
REGION = (80, 132, 2500, 1240)
"""Part of the page that menus leave free: left, top, width, height in pixels."""


def draw_output(server, name: str):
    """Image of what this template makes."""
    from tests.browser.thumbnail_images import video_image, wide_image
    from tests.browser.thumbnail_videos import RECIPES, make_output

    began, made = time.monotonic(), make_output(server, name)
    print(f"{name}: made in {time.monotonic() - began:.0f} s", flush=True)
    return video_image(made, RECIPES[name]) if made.suffix == ".mp4" else wide_image(made.read_bytes())


def draw_graph(graph, workflow: dict) -> bytes:
    """The whole graph in the real page, PNG."""
    graph.load(workflow)
    graph.close_dialogs()
    shown = graph.fit_into(*REGION)
    time.sleep(2)
    return graph.page.screenshot(shown)


def main(names: list[str]) -> int:
    dev.ensure_environment("tests.browser.thumbnails")
    from hosting.server import HostServer
    from hosting.workflow import load_workflow
    from tests.browser.graph_page import GraphPage
    from tests.browser.page import Page
    from tests.browser.thumbnail_images import save, stacked, wide_image
    from tests.browser.thumbnail_videos import FOLDER
    from training.demo import furnish

    names = names or sorted(path.stem for path in FOLDER.glob("*.json"))
    workflows = {name: load_workflow(FOLDER / f"{name}.json") for name in names}
    with HostServer(pack=dev.ROOT) as server, Page(*PAGE) as page:
        furnish(server.base)
        graph = GraphPage(page, server)
        graph.open()
        graph.press_button("[data-testid=toggle-minimap-button]")
        for name, workflow in workflows.items():
            # Before the graph, whose loaders show the input files of this run.
            above = draw_output(server, name)
            save(stacked([above, wide_image(draw_graph(graph, workflow))]), FOLDER / f"{name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
