"""Every node has a help page that says what the node is today."""

from __future__ import annotations

import re

import pytest

from tests import help_pages

WRITTEN = 120
"""Characters that an introduction has at least."""


@pytest.fixture(scope="module")
def nodes() -> list[help_pages.Node]:
    return [help_pages.describe(schema) for schema in help_pages.node_schemas()]


def test_every_node_has_a_page_and_every_page_a_node(nodes):
    pages = {path.stem for path in help_pages.PAGES.glob("*.md")}
    images = {path.stem for path in (help_pages.PAGES / help_pages.IMAGES).glob("*.svg")}
    ids = {node.id for node in nodes}
    assert pages == ids and images == ids


def test_pages_agree_with_the_nodes(nodes):
    stale, wiring = [], help_pages.read_wiring(nodes)
    for node in nodes:
        page = (help_pages.PAGES / f"{node.id}.md").read_text("utf-8")
        drawing = (help_pages.PAGES / help_pages.IMAGES / f"{node.id}.svg").read_text("utf-8")
        if page != help_pages.expected(node, page) or drawing != help_pages.image(node, wiring):
            stale.append(node.id)
    assert not stale, "run `python -m tests.help_pages --write`"


def test_pages_say_what_for_and_what_can_go_wrong(nodes):
    for node in nodes:
        page = (help_pages.PAGES / f"{node.id}.md").read_text("utf-8")
        assert page.startswith(f"# {node.title}\n"), node.id
        introduction, _, rest = page.partition(help_pages.BEGIN)
        assert len(introduction) > WRITTEN, node.id
        assert re.search(r"^## When something goes wrong\n\n\* ", rest, re.MULTILINE), node.id


def test_tooltips_are_sentences_with_units_where_numbers_have_one(nodes):
    for node in nodes:
        for socket in (*node.inputs, *node.outputs):
            assert socket.text[-1] in ".)", f"{node.id}: {socket.name}: {socket.text}"
        names = [socket.name for socket in node.inputs]
        assert len(set(names)) == len(names), node.id


def test_a_change_of_a_node_is_noticed(nodes):
    node = next(node for node in nodes if node.inputs)
    page = (help_pages.PAGES / f"{node.id}.md").read_text("utf-8")
    renamed = help_pages.Node(node.id, node.title, node.inputs[1:], node.outputs)
    assert help_pages.expected(renamed, page) != page
    wiring = help_pages.read_wiring(nodes)
    assert help_pages.image(renamed, wiring) != help_pages.image(node, wiring)
