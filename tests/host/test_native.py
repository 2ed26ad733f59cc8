"""Any Model Chunk Sampler, Color Anchor and Extend Video on a real host over its API, with their templates."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import TensorFrames, VideoFrames, write_video

SAMPLER, VIDEO, SAVE = "StreamingT2VAnyModelChunkSampler", "StreamingT2VStreamSampler", "StreamingT2VSaveStream"
SMALL = {"width": 64, "height": 48, "chunk_frames": 17, "overlap_frames": 9}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a tiny Wan and a tiny StreamingSVD."""
    from hosting.server import HostServer
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "input").mkdir()
    (base / "models" / "checkpoints").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tiny_wan_pack.py"), base / "custom_nodes" / "tiny_wan_pack.py")
    write_tiny_streamingsvd(base / "models" / "checkpoints" / "tiny.safetensors")
    frames = torch.rand(1, 60, 100, 3, generator=torch.Generator().manual_seed(1)).repeat(30, 1, 1, 1)
    frames = frames * torch.linspace(0.5, 1, 30).view(-1, 1, 1, 1)
    write_video(TensorFrames(frames, 24), base / "input" / "own.mp4")
    models = dev.ROOT / "tiny_models" / "native.py"
    with HostServer(pack=dev.ROOT, base=base, env={"TINY_MODELS": str(models)}) as running:
        yield running


@pytest.fixture
def prompt(server) -> dict:
    """The shipped template with a tiny Wan in place of the loaders."""
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "long_video_any_model.json"), server.object_info())
    prompt["tiny"] = {"class_type": "StreamingT2VTestTinyWan", "inputs": {}}
    loaders = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    stock = {node: loaders[prompt[node]["class_type"]] for node in prompt if prompt[node]["class_type"] in loaders}
    for node in prompt.values():
        for name, link in node["inputs"].items():
            if isinstance(link, list) and link[0] in stock:
                node["inputs"][name] = ["tiny", stock[link[0]]]
    for node in stock:
        del prompt[node]
    set_inputs(prompt, "BasicScheduler", steps=2)
    set_inputs(prompt, VIDEO, num_frames=38, **SMALL)
    return prompt


def node_of(prompt, kind: str) -> str:
    return next(node for node, value in prompt.items() if value["class_type"] == kind)


def video(report) -> VideoFrames:
    outputs = [output for output in report.check().outputs if output.path.suffix in (".mp4", ".mkv")]
    return VideoFrames.open(outputs[-1].path)


def test_the_template_for_any_model_makes_exactly_the_frames_asked_for(server, prompt):
    frames = video(server.run(prompt))
    assert (len(frames), frames.width, frames.height) == (38, 64, 48)
    assert not any(node["class_type"] == "StreamingT2VColorAnchor" for node in prompt.values()), "off by default"


def test_lengths_are_adapted_and_the_log_says_so(server, prompt):
    set_inputs(prompt, VIDEO, chunk_frames=16, overlap_frames=7, run_name="odd")
    assert len(video(server.run(prompt))) == 38
    assert "using 17 frames with an overlap of 9 instead of 16 and 7" in server.log()


def test_color_anchor_is_one_key_away(server, prompt):
    workflow = load_workflow(dev.ROOT / "workflows" / "long_video_any_model.json")
    node = next(node for node in workflow["nodes"] if node["type"] == "StreamingT2VColorAnchor")
    assert node["mode"] == 4
    prompt["color"] = {
        "class_type": "StreamingT2VColorAnchor",
        "inputs": {
            "chunk_sampler": [node_of(prompt, SAMPLER), 0],
            "space": "lab",
            "strength": 1.0,
            "cut_threshold": 0.0,
        },
    }
    set_inputs(prompt, VIDEO, run_name="colored")
    prompt[node_of(prompt, VIDEO)]["inputs"]["chunk_sampler"] = ["color", 0]
    assert len(video(server.run(prompt))) == 38


def images(report) -> list[np.ndarray]:
    outputs = sorted((output for output in report.check().outputs), key=lambda output: output.path.name)
    return [np.asarray(Image.open(output.path)).astype(int) for output in outputs]


def test_a_chain_of_single_steps_makes_the_video_of_stream_sampler(server, prompt):
    """What the host's own loop nodes do with Stream Chunk: carry the state from step to step."""
    set_inputs(prompt, VIDEO, collect_images=True, run_name="whole")
    whole = copy.deepcopy(prompt)
    whole[node_of(whole, SAVE)] = {
        "class_type": "SaveImage",
        "inputs": {"images": [node_of(whole, VIDEO), 2], "filename_prefix": "native/whole"},
    }
    expected = images(server.run(whole))
    steps = copy.deepcopy(prompt)
    inputs = {
        name: value
        for name, value in steps[node_of(steps, VIDEO)]["inputs"].items()
        if name not in ("run_name", "fps", "collect_images")
    }
    del steps[node_of(steps, SAVE)]
    sampler, previous = inputs["chunk_sampler"], node_of(steps, VIDEO)
    steps[previous] = {"class_type": "StreamingT2VStartVideo", "inputs": inputs}
    steps["save0"] = {"class_type": "SaveImage", "inputs": {"images": [previous, 1], "filename_prefix": "native/step0"}}
    for number in (1, 2, 3):
        steps[f"step{number}"] = {
            "class_type": "StreamingT2VStreamChunk",
            "inputs": {"chunk_sampler": sampler, "state": [previous, 0]},
        }
        previous = f"step{number}"
        steps[f"save{number}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [previous, 1], "filename_prefix": f"native/step{number}"},
        }
    made = images(server.run(steps))
    assert len(made) == len(expected) == 38
    # A video on disk is rounded to 8 bit before it becomes an image.
    assert max(abs(one - two).max() for one, two in zip(made, expected, strict=True)) <= 1


def test_a_video_of_ones_own_is_extended_without_a_gap_or_repeat(server):
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "extend_my_video.json"), server.object_info())
    set_inputs(prompt, "LoadVideo", file="own.mp4")
    set_inputs(prompt, "StreamingT2VLoadStreamingSVD", ckpt_name="tiny.safetensors")
    set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    set_inputs(prompt, VIDEO, chunk_frames=8, overlap_frames=3)
    set_inputs(prompt, "StreamingT2VExtendVideo", new_frames=11, tail_frames=6, width=128, height=64)
    set_inputs(prompt, SAVE, codec="ffv1")
    report = server.run(prompt)
    frames = video(report)
    # 30 frames at 24 per second are 15 at 12, and 11 new ones.
    assert (len(frames), frames.width, frames.height, frames.fps) == (26, 128, 64, 12)
    light = frames.read(0, 15).mean((1, 2, 3))
    assert (light.diff() > 0).all(), "the own video gets lighter with every frame: none is there twice"
    words = server.log()
    assert "one of every 2 frames is used" in words and "it will have 26 frames" in words
