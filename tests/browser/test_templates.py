"""Every template in the real page: it loads whole, keeps its values, and means what the server is told."""

from __future__ import annotations

import json

import pytest

import dev
from tests.browser.graph_page import DRAWN_ONLY
from tests.host.workflow import load_workflow, to_prompt

TEMPLATES = sorted((dev.ROOT / "workflows").glob("*.json"))


SHOWS_RESULTS = ("PreviewAny",)
"""Of the host: what such a node shows is a widget in some pages, in others not, and is empty or null before a run."""


def without_shown(seen: dict) -> dict:
    nodes = [{**node, "widgets": None} if node["type"] in SHOWS_RESULTS else node for node in seen["nodes"]]
    return {**seen, "nodes": nodes}


def triples(links) -> set[tuple]:
    """Links by their ends, whatever their numbers."""
    return {tuple(link) for link in links}


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request) -> dict:
    return load_workflow(request.param)


def test_loads_whole_and_means_what_it_says(graph_page, template, picture):
    before = len(graph_page.page.own_errors())
    seen = graph_page.load(template)
    graph_page.close_dialogs()
    graph_page.fit()
    unknown = {node["type"] for node in seen["nodes"] if not node["known"]} - set(DRAWN_ONLY)
    assert not unknown and not any(node["error"] for node in seen["nodes"])
    assert {node["id"] for node in seen["nodes"]} == {node["id"] for node in template["nodes"]}
    assert triples(seen["links"]) == {tuple(link[1:5]) for link in template["links"]}
    kept = {node["id"]: node["widgets"] for node in seen["nodes"]}
    for node in template["nodes"]:
        if node.get("widgets_values") is not None and node["type"] not in SHOWS_RESULTS:
            assert kept[node["id"]] == node["widgets_values"], node["type"]
    assert graph_page.page.own_errors()[before:] == []
    # Host tests run this very prompt with tiny models, to a playable file.
    known = graph_page.server.object_info()
    assert graph_page.prompt_inputs(known) == without_titles(to_prompt(template, known))


def without_titles(prompt: dict) -> dict:
    return {node: (entry["class_type"], entry["inputs"]) for node, entry in prompt.items()}


def test_saved_and_loaded_again_it_is_the_same_graph(graph_page, template):
    graph_page.load(template)
    graph_page.close_dialogs()
    saved, seen = graph_page.save(), without_shown(graph_page.look())
    assert without_shown(graph_page.load(saved)) == seen
    graph_page.close_dialogs()
    assert json.loads(json.dumps(graph_page.save()["nodes"])) == saved["nodes"]


def test_missing_models_are_offered_with_their_address(graph_page, picture):
    template = load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json")
    graph_page.load(template)
    text = graph_page.page.wait_for("document.querySelector('.p-dialog')?.innerText", "the dialog of missing models")
    graph_page.page.picture(picture.with_name("missing_models.png"))
    graph_page.close_dialogs()
    links = [model for node in template["nodes"] for model in node.get("properties", {}).get("models", [])]
    assert links and all(model["url"].startswith("https://") for model in links)
    for model in links:
        assert f"{model['directory']} / {model['name']}" in text


def test_all_templates_have_a_picture():
    for path in TEMPLATES:
        assert path.with_suffix(".jpg").is_file(), path.name
