"""Every template in the real page: it loads whole, keeps its values, and means what the server is told."""

from __future__ import annotations

import json

import pytest

import dev
from hosting.workflow import PACK, load_workflow, to_prompt
from tests.browser.graph_page import APP, DRAWN_ONLY, known_inputs
from training.demo import TEMPLATE as DEMO

BESIDE = "document.body.innerText"
MENU_WIDTH, MENU_HEIGHT = 64, 132
"""Of the page, in pixels: what its menus take at the left and at the top."""
SMALLEST_SCALE = 0.61
"""Below 0.6 the page draws nodes without texts."""
TEMPLATES = sorted((dev.ROOT / "workflows").glob("*.json"))


SHOWS_RESULTS = ("PreviewAny",)
"""Of the host: what such a node shows is a widget in some pages, in others not, and is empty or null before a run."""


def without_shown(seen: dict) -> dict:
    nodes = [{**node, "widgets": None} if node["type"] in SHOWS_RESULTS else node for node in seen["nodes"]]
    return {**seen, "nodes": nodes}


def without_stored(saved: dict) -> list[dict]:
    """The same of what the page saves: its nodes."""
    shown = {"widgets_values": None}
    return [{**node, **shown} if node["type"] in SHOWS_RESULTS else node for node in saved["nodes"]]


def triples(links) -> set[tuple]:
    """Links by their ends, whatever their numbers."""
    return {tuple(map(int, link)) for link in links}


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request) -> dict:
    return load_workflow(request.param)


def test_loads_whole_and_means_what_it_says(graph_page, template, image):
    before = len(graph_page.page.own_errors())
    seen = graph_page.load(template)
    graph_page.close_dialogs()
    graph_page.fit()
    unknown = {node["type"] for node in seen["nodes"] if not node["known"]} - set(DRAWN_ONLY)
    wrong = {int(node["id"]) for node in seen["nodes"] if node["error"]}  # newer pages: ids are strings
    known = graph_page.server.object_info()
    prompt = to_prompt(template, known)
    assert not unknown and wrong <= without_files(prompt, known)
    assert {int(node["id"]) for node in seen["nodes"]} == {node["id"] for node in template["nodes"]}
    assert triples(seen["links"]) == {tuple(link[1:5]) for link in template["links"]}
    kept = {int(node["id"]): node["widgets"] for node in seen["nodes"]}
    for node in template["nodes"]:
        if node.get("widgets_values") is not None and node["type"] not in SHOWS_RESULTS:
            stored, values = node["widgets_values"], kept[node["id"]] or []
            # A later host may have added widgets to its own nodes.
            exact = node["type"].startswith(PACK) or len(values) < len(stored)
            assert (values if exact else values[: len(stored)]) == stored, node["type"]
    assert graph_page.page.own_errors()[before:] == []
    # Host tests run this very prompt with tiny models, to a playable file.
    assert known_inputs(graph_page.prompt(), known) == known_inputs(prompt, known)


def test_opens_where_its_first_group_can_be_read(graph_page, template, image):
    """Not under the menus, and not so small that the page leaves texts out."""
    graph_page.load(template)
    graph_page.close_dialogs()
    scale, left, top = graph_page.view()
    assert scale >= SMALLEST_SCALE
    assert left >= MENU_WIDTH and top >= MENU_HEIGHT


def without_files(prompt: dict, object_info: dict) -> set[int]:
    """Nodes that name a model or a video which is not on the machine: newer pages frame them in red."""
    lacking = set()
    for node, entry in prompt.items():
        declared = object_info[entry["class_type"]]["input"]
        for name, (kind, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            value = entry["inputs"].get(name)
            files = kind if isinstance(kind, list) else (options[0].get("options") if kind == "COMBO" else None)
            if isinstance(value, str) and "." in value and files is not None and value not in files:
                lacking.add(int(node))
    return lacking


def test_saved_and_loaded_again_it_is_the_same_graph(graph_page, template):
    graph_page.load(template)
    graph_page.close_dialogs()
    saved, seen = graph_page.save(), without_shown(graph_page.look())
    assert without_shown(graph_page.load(saved)) == seen
    graph_page.close_dialogs()
    assert without_stored(graph_page.save()) == without_stored(saved)


def test_missing_models_are_offered_with_their_address(graph_page, image):
    template = load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json")
    graph_page.open()
    graph_page.load(template)
    dialog, overlay = ".p-dialog", "[data-testid=error-overlay-see-errors]"
    graph_page.page.wait_for(f"!!document.querySelector('{dialog}, {overlay}')", "what says that models are missing")
    in_dialog = not graph_page.page.run(f"!!document.querySelector('{overlay}')")
    if not in_dialog:  # newer pages list them beside the graph
        graph_page.press_button(overlay)
        text = graph_page.page.wait_for(
            f"{BESIDE}.includes('Missing Models') && {BESIDE}", "the list of missing models"
        )
    else:
        text = graph_page.page.run(f"document.querySelector('{dialog}').innerText")
    graph_page.page.image(image.with_name("missing_models.png"))
    graph_page.close_dialogs()
    # Newer pages do not ask for what only bypassed nodes need.
    nodes = [node for node in template["nodes"] if in_dialog or node["mode"] == 0]
    links = [model for node in nodes for model in node.get("properties", {}).get("models", [])]
    assert links and all(model["url"].startswith("https://") for model in links)
    for model in links:
        told = (f"{model['directory']} / {model['name']}",) if in_dialog else (model["directory"], model["name"])
        assert all(words in text for words in told)


def test_the_list_of_templates_shows_them_with_images_and_opens_one(graph_page, image):
    graph_page.open()
    graph_page.press_text("Templates")
    shown = f"{BESIDE}.includes({json.dumps(DEMO.stem)})"
    graph_page.page.wait_for(shown, "the list of templates", 30)
    images = "[...document.querySelectorAll('[role=dialog] img')]"  # those further down come when they are scrolled to
    loaded = f"{images}.length >= 4 && {images}.every(image => image.naturalWidth > 500)"
    graph_page.page.wait_for(loaded, "the images of the templates", 60)
    graph_page.page.image(image.with_name("list_of_templates.png"))
    graph_page.press_text(DEMO.stem)
    wanted = {node["id"] for node in load_workflow(DEMO)["nodes"]}
    graph_page.page.wait_for(f"{APP}.graph._nodes.length === {len(wanted)}", "the template's graph", 30)
    assert {int(node["id"]) for node in graph_page.look()["nodes"]} == wanted


def test_all_templates_have_a_image():
    for path in TEMPLATES:
        assert path.with_suffix(".jpg").is_file(), path.name
