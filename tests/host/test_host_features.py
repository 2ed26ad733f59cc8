"""docs/hosts.md against the host under test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import dev
from tests.host.features import PROBES, table_rows

TABLES = table_rows(dev.ROOT / "docs" / "hosts.md")


def test_document_and_probes_have_the_same_rows():
    assert set(TABLES) == set(PROBES)


def test_table_rows_are_read_from_their_columns(tmp_path):
    document = tmp_path / "hosts.md"
    document.write_text("text\n\n| what | 1.0.0 | 2.0.0 | note |\n| --- | --- | --- | --- |\n| `x` | yes | no | n |\n")
    assert table_rows(document) == {"`x`": {"1.0.0": "yes", "2.0.0": "no"}}


def test_host_answers_as_the_document_says():
    """In a process of its own: the host is imported there."""
    code = (
        # Before the host, which has folders of the same name.
        "import json\nfrom tests.host.features import PROBES, answer\n"
        "from hosting.inprocess import import_host\nimport_host()\n"
        "print('answers', json.dumps({row: answer(row) for row in PROBES}))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(dev.ROOT), str(dev.SHIM)])}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=env, cwd=dev.ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    answers = json.loads(run.stdout.rpartition("answers ")[2])
    version = dev.host_version(dev.host_path())
    if not all(version in cells for cells in TABLES.values()):
        pytest.skip(f"docs/hosts.md has no column for host {version}; its answers: {answers}")
    wrong = {row: (cells[version], answers[row]) for row, cells in TABLES.items() if cells[version] != answers[row]}
    assert not wrong, f"row: (docs/hosts.md, host {version})"
