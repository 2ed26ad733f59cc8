"""Randomized blending and the enhancer on a real host over its API: templates, caches, Cancel, refusals."""

from __future__ import annotations

import copy
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import TensorFrames, VideoFrames, write_video
from tiny_models.enhancer import write_tiny_enhancer
from tiny_models.modelscope import write_tiny_modelscope
from tiny_models.streamingsvd import write_tiny_streamingsvd

ENCODERS, ENHANCER, SVD = "tiny_encoders.ckpt", "tiny_enhancer.safetensors", "tiny_svd.safetensors"
LOAD, ENHANCE, SAVE = "StreamingT2VLoadEnhancer", "StreamingT2VEnhanceVideo", "StreamingT2VSaveStream"
pytestmark = pytest.mark.slow
BLEND = "StreamingT2VRandomizedBlending"
FRAMES = 13
SMALL = {"width": 64, "height": 64, "steps": 3, "strength": 0.7, "window": 5, "overlap": 2}


def folder(server, name: str) -> Path:
    path = server.base / "models" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def moving_image(frames: int) -> torch.Tensor:
    rows, columns = torch.linspace(0, 3, 48).view(-1, 1), torch.linspace(0, 3, 64).view(1, -1)
    return torch.stack(
        [
            torch.stack([torch.sin(rows * (1 + c) + columns + 0.3 * t) for c in range(3)], -1) * 0.5 + 0.5
            for t in range(frames)
        ]
    )


def furnish(server) -> None:
    write_tiny_modelscope(folder(server, "checkpoints") / ENCODERS)
    write_tiny_streamingsvd(folder(server, "checkpoints") / SVD)
    write_tiny_enhancer(folder(server, "diffusion_models") / ENHANCER)
    (server.base / "input").mkdir(exist_ok=True)
    stream = TensorFrames(moving_image(FRAMES), Fraction(24000, 1001))
    write_video(stream, server.base / "input" / "video.mp4")


@pytest.fixture(scope="module")
def server(host_server):
    furnish(host_server)
    return host_server


def node_of(prompt, node_type) -> str:
    return next(node for node, value in prompt.items() if value["class_type"] == node_type)


def enhance_prompt(server) -> dict:
    """The shipped template, made small; encoders and VAE come from a tiny checkpoint of the same widths."""
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "enhance_video.json"), server.object_info())
    set_inputs(prompt, LOAD, unet_name=ENHANCER)
    set_inputs(prompt, ENHANCE, **SMALL)
    set_inputs(prompt, SAVE, codec="ffv1")
    prompt["encoders"] = {
        "class_type": "StreamingT2VLoadStreamingModelscope",
        "inputs": {"ckpt_name": ENCODERS, "safetensors_copy": False},
    }
    known = server.object_info()["StreamingT2VLoadStreamingModelscope"]["input"]["required"]
    prompt["encoders"]["inputs"] = {k: v for k, v in prompt["encoders"]["inputs"].items() if k in known}
    enhance = prompt[node_of(prompt, ENHANCE)]["inputs"]
    for name, slot in (("clip", 1), ("clip_vision", 2), ("vae", 3)):
        del prompt[enhance[name][0]]
        enhance[name] = ["encoders", slot]
    return prompt


@pytest.fixture
def prompt(server) -> dict:
    return enhance_prompt(server)


def video(report) -> VideoFrames:
    [output] = report.check().outputs
    return VideoFrames.open(output.path)


def pixels(report) -> torch.Tensor:
    frames = video(report)
    return frames.read(0, len(frames))


def test_the_template_gives_as_many_frames_as_it_got(server, prompt):
    report = server.run(prompt).check()
    frames = video(report)
    # 64x48 fits into 64x64 with its aspect kept.
    assert (len(frames), frames.width, frames.height) == (FRAMES, 64, 48)
    assert frames.fps == pytest.approx(24000 / 1001, abs=0.01)
    enhance = node_of(prompt, ENHANCE)
    bar = [move.value for move in report.progress if move.node == enhance]
    done, total = report.bars()[enhance]
    assert bar == sorted(bar) and done == total


def test_the_same_seed_gives_the_same_video_also_without_a_cache(server, prompt, fresh_server):
    first = pixels(server.run(prompt))
    again = copy.deepcopy(prompt)
    set_inputs(again, SAVE, filename_prefix="video/again")
    assert torch.equal(pixels(server.run(again)), first)
    set_inputs(again, ENHANCE, seed=9)
    assert not torch.equal(pixels(server.run(again)), first)

    uncached = fresh_server("--cache-none")
    furnish(uncached)
    one, two = (pixels(uncached.run(enhance_prompt(uncached))) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(one, first)
    svd = [pixels(uncached.run(svd_prompt(uncached, f"svd_{run}"))) for run in range(2)]
    assert torch.equal(*svd)


def svd_prompt(server, name: str, window: int = 6, overlap: int = 2, seed: int = 3) -> dict:
    """A plain KSampler on SVD with Randomized Blending in front, 11 frames.

    Saved lossless, since videos are compared: on a busy machine one H.264 file in twenty of the very same frames had
    another packet than the others, and none of those that were encoded by one thread.
    """
    known = server.object_info()
    prompt = {
        "svd": {"class_type": "StreamingT2VLoadStreamingSVD", "inputs": {"ckpt_name": SVD}},
        "video": {"class_type": "LoadVideo", "inputs": {"file": "video.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
        "anchor": {
            "class_type": "SVD_img2vid_Conditioning",
            "inputs": {
                "clip_vision": ["svd", 1],
                "init_image": ["first", 0],
                "vae": ["svd", 2],
                "width": 64,
                "height": 64,
                "video_frames": 11,
                "motion_bucket_id": 127,
                "fps": 6,
                "augmentation_level": 0.0,
            },
        },
        "first": {
            "class_type": "ImageFromBatch",
            "inputs": {"image": ["parts", 0], "batch_index": 0, "length": 1},
        },
        "blend": {
            "class_type": BLEND,
            "inputs": {"model": ["svd", 0], "window": window, "overlap": overlap, "seed": seed},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["blend", 0],
                "positive": ["anchor", 0],
                "negative": ["anchor", 1],
                "latent_image": ["anchor", 2],
                "seed": 1,
                "steps": 3,
                "cfg": 2.5,
                "sampler_name": "heun",
                "scheduler": "karras",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["svd", 2]}},
        "frames": {"class_type": "StreamingT2VStreamFromImages", "inputs": {"images": ["decode", 0], "fps": 8.0}},
        "save": {
            "class_type": SAVE,
            "inputs": {"frames": ["frames", 0], "filename_prefix": f"video/{name}", "codec": "ffv1"}
            | {"crf": 18.0, "bitrate_mbps": 0.0},
        },
    }
    assert all(node["class_type"] in known for node in prompt.values())
    return prompt


def test_blending_works_with_the_host_s_own_nodes_and_a_second_run(server):
    first = pixels(server.run(svd_prompt(server, "blend_a")))
    assert len(first) == 11
    # Only the sampler runs again; the MODEL with its handler comes out of the cache.
    second = svd_prompt(server, "blend_b")
    second["sample"]["inputs"]["seed"] = 2
    assert not torch.equal(pixels(server.run(second)), first)
    second["sample"]["inputs"]["seed"] = 1
    assert torch.equal(pixels(server.run(second)), first)
    assert not torch.equal(pixels(server.run(svd_prompt(server, "blend_c", seed=4))), first)


def test_windows_of_a_video_can_start_from_images_of_their_own(server):
    """Pick Keyframes as a list, the host's conditioning once per keyframe, Window Conditioning."""
    prompt = svd_prompt(server, "per_window")
    prompt["keys"] = {
        "class_type": "StreamingT2VPickKeyframes",
        "inputs": {"frames": ["parts", 0], "window": 6, "overlap": 2},
    }
    prompt["each"] = copy.deepcopy(prompt["anchor"])
    prompt["each"]["inputs"]["init_image"] = ["keys", 1]
    prompt["whole"] = {
        "class_type": "StreamingT2VWindowConditioning",
        "inputs": {"conditioning": ["anchor", 0], "windows": ["each", 0]},
    }
    prompt["parts11"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": ["parts", 0], "batch_index": 0, "length": 11},
    }
    prompt["keys"]["inputs"]["frames"] = ["parts11", 0]
    prompt["sample"]["inputs"]["positive"] = ["whole", 0]
    assert not torch.equal(pixels(server.run(prompt)), pixels(server.run(svd_prompt(server, "one_image"))))
    prompt["keys"]["inputs"]["overlap"] = 4
    error = server.run(prompt).check("error").error
    assert error.node_type == "KSampler" and "conditions for 4 windows, but this video has 3" in error.message


def test_a_video_of_the_pack_is_enhanced_from_disk_to_disk(server, prompt):
    chain = {
        "svd": {"class_type": "StreamingT2VLoadStreamingSVD", "inputs": {"ckpt_name": SVD}},
        "video": {"class_type": "LoadVideo", "inputs": {"file": "video.mp4"}},
        "clip": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
    }
    svd = to_prompt(load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json"), server.object_info())
    renamed = {f"svd_{node}": value for node, value in svd.items() if value["class_type"] not in ("LoadImage", SAVE)}
    for value in renamed.values():
        for name, link in value["inputs"].items():
            if isinstance(link, list):
                value["inputs"][name] = [f"svd_{link[0]}", link[1]]
    set_inputs(renamed, "StreamingT2VLoadStreamingSVD", ckpt_name=SVD)
    set_inputs(renamed, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    small = {"width": 64, "height": 64, "chunk_frames": 8, "overlap_frames": 3, "anchor_frame": 2}
    set_inputs(renamed, "StreamingT2VStreamSampler", num_frames=15, **small)
    sampler = node_of(renamed, "StreamingT2VStreamSampler")
    renamed[sampler]["inputs"]["start_image"] = ["clip", 0]
    prompt.update({**renamed, "video": chain["video"], "clip": chain["clip"]})
    prompt[node_of(prompt, ENHANCE)]["inputs"]["frames"] = [sampler, 0]
    frames = video(server.run(prompt))
    assert len(frames) == 15 and frames.fps == 12
    assert list((server.base / "temp").glob("enhanced_*/chunk_00000.safetensors"))


def test_cancel_ends_the_enhancement_and_leaves_nothing(server, prompt):
    set_inputs(prompt, ENHANCE, steps=30, strength=1.0, seed=77)
    enhance = node_of(prompt, ENHANCE)
    report = server.run(prompt, cancel_when=lambda r: r.bars().get(enhance, (0, 0))[0] >= 2 * FRAMES)
    report.check("interrupted")
    after = [move for move in report.progress if move.node == enhance and move.seconds > report.canceled_at]
    assert len(after) <= 2, "Cancel should end within one step"
    set_inputs(prompt, ENHANCE, steps=3, strength=0.7)
    assert len(video(server.run(prompt))) == FRAMES


def refused(server, prompt, node_type, words):
    error = server.run(prompt).check("error").error
    assert error.node_type == node_type, error
    assert len(error.message.strip().splitlines()) == 1
    for word in words:
        assert word in error.message, error.message


@pytest.mark.parametrize(
    ("node_type", "values", "words"),
    [
        (ENHANCE, {"window": 5, "overlap": 5}, ["overlap of 5", "window of 5", "at most 4"]),
        (ENHANCE, {"strength": 0.3, "steps": 3}, ["0.3", "3 steps", "0.34"]),
        (ENHANCE, {"official": True, "window": 20}, ["window of 20", "13"]),
    ],
)
def test_settings_that_cannot_work_are_refused_on_their_node(server, prompt, node_type, values, words):
    set_inputs(prompt, node_type, **values)
    refused(server, prompt, node_type, words)


def test_blending_refuses_what_cannot_work_on_its_node(server):
    refused(server, svd_prompt(server, "bad", window=6, overlap=6), BLEND, ["overlap of 6", "window of 6", "at most 5"])
    # Outside its range: the host itself refuses it, before anything runs.
    report = server.run(svd_prompt(server, "bad", window=0, overlap=0)).check("refused")
    assert list(report.node_errors) == ["blend"] and "0" in str(report.node_errors["blend"]["errors"])


def test_files_that_are_no_enhancer_are_refused_by_name(server, prompt):
    models = folder(server, "diffusion_models")
    shutil.copy(folder(server, "checkpoints") / SVD, models / "other.safetensors")
    (models / "damaged.safetensors").write_bytes((models / ENHANCER).read_bytes()[:50_000])
    weights = load_file(models / ENHANCER)
    del weights["conv_norm_out.weight"]
    save_file(weights, models / "incomplete.safetensors")
    for name, words in (
        ("other.safetensors", ["other.safetensors is not a", "StreamingSVD checkpoint"]),
        ("damaged.safetensors", ["damaged.safetensors is damaged", "download it again"]),
        ("incomplete.safetensors", ["I2VGen-XL", "1 missing (first conv_norm_out.weight)"]),
    ):
        set_inputs(prompt, LOAD, unet_name=name)
        refused(server, prompt, LOAD, words)


def test_the_template_for_any_model_runs_on_a_native_one(fresh_server, tmp_path):
    """Wan's own files are huge, so the server has a tiny Wan; sampler, blending and the rest are what is shipped."""
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tiny_wan_pack.py"), base / "custom_nodes" / "tiny_wan_pack.py")
    models = dev.ROOT / "tiny_models" / "native.py"
    server = fresh_server(base=base, env={"TINY_MODELS": str(models)})
    workflow = load_workflow(dev.ROOT / "workflows" / "randomized_blending_any_model.json")
    prompt = to_prompt(workflow, server.object_info())
    ours = {node["class_type"] for node in prompt.values() if node["class_type"].startswith("StreamingT2V")}
    assert ours == {BLEND}, "no model of this pack is in it"
    prompt["tiny"] = {"class_type": "StreamingT2VTestTinyWan", "inputs": {}}
    loaders = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    stock = {node: loaders[prompt[node]["class_type"]] for node in prompt if prompt[node]["class_type"] in loaders}
    for node in prompt.values():
        for name, link in node["inputs"].items():
            if isinstance(link, list) and link[0] in stock:
                node["inputs"][name] = ["tiny", stock[link[0]]]
    for node in stock:
        del prompt[node]
    set_inputs(prompt, "EmptyHunyuanLatentVideo", width=64, height=48, length=41)
    set_inputs(prompt, BLEND, window=17, overlap=8)
    set_inputs(prompt, "KSampler", steps=2)
    frames = video(server.run(prompt))
    assert (len(frames), frames.width, frames.height) == (41, 64, 48)
