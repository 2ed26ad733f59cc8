"""The pack in a real host: it loads, quickly, and describes itself to the user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def pack_nodes(host_server) -> dict[str, dict]:
    found = host_server.pack_nodes()
    assert found, host_server.log_tail()
    return found


def inputs(nodes: dict[str, dict]) -> Iterator[tuple[str, list]]:
    """("node.input", [type, options]) of every input a user sees."""
    for node, info in nodes.items():
        for group in ("required", "optional"):
            for name, definition in info["input"].get(group, {}).items():
                yield f"{node}.{name}", definition


def test_pack_imports_without_failure(host_server):
    assert not host_server.import_failures(), host_server.log_tail()


def test_pack_imports_in_under_a_second(host_server):
    assert host_server.import_seconds() < 1.0


def test_node_ids_carry_the_prefix(pack_nodes):
    assert not [node for node in pack_nodes if not node.startswith("StreamingT2V")]


def test_every_node_has_name_category_and_description(pack_nodes):
    for node, info in pack_nodes.items():
        assert info["display_name"] and info["display_name"] != node, node
        assert info["category"].partition("/")[0] == "StreamingT2V", (node, info["category"])
        assert info["description"], node


def test_every_input_has_a_tooltip(pack_nodes):
    found = list(inputs(pack_nodes))
    assert found
    assert not [name for name, (_, *options) in found if not (options and options[0].get("tooltip"))]


def test_every_number_has_a_range(pack_nodes):
    numbers = [(name, options) for name, (kind, *options) in inputs(pack_nodes) if kind in ("INT", "FLOAT")]
    assert numbers
    assert not [name for name, options in numbers if not {"min", "max", "default"} <= set(options[0])]


def test_every_output_node_has_an_output(pack_nodes):
    """So that loops of newer hosts can end in it."""
    assert not [node for node, info in pack_nodes.items() if info["output_node"] and not info["output"]]


@pytest.mark.slow
def test_pack_loads_without_the_cache(fresh_server):
    server = fresh_server("--cache-none")
    assert not server.import_failures()
    assert server.pack_nodes()
