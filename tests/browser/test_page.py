"""What a user does in the page: search, wire, read help, run, look, cancel."""

from __future__ import annotations

import time

import pytest

from hosting.workflow import load_workflow
from streaming_core.frames import VideoFrames
from tests.browser.graph_page import EMPTY, script
from training.demo import TEMPLATE, furnish

FRAMES = 18
RUN = ":is([data-testid=queue-button] button, button[data-testid=queue-button])"
"""In older pages the button is inside of what bears the name, in newer ones it is the same."""

ADD = """(type) => {
  const node = LiteGraph.createNode(type);
  APP.graph.add(node);
  return node.widgets.flatMap(widget => widget.linkedWidgets ?? []).map(control => control.value);
}"""


@pytest.fixture
def empty(graph_page):
    """The page with nothing on it, at scale 1."""
    graph_page.load(EMPTY)
    graph_page.close_dialogs()
    graph_page.zoom(1.0)
    return graph_page


@pytest.fixture(scope="module")
def models(page_server) -> None:
    """The trained demo models and an image of the kind they know."""
    furnish(page_server.base)


@pytest.fixture
def graph(graph_page, models):
    """The demo template as it is, but for its length."""
    graph_page.load(load_workflow(TEMPLATE))
    graph_page.close_dialogs()
    graph_page.refresh_lists()
    graph_page.set_widgets("StreamingT2VStreamSampler", num_frames=FRAMES)
    graph_page.fit()
    return graph_page


def test_nodes_are_found_by_search_and_wired_by_mouse(empty, image):
    empty.add_by_search("stream from images", 400, 300)
    empty.add_by_search("save stream", 900, 300)
    source, target = empty.find("StreamingT2VStreamFromImages"), empty.find("StreamingT2VSaveStream")
    empty.page.drag(empty.place(source, True, 0), empty.place(target, False, 0))
    assert empty.look()["links"] == [[source, 0, target, 0]]


def test_help_opens_and_shows_the_page_with_its_image(empty, image):
    empty.add_by_search("randomized blending", 700, 300)
    empty.page.click(*empty.place(empty.find("StreamingT2VRandomizedBlending")))
    empty.press_button("[data-testid=info-button]")
    text = empty.page.wait_for("document.querySelector('.node-help-content')?.innerText", "the help page", 30)
    assert "every step each overlap is cut at a new random frame" in " ".join(text.split())
    assert "When something goes wrong" in text
    seen = "[...document.querySelectorAll('.node-help-content img')].every(i => i.complete && i.naturalWidth > 100)"
    empty.page.wait_for(seen, "the image of the help page", 30)


def test_run_makes_a_video_that_plays_and_is_shown(graph, image):
    outputs = graph.server.base / "output" / "video"
    graph.press_button(RUN)
    [entry] = graph.wait_for_history()
    assert entry["status"]["status_str"] == "success"
    [path] = outputs.glob("*.mp4")
    video = VideoFrames.open(path)
    assert (len(video), video.width, video.height) == (2 * FRAMES - 1, 96, 96)
    bright = video.read(0, len(video)).amax(dim=-1) > 0.6
    assert all(0.02 < share < 0.25 for share in bright.float().mean(dim=(1, 2)).tolist()), "the sprite is there"
    # The node shows its video: the page has a player with a source that loads.
    graph.page.wait_for("[...document.querySelectorAll('video')].some(v => v.videoWidth === 96)", "the player", 30)


def test_a_run_is_canceled_from_the_page(graph, image):
    graph.set_widgets("StreamingT2VStreamSampler", num_frames=4000, run_name="canceled_from_page")
    known = len(graph.history())
    graph.press_button(RUN)
    run = graph.server.base / "output" / "streaming_runs" / "canceled_from_page"
    deadline = time.monotonic() + 120
    while not list(run.glob("chunk_*.safetensors")):
        assert time.monotonic() < deadline, "no chunk was made"
        time.sleep(0.2)
    graph.press_button("[aria-label='Cancel current run']")
    entry = graph.wait_for_history(known + 1)[-1]
    assert entry["status"]["status_str"] == "error"
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert kinds[-1] == "execution_interrupted"
    assert list(run.glob("chunk_*.safetensors")), "finished chunks are kept"


def test_seeds_of_new_nodes_are_fixed_and_saved_choices_stay(empty, page_server):
    """On every page, also where the host cannot say it: a second Run must not start another video."""
    seeded = {}
    for name, info in page_server.object_info().items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        controls = [options for _, options in (each for each in inputs.values() if len(each) > 1)]
        count = sum(bool(options.get("control_after_generate")) for options in controls)
        if name.startswith("StreamingT2V") and count:
            seeded[name] = count
    assert "StreamingT2VEnhanceVideo" in seeded and "StreamingT2VRandomizedBlending" in seeded
    for name, count in seeded.items():
        assert empty.page.ask(script(ADD), name) == ["fixed"] * count, name
    saved = empty.save()
    node = next(node for node in saved["nodes"] if node["type"] == "StreamingT2VRandomizedBlending")
    assert node["widgets_values"][-1] == "fixed"
    node["widgets_values"][-1] = "randomize"
    loaded = empty.load({**EMPTY, "nodes": [node]})
    assert loaded["nodes"][0]["widgets"][-1] == "randomize"
