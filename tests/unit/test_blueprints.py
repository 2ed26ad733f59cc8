"""Subgraph blueprints: made from the templates of today, of nodes and sockets that exist, with links that meet."""

from __future__ import annotations

import json

import pytest

import dev
from hosting.workflow import load_workflow
from tests.blueprints import BLUEPRINTS, FOLDER, WAY_IN, WAY_OUT, complete, main, text
from tests.node_forms import PATH as FORMS

forms = json.loads(FORMS.read_text("utf-8"))


@pytest.fixture(params=BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def blueprint(request):
    return request.param


@pytest.fixture
def stored(blueprint) -> dict:
    return load_workflow(blueprint.path)


@pytest.fixture
def subgraph(stored) -> dict:
    [subgraph] = stored["definitions"]["subgraphs"]
    return subgraph


def test_the_files_are_those_that_the_templates_give(capsys):
    """After a change of a template: python -m tests.blueprints --write."""
    assert main([]) == 0 and not capsys.readouterr().out
    assert sorted(FOLDER.iterdir()) == sorted(blueprint.path for blueprint in BLUEPRINTS)


def test_a_stale_file_is_named(monkeypatch, capsys):
    monkeypatch.setattr("tests.blueprints.text", lambda blueprint: text(blueprint) + "\n")
    assert main([]) == 1
    assert capsys.readouterr().out.count(".json") == len(BLUEPRINTS)


def test_every_system_reads_it_alike(blueprint):
    blueprint.path.read_bytes().decode("ascii")


def test_nodes_are_the_pack_s_and_as_in_the_template(blueprint, subgraph):
    template = load_workflow(dev.ROOT / "workflows" / f"{blueprint.template}.json")
    values = {node["id"]: (node["type"], node["widgets_values"]) for node in template["nodes"]}
    assert {node["type"] for node in subgraph["nodes"]} == set(blueprint.nodes)
    for node in subgraph["nodes"]:
        assert values[node["id"]] == (node["type"], node["widgets_values"])
        if not node["type"].startswith("StreamingT2V"):
            continue
        form = forms[node["type"]]
        for side, names in (("inputs", [*form["links"], *form["widgets"]]), ("outputs", form["outputs"])):
            assert [f"{s['name']}: {s['type'].replace(',', ' or ')}" for s in node[side]] == names
    assert any(node["type"].startswith("StreamingT2V") for node in subgraph["nodes"])


def test_links_meet(subgraph):
    """Either end of a link knows of it, and both are of its type."""
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    links = {link["id"]: link for link in subgraph["links"]}
    assert len(links) == len(subgraph["links"]) == subgraph["state"]["lastLinkId"]
    assert max(nodes) == subgraph["state"]["lastNodeId"]
    for number, link in links.items():
        if link["origin_id"] == WAY_IN:
            origin = subgraph["inputs"][link["origin_slot"]]
            assert origin["linkIds"] == [number]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert number in origin["links"]
        if link["target_id"] == WAY_OUT:
            target = subgraph["outputs"][link["target_slot"]]
            assert target["linkIds"] == [number]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == number
        assert link["type"] == origin["type"] == target["type"]
    ends = [socket["link"] for node in nodes.values() for socket in node["inputs"] if socket["link"] is not None]
    ends += [number for way in subgraph["outputs"] for number in way["linkIds"]]
    starts = [number for node in nodes.values() for socket in node["outputs"] for number in socket["links"]]
    starts += [number for way in subgraph["inputs"] for number in way["linkIds"]]
    assert sorted(ends) == sorted(starts) == sorted(links)


def test_what_goes_in_was_open_or_came_from_outside_in_the_template(blueprint, subgraph):
    """Nothing that the template connects is cut off on the way."""
    template = load_workflow(dev.ROOT / "workflows" / f"{blueprint.template}.json")
    inside = {node["id"]: node for node in subgraph["nodes"]}
    for _, origin, _, target, slot, _ in template["links"]:
        if target in inside:
            [node] = [node for node in template["nodes"] if node["id"] == target]
            name = node["inputs"][slot]["name"]
            [socket] = [socket for socket in inside[target]["inputs"] if socket["name"] == name]
            [link] = [link for link in subgraph["links"] if link["id"] == socket["link"]]
            assert link["origin_id"] == (origin if origin in inside else WAY_IN)


def test_the_outside_is_one_node_with_the_same_sockets(blueprint, stored, subgraph):
    [node] = stored["nodes"]
    assert node["type"] == subgraph["id"] and node["id"] not in {inner["id"] for inner in subgraph["nodes"]}
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in node[side]] == [(s["name"], s["type"]) for s in subgraph[side]]
    names = [socket["name"] for socket in node["inputs"]]
    assert len(set(names)) == len(names)
    own = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    assert own == [name for _, _, name in blueprint.widgets]
    assert blueprint.description == stored["extra"]["BlueprintDescription"] == subgraph["description"]


def test_sockets_that_a_template_was_saved_without_are_added():
    form = {"links": ["model: MODEL", "plan: CHUNK_PLAN"], "widgets": ["steps: INT"]}
    node = {"type": "X", "inputs": [{"name": "model", "type": "MODEL"}, {"name": "steps", "type": "INT"}]}
    assert [socket["name"] for socket in complete(node, form)["inputs"]] == ["model", "plan", "steps"]
    with pytest.raises(ValueError, match="X has no input steps"):
        complete(node, {**form, "widgets": []})
