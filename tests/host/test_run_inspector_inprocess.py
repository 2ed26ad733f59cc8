"""What Run Inspector says of takes and missing chunks."""

from __future__ import annotations

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.runs.folder import ChunkContent, RunFolder

SIZE = {"kind": "test", "height": 8, "width": 12, "fps": 4}


@pytest.fixture(scope="module")
def inspector():
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.runs import inspector

    return inspector


@pytest.fixture
def name(inspector, request) -> str:
    """A run of three chunks that was made with cfg 2, then rerolled in chunk 1, then asked for with cfg 3."""
    with RunFolder.create(inspector.runs_root(), request.node.name, **SIZE) as run:
        for index in range(3):
            store(run, index, f"h{index}", 2.0, seed=7)
        store(run, 1, "other", 2.0, seed=99, stands_for="h1")
    return request.node.name


def store(run: RunFolder, index: int, settings_hash: str, cfg: float, seed: int, **options) -> None:
    content = ChunkContent(torch.rand(4, 8, 12, 3), seam_frames=1)
    own = {"seed": seed, "index": index}
    run.write_chunk(index, content, settings_hash=settings_hash, identity={"cfg": cfg}, own=own, **options)


def test_other_takes_say_how_they_differ(inspector, name):
    text, sheet = inspector.describe(name)
    lines = text.splitlines()
    assert lines[0].startswith(f"{name}: 12 frames, 12x8 at 4 fps, made by test, ") and sheet.shape[0] == 1
    assert lines[3].startswith("1 | 4-7 | 99 | rerolled | 0.0 | ") and lines[3].endswith(" | 1")
    assert lines[4].startswith("    take 0 | seed 7 | ") and lines[4].endswith("take 1: seed changed 99 -> 7")
    assert len(lines) == 6


def test_missing_chunks_and_takes_of_other_settings_are_named(inspector, name):
    with RunFolder.open(inspector.runs_root(), name, write=True) as run:
        assert run.select(["h0", "new1", "new2", "new3"]) == (1, 2, 3)
        store(run, 1, "new1", 3.0, seed=7)
    text, _ = inspector.describe(name)
    lines = text.splitlines()
    assert lines[1] == "missing for the present settings: chunks 2 to 3"
    assert "    take 0 | seed 7 | 0.0 MiB | compared with take 2: cfg changed 3 -> 2" in lines
    assert "    take 0 | seed 7 | 0.0 MiB | made with other settings" in lines
    assert "2 | - | - | missing | - | - | -" in lines and "3 | - | - | missing | - | - | -" in lines


def test_a_take_is_chosen_and_older_ones_are_deleted_only_when_confirmed(inspector, name):
    assert inspector.act("choose take", name, 1, 0, "") == "chunk 1 now uses take 0, seed 7"
    with pytest.raises(SettingsError, match="nothing was deleted"):
        inspector.act("delete older takes", name, 0, 0, "")
    assert len(RunFolder.open(inspector.runs_root(), name).manifest.takes(1)) == 2
    assert inspector.act("delete older takes", name, 0, 0, name).startswith("deleted older takes")
    assert len(RunFolder.open(inspector.runs_root(), name).manifest.takes(1)) == 1
