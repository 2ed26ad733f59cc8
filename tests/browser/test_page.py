"""What a user does in the page: search, wire, read help, run, look, cancel."""

from __future__ import annotations

import time

import pytest

import dev
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
RANDOMIZE = """(id) => {
  const node = APP.graph.getNodeById(id);
  for (const control of node.widgets.flatMap(widget => widget.linkedWidgets ?? [])) control.value = "randomize";
}"""
RUNNABLE = """() => {
  const [image, preview] = ["EmptyImage", "PreviewImage"].map(type => LiteGraph.createNode(type));
  [image, preview].forEach((node, i) => { node.pos = [100, 150 + 250 * i]; APP.graph.add(node); });
  image.connect(0, preview, 0);
}"""
"""Nodes of the host that run without any file."""


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
    written = (dev.ROOT / "web" / "docs" / "StreamingT2VRandomizedBlending.md").read_text("utf-8")
    assert " ".join(written.split("\n\n")[1].split()) in " ".join(text.split())
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


def seeded_nodes(server) -> dict[str, list[str]]:
    """Names of the widgets that the page may change after each Run, by node type of this pack."""
    seeded = {}
    for node_type, info in server.object_info().items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        controlled = [
            name for name, (_, *options) in inputs.items() if options and options[0].get("control_after_generate")
        ]
        if node_type.startswith("StreamingT2V") and controlled:
            seeded[node_type] = controlled
    return seeded


def seeds_after_run(page, nodes: dict[int, list[str]]) -> dict[tuple[int, str], int]:
    """Press Run; the seeds in the prompt that was queued, by node and widget."""
    known = len(page.history())
    page.press_button(RUN)
    entries = page.wait_for_history(known + 1)
    prompt = max(entries, key=lambda entry: entry["prompt"][0])["prompt"][2]
    return {(node, name): prompt[str(node)]["inputs"][name] for node, names in nodes.items() for name in names}


def test_seeds_of_new_nodes_stay_over_two_runs(empty, page_server, image):
    """On every page, also where the host cannot say it: a second Run must not start another video."""
    seeded = seeded_nodes(page_server)
    sampler = "StreamingT2VStreamSampler"
    assert {sampler, "StreamingT2VEnhanceVideo", "StreamingT2VRandomizedBlending"} <= set(seeded)
    # Something that can run; the nodes beside it lack their inputs, and the host leaves them out.
    empty.page.ask(script(RUNNABLE))
    empty.add_by_search("stream sampler", 900, 500)
    for node_type in sorted(set(seeded) - {sampler}):
        assert empty.page.ask(script(ADD), node_type) == ["fixed"] * len(seeded[node_type]), node_type
    nodes = {int(node["id"]): seeded[node["type"]] for node in empty.look()["nodes"] if node["type"] in seeded}
    assert len(nodes) == len(seeded)
    first = seeds_after_run(empty, nodes)
    assert seeds_after_run(empty, nodes) == first
    # The page does change seeds where the user wants it: nothing above held because nothing moves.
    randomized = int(empty.find("StreamingT2VRandomizedBlending"))
    empty.page.ask(script(RANDOMIZE), randomized)
    seeds_after_run(empty, nodes)
    changed = seeds_after_run(empty, nodes)
    assert {key for key in first if changed[key] != first[key]} == {(randomized, name) for name in nodes[randomized]}


def test_what_a_saved_workflow_says_of_its_seed_stays(empty):
    empty.page.ask(script(ADD), "StreamingT2VRandomizedBlending")
    [node] = empty.save()["nodes"]
    assert node["widgets_values"][-1] == "fixed"
    node["widgets_values"][-1] = "randomize"
    loaded = empty.load({**EMPTY, "nodes": [node]})
    assert loaded["nodes"][0]["widgets"][-1] == "randomize"


def test_a_chunk_plan_saved_before_motion_keeps_its_values(empty):
    empty.page.ask(script(ADD), "StreamingT2VChunkPlan")
    [node] = empty.save()["nodes"]
    assert [each["name"] for each in node["inputs"]][-1] == "motion"
    values = [*node["widgets_values"][:-2], "1, 4: 0.5"]
    older = {**node, "widgets_values": values, "inputs": node["inputs"][:-1]}
    [loaded] = empty.load({**EMPTY, "nodes": [older]})["nodes"]
    assert loaded["known"] and loaded["widgets"] == [*values, ""]
