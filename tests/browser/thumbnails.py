"""`python -m tests.browser.thumbnails [NAME ...]`: pictures of the templates, from the real page.

Writes `workflows/NAME.jpg` beside `NAME.json`, which the page shows in its list of templates.
"""

from __future__ import annotations

import io
import sys
import time

import dev

WIDTH = 768
REGION = (80, 132, 1500, 700)
"""Part of the page that menus leave free: left, top, width, height in pixels."""


def main(names: list[str]) -> int:
    dev.ensure_environment("tests.browser.thumbnails")
    from PIL import Image

    from tests.browser.graph_page import GraphPage
    from tests.browser.page import Page
    from tests.host.harness import HostServer
    from tests.host.workflow import load_workflow

    folder = dev.ROOT / "workflows"
    with HostServer(pack=dev.ROOT) as server, Page() as page:
        graph = GraphPage(page, server)
        graph.open()
        graph.press_button("[data-testid=toggle-minimap-button]")
        for path in sorted(folder.glob("*.json")):
            if names and path.stem not in names:
                continue
            graph.load(load_workflow(path))
            graph.close_dialogs()
            shown = graph.fit_into(*REGION)
            time.sleep(1)
            picture = Image.open(io.BytesIO(page.screenshot(shown))).convert("RGB")
            picture.thumbnail((WIDTH, WIDTH))
            picture.save(path.with_suffix(".jpg"), quality=85)
            print(path.with_suffix(".jpg").name, picture.size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
