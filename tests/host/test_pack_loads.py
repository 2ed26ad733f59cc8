"""The pack in a real host: it loads, quickly, and describes itself to the user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import dev


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
    """Processor time in a process that holds what the host has imported by then: a busy machine changes nothing."""
    code = (
        "import asyncio, time\n"
        "from hosting.inprocess import import_host, import_pack\n"
        "import_host()\n"
        "import comfy_api.latest, comfy.clip_vision, comfy.context_windows, comfy.samplers, comfy.sd\n"
        "import latent_preview, nodes\n"
        "begin = time.process_time()\n"
        "extension = asyncio.run(import_pack().comfy_entrypoint())\n"
        "nodes = asyncio.run(extension.get_node_list())\n"
        "seconds = time.process_time() - begin\n"
        "print('nodes and seconds', len(nodes), seconds)\n"
    )
    env = {**dev.child_environment(), "PYTHONPATH": os.pathsep.join([str(dev.ROOT), str(dev.SHIM)])}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=env, cwd=dev.ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    count, seconds = run.stdout.split()[-2:]
    assert int(count) == len(host_server.pack_nodes())
    assert float(seconds) < 1.0, f"and by the host's own clock {host_server.import_seconds()} s"


def test_node_ids_carry_the_prefix(pack_nodes):
    assert not [node for node in pack_nodes if not node.startswith("StreamingT2V")]


def test_every_node_has_name_category_and_description(pack_nodes):
    for node, info in pack_nodes.items():
        assert info["display_name"] and info["display_name"] != node, node
        assert "StreamingT2V" in info["category"].split("/"), (node, info["category"])
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
