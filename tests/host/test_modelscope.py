"""The StreamingModelscope nodes and their template on a real host over its API."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import VideoFrames
from tiny_models.modelscope import write_tiny_base, write_tiny_modelscope, write_tiny_vid2vid

CHECKPOINT, BASE, REFINER = "tiny_modelscope.ckpt", "tiny_modelscope_base.safetensors", "tiny_vid2vid.pth"
LOADER, SAMPLER, CHUNKS = (
    "StreamingT2VLoadStreamingModelscope",
    "StreamingT2VStreamSampler",
    "StreamingT2VModelscopeChunkSampler",
)
SMALL = {"width": 32, "height": 32}


def folder(server, name: str) -> Path:
    path = server.base / "models" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def furnish(server):
    """Tiny checkpoints of the official layouts."""
    write_tiny_modelscope(folder(server, "checkpoints") / CHECKPOINT)
    write_tiny_base(folder(server, "diffusion_models") / BASE)
    write_tiny_vid2vid(folder(server, "diffusion_models") / REFINER)
    return server


@pytest.fixture(scope="module")
def server(host_server):
    return furnish(host_server)


def make_prompt(server, refine: bool = False) -> dict:
    """The shipped template, made small; the refiner takes CLIP and VAE from the tiny checkpoint."""
    template = load_workflow(dev.ROOT / "workflows" / "streamingmodelscope_text_to_video.json")
    if refine:
        for node in template["nodes"]:
            node["mode"] = 0
    prompt = to_prompt(template, server.object_info())
    set_inputs(prompt, LOADER, ckpt_name=CHECKPOINT)
    set_inputs(prompt, "StreamingT2VLoadModelscope", unet_name=BASE)
    set_inputs(prompt, CHUNKS, steps=2, first_steps=2)
    set_inputs(prompt, SAMPLER, **SMALL)
    if refine:
        loader = node_of(prompt, LOADER)
        stock = node_of(prompt, "CheckpointLoaderSimple")
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == stock:
                    node["inputs"][name] = [loader, {1: 1, 2: 3}[value[1]]]
        del prompt[stock]
        set_inputs(prompt, "StreamingT2VLoadEnhancer", unet_name=REFINER)
        set_inputs(prompt, "StreamingT2VRefineVideo", width=64, height=64, steps=2)
    return prompt


@pytest.fixture
def prompt(server) -> dict:
    return make_prompt(server)


def node_of(prompt, node_type) -> str:
    return next(node for node, value in prompt.items() if value["class_type"] == node_type)


def run_folders(server) -> set[str]:
    path = server.base / "output" / "streaming_runs"
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def video(report) -> VideoFrames:
    [output] = report.check().outputs
    return VideoFrames.open(output.path)


def test_the_template_makes_its_80_frames(server, prompt):
    report = server.run(prompt).check()
    frames = video(report)
    assert (len(frames), frames.width, frames.height, frames.fps) == (80, 32, 32, 8)
    # A first clip and eight chunks of two steps: one bar that never goes back.
    sampler = node_of(prompt, SAMPLER)
    bar = [move.value for move in report.progress if move.node == sampler]
    assert bar == sorted(bar) and report.bars()[sampler] == (18.0, 18.0)


@pytest.mark.parametrize("num_frames", [1, 16, 17, 29])
def test_any_length_is_met_exactly(server, prompt, num_frames):
    set_inputs(prompt, SAMPLER, num_frames=num_frames)
    assert len(video(server.run(prompt))) == num_frames


def test_the_same_seed_makes_the_same_bytes_and_another_does_not(server, prompt):
    def made(seed, run_name):
        own = copy.deepcopy(prompt)
        set_inputs(own, SAMPLER, seed=seed, run_name=run_name, num_frames=26)
        set_inputs(own, "StreamingT2VSaveStream", codec="ffv1", filename_prefix=f"video/{run_name}")
        frames = video(server.run(own))
        return frames.read(0, len(frames))

    first = made(5, "t2v_a")
    assert torch.equal(first, made(5, "t2v_b"))
    assert not torch.equal(first, made(6, "t2v_c"))


def test_cancel_ends_within_a_step_and_the_run_goes_on(server, prompt):
    set_inputs(prompt, SAMPLER, run_name="t2v_canceled", num_frames=48)
    set_inputs(prompt, CHUNKS, steps=6)
    sampler = node_of(prompt, SAMPLER)

    def into_second_chunk(report):
        return report.bars().get(sampler, (0, 0))[0] >= 9

    report = server.run(prompt, cancel_when=into_second_chunk).check("interrupted")
    steps_after = [move for move in report.progress if move.node == sampler and move.seconds > report.canceled_at]
    assert len(steps_after) <= 2, "Cancel should end within one step"
    chunks = sorted(path.name for path in (server.base / "output/streaming_runs/t2v_canceled").glob("chunk_*"))
    assert 1 <= len(chunks) < 5
    set_inputs(prompt, SAMPLER, num_frames=24)
    assert len(video(server.run(prompt))) == 24


def test_prompts_per_chunk_change_only_their_chunks(server, prompt):
    set_inputs(prompt, SAMPLER, num_frames=32, run_name="t2v_prompts")
    set_inputs(prompt, "StreamingT2VSaveStream", codec="ffv1", filename_prefix="video/t2v_prompts")
    prompt["texts"] = {
        "class_type": "StreamingT2VChunkPrompts",
        "inputs": {"clip": [node_of(prompt, LOADER), 1], "prompts": "a cat\na cat"},
    }
    prompt[node_of(prompt, CHUNKS)]["inputs"]["prompts"] = ["texts", 0]
    before = video(server.run(prompt)).read(0, 32)
    kept = server.base / "output/streaming_runs/t2v_prompts"
    stamps = {path.name: path.stat().st_mtime_ns for path in kept.glob("chunk_*")}
    set_inputs(prompt, "StreamingT2VChunkPrompts", prompts="a cat\na cat\na dog at night")
    after = video(server.run(prompt)).read(0, 32)
    assert torch.equal(before[:24], after[:24]) and not torch.equal(before[24:], after[24:])
    changed = {path.name for path in kept.glob("chunk_*") if path.stat().st_mtime_ns != stamps.get(path.name)}
    assert len(changed) == 1, "a changed prompt makes its chunk again, and none before it"
    assert "chunk 3 has no prompt of its own" not in server.log_tail()
    set_inputs(prompt, SAMPLER, num_frames=40)
    server.run(prompt).check()
    assert "chunk 3 has no prompt of its own; the last of 3 prompts is used" in server.log_tail()


def test_a_clip_of_another_workflow_is_continued(server, prompt):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(server.base / "input" / "t2v_start.png")
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "t2v_start.png"}}
    prompt["clip"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["image", 0], "amount": 10}}
    prompt[node_of(prompt, SAMPLER)]["inputs"]["start_frames"] = ["clip", 0]
    set_inputs(prompt, SAMPLER, num_frames=19)
    assert len(video(server.run(prompt))) == 19
    own = copy.deepcopy(prompt)
    own[node_of(own, SAMPLER)]["inputs"]["start_image"] = own[node_of(own, SAMPLER)]["inputs"].pop("start_frames")
    refused(server, own, SAMPLER, ["from the prompt, not from start_image", "start_frames"])


def test_the_refined_video_has_as_many_frames(server):
    prompt = make_prompt(server, refine=True)
    set_inputs(prompt, SAMPLER, num_frames=27)
    report = server.run(prompt).check()
    videos = [VideoFrames.open(output.path) for output in report.outputs]
    assert sorted((len(each), each.width, each.height, each.fps) for each in videos) == [
        (27, 32, 32, 8),
        (27, 64, 64, 8),
    ]


def test_nodes_work_in_a_graph_of_host_nodes(server, prompt):
    """KSampler, VAE Decode and Empty Latent Image with APM Anchor Encode and CAM Conditioning."""
    loader, positive, negative = (
        node_of(prompt, LOADER),
        *[n for n, v in prompt.items() if v["class_type"] == "CLIPTextEncode"],
    )
    graph = {node: prompt[node] for node in (loader, positive, negative)}
    graph["base"] = prompt[node_of(prompt, "StreamingT2VLoadModelscope")]
    graph["latent"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 16}}
    common = {"seed": 1, "steps": 2, "cfg": 7.5, "scheduler": "normal", "denoise": 1.0, "latent_image": ["latent", 0]}
    graph["first"] = {
        "class_type": "KSampler",
        "inputs": {
            **common,
            "model": ["base", 0],
            "sampler_name": "dpmpp_2m",
            "positive": [positive, 0],
            "negative": [negative, 0],
        },
    }
    graph["frames"] = {"class_type": "VAEDecode", "inputs": {"samples": ["first", 0], "vae": [loader, 3]}}
    graph["control"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": ["frames", 0], "batch_index": 8, "length": 8},
    }
    graph["anchor"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": ["frames", 0], "batch_index": 0, "length": 1},
    }
    graph["apm"] = {
        "class_type": "StreamingT2VApmAnchorEncode",
        "inputs": {
            "clip_vision": [loader, 2],
            "apm": [loader, 5],
            "anchor": ["anchor", 0],
            "positive": [positive, 0],
            "negative": [negative, 0],
            "weight": 1.0,
        },
    }
    graph["cam"] = {
        "class_type": "StreamingT2VCamConditioning",
        "inputs": {"model": [loader, 0], "cam": [loader, 4], "control_frames": ["control", 0]},
    }
    graph["ddim"] = {"class_type": "StreamingT2VModelscopeDdim", "inputs": {"steps": 2, "eta": 1.0}}
    graph["second"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            "model": ["cam", 0],
            "add_noise": True,
            "noise_seed": 3,
            "cfg": 7.5,
            "positive": ["apm", 0],
            "negative": ["apm", 1],
            "sampler": ["ddim", 0],
            "sigmas": ["ddim", 1],
            "latent_image": ["latent", 0],
        },
    }
    graph["more"] = {"class_type": "VAEDecode", "inputs": {"samples": ["second", 0], "vae": [loader, 3]}}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": ["more", 0], "filename_prefix": "t2v_nodes"}}
    assert len(server.run(graph).check().outputs) == 16


def test_without_apm_the_video_is_made_and_the_log_says_so(server, prompt):
    for name in ("apm", "clip_vision"):
        del prompt[node_of(prompt, CHUNKS)]["inputs"][name]
    set_inputs(prompt, SAMPLER, num_frames=18, run_name="t2v_no_apm")
    assert len(video(server.run(prompt))) == 18
    assert "without appearance preservation" in server.log_tail()


def refused(server, prompt, node_type, words):
    before = run_folders(server)
    error = server.run(prompt).check("error").error
    assert error.node_type == node_type, error
    assert len(error.message.strip().splitlines()) == 1
    for word in words:
        assert word in error.message, error.message
    assert run_folders(server) == before, "a refused video must leave nothing behind"


def svd_file(server, path):
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    write_tiny_streamingsvd(path)


def foreign_pickle(server, path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=1)}, path)


def damaged(server, path):
    path.write_bytes((folder(server, "checkpoints") / CHECKPOINT).read_bytes()[:100_000])


def incomplete(server, path):
    weights = torch.load(folder(server, "checkpoints") / CHECKPOINT, weights_only=True)["state_dict"]
    del weights["resampler.context_embedding.2.bias"]
    save_file(weights, path)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (svd_file, "t2v_svd.safetensors", ["t2v_svd.safetensors is not a StreamingModelscope", "StreamingSVD"]),
        (foreign_pickle, "t2v_foreign.ckpt", ["Python objects besides weights", "safetensors"]),
        (damaged, "t2v_damaged.ckpt", ["t2v_damaged.ckpt is damaged"]),
        (incomplete, "t2v_incomplete.safetensors", ["1 missing", "context_embedding.2.bias"]),
    ],
)
def test_wrong_checkpoints_are_refused_in_one_sentence(server, prompt, make, name, words):
    make(server, folder(server, "checkpoints") / name)
    set_inputs(prompt, LOADER, ckpt_name=name)
    refused(server, prompt, LOADER, words)


def test_this_file_is_refused_by_the_other_loader(server, prompt):
    graph = {"1": {"class_type": "StreamingT2VLoadStreamingSVD", "inputs": {"ckpt_name": CHECKPOINT}}}
    graph["2"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["3"] = {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "never"}}
    refused(server, graph, "StreamingT2VLoadStreamingSVD", ["is not a StreamingSVD", "StreamingModelscope"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 40}, ["width", "multiple of 16", "40"]),
        ({"overlap_frames": 16}, ["overlap_frames", "1 to 15", "16"]),
        ({"anchor_frame": 16}, ["anchor frame 16", "0 to 15"]),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(server, prompt, values, words):
    set_inputs(prompt, SAMPLER, **values)
    refused(server, prompt, SAMPLER, words)


def test_half_an_apm_and_no_prompt_are_refused(server, prompt):
    own = copy.deepcopy(prompt)
    del own[node_of(own, CHUNKS)]["inputs"]["clip_vision"]
    refused(server, own, CHUNKS, ["APM needs both clip_vision and apm"])
    del prompt[node_of(prompt, CHUNKS)]["inputs"]["positive"]
    refused(server, prompt, CHUNKS, ["connect positive or prompts"])


def test_a_safetensors_copy_is_written_once_and_loads(server, prompt):
    set_inputs(prompt, LOADER, safetensors_copy=True)
    set_inputs(prompt, SAMPLER, num_frames=3)
    server.run(prompt).check()
    copied = (folder(server, "checkpoints") / CHECKPOINT).with_suffix(".safetensors")
    assert len(load_file(copied)) > 500
    set_inputs(prompt, LOADER, safetensors_copy=False, ckpt_name=copied.name)
    assert len(video(server.run(prompt))) == 3
