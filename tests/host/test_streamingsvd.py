"""The StreamingSVD nodes on a real host over its API."""

from __future__ import annotations

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

CHECKPOINT = "tiny_streamingsvd.safetensors"
SMALL = {"width": 128, "height": 64, "chunk_frames": 8, "overlap_frames": 3, "anchor_frame": 2}


def furnish(server):
    """A tiny checkpoint and start images."""
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    write_tiny_streamingsvd(checkpoints(server) / CHECKPOINT)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(server.base / "input" / "start.png")
    Image.fromarray(pixels).save(server.base / "input" / "transparent.png")
    Image.fromarray(pixels[..., 0]).save(server.base / "input" / "gray.png")
    Image.fromarray(pixels[:1, :1, :3]).save(server.base / "input" / "dot.png")
    return server


@pytest.fixture(scope="module")
def server(host_server):
    return furnish(host_server)


def checkpoints(server) -> Path:
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_prompt(server) -> dict:
    """The shipped template, made small."""
    template = load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json")
    prompt = to_prompt(template, server.object_info())
    set_inputs(prompt, "LoadImage", image="start.png")
    set_inputs(prompt, "StreamingT2VLoadStreamingSVD", ckpt_name=CHECKPOINT)
    set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=14, **SMALL)
    return prompt


@pytest.fixture
def prompt(server) -> dict:
    return make_prompt(server)


def run_folders(server) -> set[str]:
    folder = server.base / "output" / "streaming_runs"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def video(report) -> VideoFrames:
    [output] = report.check().outputs
    return VideoFrames.open(output.path)


def test_the_template_makes_exactly_the_frames_asked_for(server, prompt):
    report = server.run(prompt).check()
    frames = video(report)
    assert (len(frames), frames.width, frames.height) == (14, 128, 64)
    sampler = next(node for node, value in prompt.items() if value["class_type"] == "StreamingT2VStreamSampler")
    bar = [move.value for move in report.progress if move.node == sampler]
    # A clip and two chunks of two steps each: one bar that never goes back.
    assert bar == sorted(bar) and report.bars()[sampler] == (6.0, 6.0)


def test_the_same_seed_makes_the_same_video_and_another_does_not(server, prompt):
    def made(seed, run_name):
        own = copy.deepcopy(prompt)
        set_inputs(own, "StreamingT2VStreamSampler", seed=seed, run_name=run_name)
        set_inputs(own, "StreamingT2VSaveStream", codec="ffv1", filename_prefix=f"video/{run_name}")
        frames = video(server.run(own))
        return frames.read(0, len(frames))

    first = made(5, "same_a")
    assert torch.equal(first, made(5, "same_b"))
    assert not torch.equal(first, made(6, "same_c"))


def test_a_longer_video_begins_like_the_shorter_one_and_reuses_its_chunks(server, prompt):
    set_inputs(prompt, "StreamingT2VStreamSampler", run_name="growing", num_frames=10)
    set_inputs(prompt, "StreamingT2VSaveStream", codec="ffv1")
    short = video(server.run(prompt))
    longer = copy.deepcopy(prompt)
    set_inputs(longer, "StreamingT2VStreamSampler", num_frames=17)
    long = video(server.run(longer))
    assert len(short) == 10 and len(long) == 17
    assert torch.equal(short.read(0, 10), long.read(0, 10))


def test_cancel_ends_within_a_step_keeps_finished_chunks_and_the_run_goes_on(server, prompt):
    set_inputs(prompt, "StreamingT2VStreamSampler", run_name="canceled", num_frames=40)
    set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", steps=4)
    sampler = next(node for node, value in prompt.items() if value["class_type"] == "StreamingT2VStreamSampler")

    def into_second_chunk(report):
        return report.bars().get(sampler, (0, 0))[0] >= 7

    report = server.run(prompt, cancel_when=into_second_chunk).check("interrupted")
    steps_after = [move for move in report.progress if move.node == sampler and move.seconds > report.canceled_at]
    assert len(steps_after) <= 2, "Cancel should end within one step"
    chunks = sorted(p.name for p in (server.base / "output/streaming_runs/canceled").glob("chunk_*"))
    assert chunks[0].startswith("chunk_00000") and len(chunks) < 8
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=13)
    resumed = server.run(prompt).check()
    assert len(video(resumed)) == 13


def test_odd_images_are_taken(server, prompt):
    for name in ("transparent.png", "gray.png"):
        set_inputs(prompt, "LoadImage", image=name)
        set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=3)
        assert len(video(server.run(prompt))) == 3


def test_images_come_only_when_asked_for(server, prompt):
    save = next(node for node, value in prompt.items() if value["class_type"] == "StreamingT2VSaveStream")
    sampler = next(node for node, value in prompt.items() if value["class_type"] == "StreamingT2VStreamSampler")
    prompt[save] = {"class_type": "SaveImage", "inputs": {"images": [sampler, 2], "filename_prefix": "all"}}
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=5, collect_images=True)
    assert len(server.run(prompt).check().outputs) == 5


def plain_svd(server, name: str) -> None:
    """A file that has everything but CAM."""
    tensors = load_file(checkpoints(server) / CHECKPOINT)
    keep = {k: v for k, v in tensors.items() if not k.startswith("controlnet.") and "cross_attention_merger" not in k}
    save_file(keep, checkpoints(server) / name)


def damaged(server, name: str) -> None:
    content = (checkpoints(server) / CHECKPOINT).read_bytes()
    (checkpoints(server) / name).write_bytes(content[: len(content) // 2])


def incomplete(server, name: str) -> None:
    tensors = load_file(checkpoints(server) / CHECKPOINT)
    del tensors["controlnet.middle_block.0.in_layers.2.weight"]
    save_file(tensors, checkpoints(server) / name)


LOADER, SAMPLER = "StreamingT2VLoadStreamingSVD", "StreamingT2VStreamSampler"


@pytest.mark.parametrize(
    "make, words",
    [
        (plain_svd, ["not a StreamingSVD checkpoint", "controlnet.*", "plain SVD"]),
        (damaged, ["damaged"]),
        (incomplete, ["1 missing", "controlnet.middle_block.0.in_layers.2.weight"]),
    ],
)
def test_wrong_checkpoints_are_refused_in_one_sentence(server, prompt, make, words):
    name = f"{make.__name__}.safetensors"
    make(server, name)
    set_inputs(prompt, LOADER, ckpt_name=name)
    _refused(server, prompt, LOADER, words)


@pytest.mark.parametrize(
    "values, image, words",
    [
        ({}, "dot.png", ["1x1 pixels"]),
        ({"overlap_frames": 8}, "start.png", ["overlap_frames", "1 to 7", "8"]),
        ({"width": 100}, "start.png", ["width", "multiple of 16", "100"]),
        ({"anchor_frame": 8}, "start.png", ["anchor frame 8", "0 to 7"]),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(server, prompt, values, image, words):
    set_inputs(prompt, "LoadImage", image=image)
    set_inputs(prompt, SAMPLER, **values)
    _refused(server, prompt, SAMPLER, words)


def test_zero_frames_are_refused_before_anything_runs(server, prompt):
    set_inputs(prompt, SAMPLER, num_frames=0)
    before = run_folders(server)
    report = server.run(prompt)
    assert report.status == "refused"
    assert "num_frames" in str(report.node_errors)
    assert run_folders(server) == before


def _refused(server, prompt, node_type, words):
    before = run_folders(server)
    error = server.run(prompt).check("error").error
    assert error.node_type == node_type
    assert len(error.message.strip().splitlines()) == 1
    for word in words:
        assert word in error.message, error.message
    assert run_folders(server) == before, "a refused video must leave nothing behind"


def sockets(prompt, node_type) -> str:
    return next(node for node, value in prompt.items() if value["class_type"] == node_type)


def images(report) -> np.ndarray:
    return np.stack([np.asarray(Image.open(output.path)) for output in report.check().outputs])


def test_single_steps_make_the_same_video_as_the_loop(server, prompt):
    """Start Video and two Stream Chunks, as a loop node or a patient user would run them."""
    set_inputs(prompt, SAMPLER, num_frames=15, collect_images=True)
    loop, save = sockets(prompt, SAMPLER), sockets(prompt, "StreamingT2VSaveStream")
    whole = copy.deepcopy(prompt)
    whole[save] = {"class_type": "SaveImage", "inputs": {"images": [loop, 2], "filename_prefix": "whole"}}
    expected = images(server.run(whole))

    request = {k: v for k, v in prompt[loop]["inputs"].items() if k not in ("run_name", "fps", "collect_images")}
    steps = {key: node for key, node in prompt.items() if key not in (loop, save)}
    steps["start"] = {"class_type": "StreamingT2VStartVideo", "inputs": request}
    parts, state = [images(server.run(_saved(steps, ["start", 1])))], ["start", 0]
    for number in (1, 2):
        inputs = {"chunk_sampler": request["chunk_sampler"], "state": state}
        steps[f"chunk{number}"] = {"class_type": "StreamingT2VStreamChunk", "inputs": inputs}
        parts.append(images(server.run(_saved(steps, [f"chunk{number}", 1]))))
        state = [f"chunk{number}", 0]
    made = np.concatenate(parts)
    assert made.shape == expected.shape == (15, 64, 128, 3)
    # The host saves images by truncation; the loop's frames were rounded to 8 bits on disk before.
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def _saved(prompt, images) -> dict:
    return {**prompt, "save": {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": "part"}}}


def test_cam_and_anchor_nodes_work_in_a_graph_of_host_nodes(server, prompt):
    load, image = sockets(prompt, LOADER), sockets(prompt, "LoadImage")
    graph = {key: prompt[key] for key in (load, image)}
    motion = {"motion_bucket_id": 127, "model_fps": 7, "augmentation_level": 0.02, "augmentation_noise": "uniform"}
    size = {"width": 128, "height": 64, "num_frames": 6, "fit": "pad", "preprocessing": "comfyui", "seed": 1}
    graph["anchor"] = {
        "class_type": "StreamingT2VSvdAnchorEncode",
        "inputs": {"clip_vision": [load, 1], "vae": [load, 2], "anchor": [image, 0], **motion, **size},
    }
    graph["first"] = {"class_type": "VAEDecode", "inputs": {"samples": ["anchor", 2], "vae": [load, 2]}}
    graph["control"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": ["first", 0], "batch_index": 3, "length": 3},
    }
    graph["cam"] = {
        "class_type": "StreamingT2VCamConditioning",
        "inputs": {"model": [load, 0], "cam": [load, 3], "control_frames": ["control", 0]},
    }
    graph["guided"] = {"class_type": "VideoLinearCFGGuidance", "inputs": {"model": ["cam", 0], "min_cfg": 1.5}}
    graph["sigmas"] = {"class_type": "StreamingT2VAlignYourSteps", "inputs": {"steps": 2}}
    graph["euler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    graph["sample"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            "model": ["guided", 0],
            "add_noise": True,
            "noise_seed": 3,
            "cfg": 3.0,
            "positive": ["anchor", 0],
            "negative": ["anchor", 1],
            "sampler": ["euler", 0],
            "sigmas": ["sigmas", 0],
            "latent_image": ["anchor", 2],
        },
    }
    graph["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": [load, 2]}}
    frames = images(server.run(_saved(graph, ["decode", 0])))
    assert frames.shape == (6, 64, 128, 3)
    assert frames.std() > 1
