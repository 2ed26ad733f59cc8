"""The LVDM nodes and their template on a real host over its API."""

from __future__ import annotations

import pytest

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import VideoFrames
from tiny_models.lvdm import TINY_INTERPOLATION, TINY_PREDICTION, TINY_TEXT, write_tiny_lvdm

pytestmark = pytest.mark.slow

LOADER, SAMPLER, CHUNKS = "StreamingT2VLoadLvdm", "StreamingT2VStreamSampler", "StreamingT2VLvdmChunkSampler"
SMALL = {"width": 32, "height": 32}


@pytest.fixture(scope="module")
def server(host_server):
    folder = host_server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_lvdm(folder / "t2v.ckpt", TINY_TEXT)
    write_tiny_lvdm(folder / "sky_prediction.ckpt", TINY_PREDICTION, 1)
    write_tiny_lvdm(folder / "sky_interpolation.ckpt", TINY_INTERPOLATION, 2)
    return host_server


@pytest.fixture
def prompt(server) -> dict:
    """The shipped template, made small."""
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "lvdm_text_to_video.json"), server.object_info())
    set_inputs(prompt, CHUNKS, steps=2)
    set_inputs(prompt, SAMPLER, **SMALL)
    return prompt


def node_of(prompt: dict, node_type: str) -> str:
    return next(node for node, value in prompt.items() if value["class_type"] == node_type)


def video(report) -> VideoFrames:
    [output] = report.check().outputs
    return VideoFrames.open(output.path)


def test_the_template_makes_its_64_frames(server, prompt):
    report = server.run(prompt).check()
    frames = video(report)
    assert (len(frames), frames.width, frames.height, frames.fps) == (64, 32, 32, 8)
    sampler = node_of(prompt, SAMPLER)
    bar = [move.value for move in report.progress if move.node == sampler]
    assert bar == sorted(bar) and report.bars()[sampler] == (14.0, 14.0), "seven chunks of two steps"


def without_text(prompt: dict) -> dict:
    """The prompt with the long models in place of text-to-video."""
    for node in [node for node, value in prompt.items() if value["class_type"] == "CLIPTextEncode"]:
        del prompt[node]
    loader, chunks = node_of(prompt, LOADER), prompt[node_of(prompt, CHUNKS)]["inputs"]
    for name in ("positive", "negative"):
        del chunks[name]
    prompt[loader]["inputs"]["ckpt_name"] = "sky_prediction.ckpt"
    second = {**prompt[loader], "inputs": {**prompt[loader]["inputs"], "ckpt_name": "sky_interpolation.ckpt"}}
    prompt["second"] = second
    chunks["interpolation_model"] = ["second", 0]
    set_inputs(prompt, SAMPLER, chunk_frames=20, overlap_frames=4, num_frames=45)
    return prompt


def test_prediction_and_interpolation_make_a_long_video(server, prompt):
    report = server.run(without_text(prompt)).check()
    assert len(video(report)) == 45
    # Three chunks of two steps each for the base latents, and for what lies between.
    assert report.bars()[node_of(prompt, SAMPLER)] == (12.0, 12.0)


def test_a_prompt_for_a_model_without_text_is_refused(server, prompt):
    prompt[node_of(prompt, LOADER)]["inputs"]["ckpt_name"] = "sky_prediction.ckpt"
    error = server.run(prompt).check("error").error
    assert "clip input is invalid" in error.message
