"""One server for all browser tests, one browser per file; without Chromium they are skipped with the reason.

A page draws as long as it is open, so it does not stay open while other tests run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
from hosting.server import HostServer
from tests.browser.graph_page import GraphPage
from tests.browser.page import Page, browser_path

IMAGES = dev.ROOT / "out" / "browser"
"""Where the tests leave what they saw; not under version control."""


@pytest.fixture(scope="session")
def page_server() -> Iterator[HostServer]:
    with HostServer(pack=dev.ROOT) as server:
        yield server


@pytest.fixture(scope="module")
def graph_page(page_server) -> Iterator[GraphPage]:
    if browser_path() is None:
        pytest.skip("no Chromium on this machine; install it (Debian: apt install chromium) or name one in CHROMIUM")
    with Page() as page:
        opened = GraphPage(page, page_server)
        opened.open()
        yield opened


@pytest.fixture
def image(request, graph_page) -> Iterator[Path]:
    """Where this test's image goes; taken at its end, also when it failed."""
    path = IMAGES / f"{request.node.name}.png"
    yield path
    graph_page.page.image(path)
