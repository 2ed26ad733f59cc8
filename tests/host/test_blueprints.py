"""Subgraph blueprints on a real host: served under their names, and complete."""

from __future__ import annotations

import json

import pytest

import dev
from hosting.server import HostServer
from tests.blueprints import BLUEPRINTS


@pytest.fixture(scope="module")
def server():
    with HostServer(pack=dev.ROOT) as server:
        yield server


def test_the_host_serves_them(server):
    entries = server.get("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in entries.items() if "StreamingT2V" in entry["info"]["node_pack"]}
    assert ours.keys() == {blueprint.name for blueprint in BLUEPRINTS}
    for blueprint in BLUEPRINTS:
        served = server.get(f"/global_subgraphs/{ours[blueprint.name]}")
        assert served["source"] == "custom_node"
        assert served["data"] == blueprint.path.read_text("utf-8")


def test_nothing_that_a_node_must_have_is_missing(server):
    known = server.object_info()
    for blueprint in BLUEPRINTS:
        [subgraph] = json.loads(blueprint.path.read_text("utf-8"))["definitions"]["subgraphs"]
        for node in subgraph["nodes"]:
            sockets = {socket["name"]: socket for socket in node["inputs"]}
            needed = known[node["type"]]["input"].get("required", {})
            assert needed.keys() <= sockets.keys()
            for name in needed:
                assert sockets[name]["link"] is not None or "widget" in sockets[name], (node["type"], name)
