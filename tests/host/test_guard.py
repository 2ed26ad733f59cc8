"""Inputs a node does not have, and what is left of a node that failed."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from tiny_models.streamingsvd import write_tiny_streamingsvd

import_host()
import_pack()

import comfy.model_management as mm  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelComputeDtype  # noqa: E402
from comfyui_streamingt2v import nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import handed_out, videos  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd import load  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd import sampler as svd  # noqa: E402

ALL = {node.GET_SCHEMA().node_id: node for node in asyncio.run(nodes.StreamingT2V().get_node_list())}


@pytest.mark.parametrize("node_id", ALL)
def test_inputs_that_a_node_does_not_have_are_refused_in_one_sentence(node_id):
    node = ALL[node_id]
    given = {socket.id: None for socket in node.GET_SCHEMA().inputs}
    with pytest.raises(SettingsError, match="has no input 'gone'; remove it from the prompt") as error:
        getattr(node, node.FUNCTION)(**given, gone=3)
    assert node.GET_SCHEMA().display_name in str(error.value)


def video_of(model, files, **plan):
    settings = svd.SamplingSettings(comfy.samplers.sampler_object("euler"), torch.tensor([700.0, 5.0, 0.0]), 3.0, 1.5)
    sampler = svd.SvdChunkSampler(
        model, files.cam, files.vae, files.clip_vision, model, sampling=settings, first_sampling=settings
    )
    given = {"num_frames": 14, "chunk_frames": 6, "overlap_frames": 2, "width": 64, "height": 32, "fps": 8.0}
    given |= {"fit": "crop", "anchor_frame": 0, "seed": 1, "start_image": torch.rand(1, 32, 64, 3)}
    chosen = {**given, "run_name": "", "collect_images": False, **plan}
    with torch.inference_mode():
        return ALL["StreamingT2VStreamSampler"].execute(chunk_sampler=sampler, **chosen)


def failing_at(call: int, monkeypatch):
    real, calls = comfy.samplers.sampling_function, []

    def step(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("nothing left")
        return real(*args, **options)

    monkeypatch.setattr(comfy.samplers, "sampling_function", step)


@pytest.mark.parametrize("at", [1, 3], ids=["first chunk", "chunk with CAM"])
def test_an_error_leaves_no_model_behind_in_the_hosts_list(tmp_path, monkeypatch, caplog, at):
    """As on a server: the error, and with it every frame it came through, waits for Python to look for circles."""
    for module in (videos, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    path = write_tiny_streamingsvd(Path(folder_paths.get_folder_paths("checkpoints")[0]) / "svd_guard.safetensors")
    files = load.open_streamingsvd(str(path))

    in_half = ModelComputeDtype.execute if hasattr(ModelComputeDtype, "execute") else ModelComputeDtype().patch

    def failing() -> list:
        try:
            video_of(in_half(files.model, "bf16")[0], files)
        except RuntimeError as error:
            held = [sys.exc_info()[2], error]
            assert "nothing left" in str(error)
            return held
        raise AssertionError("it did not fail")

    gc.disable()
    try:
        with monkeypatch.context() as patched:
            failing_at(at, patched)
            failing()
        gc.collect()
        assert not [entry for entry in mm.current_loaded_models if entry.is_dead()]
        with caplog.at_level(logging.INFO):
            video_of(files.model, files, seed=2)
    finally:
        gc.enable()
    assert "memory leak" not in caplog.text
