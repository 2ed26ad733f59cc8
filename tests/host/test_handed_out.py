"""Handles that outlive their files: what makes the host run a node again, and what does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hosting.inprocess import import_host, import_pack

import_host()
import_pack()

from comfyui_streamingt2v.nodes import streamingsvd  # noqa: E402
from comfyui_streamingt2v.nodes.host import files, handed_out  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance import stage  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import handed_out as runs  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs.videos import RunVideo  # noqa: E402

from streaming_core.enhance.size import Size  # noqa: E402
from streaming_core.runs.folder import ChunkContent, RunFolder  # noqa: E402

NODE = "a node"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(runs, "runs_root", lambda: tmp_path)
    monkeypatch.setattr(handed_out, "_watched", {})
    monkeypatch.setattr(runs, "_shown", {})
    return tmp_path


def make_run(root: Path, name: str, chunks: int = 3) -> RunFolder:
    """A run that `NODE` handed out."""
    with RunFolder.create(root, name, kind="test", height=16, width=16, fps=8) as run:
        for index in range(chunks):
            run.write_chunk(index, ChunkContent(torch.rand(2, 16, 16, 3)), settings_hash=f"{name}{index}")
    runs.hand_out(NODE, run.frames_stream(), chunks)
    return run


def test_files_that_are_deleted_moved_or_replaced_are_counted_once(root):
    paths = [root / "a.bin", root / "b.bin"]
    for path in paths:
        path.write_bytes(b"one")
    handed_out.hand_out_files("x", "first", paths)
    assert handed_out.file_changes("x", "first") == 0 == handed_out.file_changes("y")
    paths[0].unlink()
    assert [handed_out.file_changes("x", "first") for _ in range(2)] == [1, 1]
    paths[0].write_bytes(b"one")
    handed_out.hand_out_files("x", "first", paths)
    paths[1].rename(root / "c.bin")
    assert handed_out.file_changes("x", "first") == 2
    handed_out.hand_out_files("x", "first", paths[:1])
    os.utime(paths[0], ns=(1, 1))
    assert handed_out.file_changes("x") == 3, "a name that comes by link"
    assert handed_out.file_changes("x", "second") == 0, "what others handed out is left alone"


def test_a_deleted_run_counts_for_itself_and_for_names_that_are_not_known_yet(root):
    first, _second = make_run(root, "first"), make_run(root, "second")
    assert [runs.run_changes(NODE, name) for name in ("first", "second", "", None)] == [0, 0, 0, 0]
    (first.path / "chunk_00001.safetensors").unlink()
    assert [runs.run_changes(NODE, name) for name in ("first", "second", "", None)] == [1, 0, 1, 1]


def test_a_chunk_file_that_is_replaced_is_noticed(root):
    run = make_run(root, "replaced")
    file = run.path / "chunk_00002.safetensors"
    other = make_run(root, "other").path / file.name
    file.write_bytes(other.read_bytes())
    assert runs.run_changes(NODE, "replaced") == 1


def test_every_video_of_a_run_is_watched_and_not_only_the_last(root):
    """A cache that keeps more than one prompt still has the handle from before the settings changed."""
    run = make_run(root, "two settings")
    with RunFolder.open(root, "two settings", write=True) as again:
        again.select([f"else{index}" for index in range(3)])
        for index in range(3):
            again.write_chunk(index, ChunkContent(torch.rand(2, 16, 16, 3)), settings_hash=f"else{index}")
        runs.hand_out(NODE, again.frames_stream(), 3)
    assert runs.run_changes(NODE, "two settings") == 0
    (run.path / "chunk_00000.safetensors").unlink()
    assert runs.run_changes(NODE, "two settings") == 1


def test_the_encoded_video_of_a_run_is_watched(root):
    run = make_run(root, "encoded")
    video = RunVideo(run.frames_stream())
    path = video.get_stream_source()
    assert runs.run_changes(NODE, "encoded") == 0
    os.remove(path)
    assert runs.run_changes(NODE, "encoded") == 1
    runs.hand_out(NODE, run.frames_stream(), 3)
    assert os.path.isfile(RunVideo(run.frames_stream()).get_stream_source())


def test_an_enhanced_video_in_the_temporary_folder_is_watched(root, monkeypatch):
    monkeypatch.setattr(stage.folder_paths, "get_temp_directory", lambda: str(root))
    made = stage.StageVideo("Enhance Video", "enhanced", 2, Size(16, 16), 8, lambda: iter([torch.rand(2, 16, 16, 3)]))
    stream = made.stream()
    assert handed_out.file_changes("Enhance Video") == 0
    os.remove(stream.chunks[0].file.path)
    assert handed_out.file_changes("Enhance Video") == 1


def test_a_weights_file_by_link_is_loaded_again_when_it_was_replaced(root, monkeypatch):
    """Without a name to look at, what was loaded before decides."""
    monkeypatch.setattr(files.folder_paths, "get_full_path_or_raise", lambda folder, name: str(root / name))
    stamp = streamingsvd.LoadStreamingSVD.fingerprint_inputs
    (root / "one.safetensors").write_bytes(b"one")
    before = stamp(None)
    files.model_file("checkpoints", "one.safetensors")
    assert stamp(None) == before, "loading is no change"
    (root / "other.safetensors").write_bytes(b"other")
    assert stamp("other.safetensors") != stamp("one.safetensors") and stamp(None) == before
    (root / "one.safetensors").write_bytes(b"another")
    assert stamp(None) != before and stamp(None) == stamp(None)
