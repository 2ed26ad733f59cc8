"""What people do to a run between two prompts: patch the model, add a LoRA, delete the folder, move the checkpoint."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dev
from benchmarks.crashes import (
    CHECKPOINT,
    CHUNK_FRAMES,
    ONE_THREAD,
    OVERLAP_FRAMES,
    RUNS,
    SAMPLER,
    prepare,
    stamps,
    video_prompt,
)
from hosting.report import RunReport
from hosting.server import HostServer
from streaming_core.frames import VideoFrames
from streaming_core.runs.folder import RunFolder

pytestmark = pytest.mark.slow
TWO, THREE = (CHUNK_FRAMES + more * (CHUNK_FRAMES - OVERLAP_FRAMES) for more in (1, 2))
"""Frames of a video of so many chunks."""
LORA = "motion.safetensors"
SEEDS_PACK = """
class Seeds:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "tests", "split", ("INT",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def split(self, text):
        return ([int(part) for part in text.split(",")],)


NODE_CLASS_MAPPINGS = {"StreamingT2VTestSeeds": Seeds}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[HostServer]:
    """One of its own, since it has a further pack."""
    server = HostServer(pack=dev.ROOT, env=ONE_THREAD)
    prepare(server.base)
    write_lora(server.base / "models" / "checkpoints" / CHECKPOINT, server.base / "models" / "loras" / LORA)
    (server.base / "custom_nodes").mkdir(exist_ok=True)
    (server.base / "custom_nodes" / "seeds.py").write_text(SEEDS_PACK, "utf-8")
    with server:
        yield server


def write_lora(checkpoint: Path, path: Path) -> None:
    """A LoRA for the attention of a StreamingSVD UNet."""
    generator, table = torch.Generator().manual_seed(3), {}
    for key, weight in load_file(checkpoint).items():
        layer = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        if layer != key and "cross_attention_merger" not in key and layer.endswith((".to_q", ".to_k", ".to_v")):
            stem = "lora_unet_" + layer.replace(".", "_")
            table[f"{stem}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
            table[f"{stem}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(table, path)


def behind_the_loader(prompt: dict, node_type: str, **inputs) -> dict:
    """The prompt with a node between the model and its chunk sampler."""
    prompt["patch"] = {"class_type": node_type, "inputs": {"model": ["load", 0], **inputs}}
    prompt["chunks"]["inputs"]["model"] = ["patch", 0]
    return prompt


def saved(prompt: dict, prefix: str) -> dict:
    """The prompt with its video saved losslessly; Run Inspector left out, so that no file but the video comes of it."""
    prompt = {node: value for node, value in prompt.items() if node != "look"}
    inputs = {"frames": [SAMPLER, 0], "filename_prefix": prefix, "codec": "ffv1", "crf": 18.0, "bitrate_mbps": 0.0}
    prompt["save"] = {"class_type": "StreamingT2VSaveStream", "inputs": inputs}
    return prompt


def videos_of(report: RunReport) -> list[torch.Tensor]:
    opened = [VideoFrames.open(output.path) for output in report.check().outputs]
    return [frames.read(0, len(frames)) for frames in opened]


def made_in(server: HostServer, name: str) -> torch.Tensor:
    stream = RunFolder.open(server.base / RUNS, name).frames_stream()
    return stream.read(0, len(stream))


def new_runs(server: HostServer, act: Callable[[], object]) -> list[str]:
    """Names of the run folders that came about."""

    def names() -> set[str]:
        return {path.parent.name for path in (server.base / RUNS).glob("*/manifest.json")}

    before = names()
    act()
    return sorted(names() - before)


# Patches and LoRAs


PATCH = ("PerturbedAttentionGuidance", {"scale": 3.0})


def test_a_patch_behind_the_loader_makes_a_named_video_again(server):
    server.run(video_prompt("patched", num_frames=TWO)).check()
    plain, before = made_in(server, "patched"), stamps(server.base / RUNS / "patched")
    for name in ("patched", "patched afresh"):
        server.run(behind_the_loader(video_prompt(name, num_frames=TWO), PATCH[0], **PATCH[1])).check()
    assert not torch.equal(made_in(server, "patched"), plain)
    assert torch.equal(made_in(server, "patched"), made_in(server, "patched afresh"))
    server.run(video_prompt("patched", num_frames=TWO)).check()
    assert torch.equal(made_in(server, "patched"), plain), "without the patch it is what it was"
    assert stamps(server.base / RUNS / "patched") == before


def test_a_patch_behind_the_loader_is_another_unnamed_video(server):
    def make(**patch) -> list[str]:
        prompt = video_prompt("", num_frames=TWO, seed=51)
        changed = behind_the_loader(prompt, PATCH[0], **patch) if patch else prompt
        return new_runs(server, lambda: server.run(changed).check())

    [plain], [patched] = make(), make(**PATCH[1])
    assert not torch.equal(made_in(server, plain), made_in(server, patched))
    assert make() == make(**PATCH[1]) == []


def test_a_video_with_a_lora_is_continued_by_the_same_server(server):
    def make(name: str, num_frames: int, lora: bool, seed: int = 33) -> str:
        prompt, log = video_prompt(name, num_frames=num_frames, seed=seed), len(server.log())
        if lora:
            behind_the_loader(prompt, "LoraLoaderModelOnly", lora_name=LORA, strength_model=0.7)
        server.run(prompt).check()
        return server.log()[log:]

    make("without lora", TWO, lora=False)
    make("with lora", TWO, lora=True)
    short = made_in(server, "with lora")
    assert not torch.equal(short, made_in(server, "without lora")), "the LoRA does something"
    # By now its values are in the model's weights, which the host keeps loaded.
    assert "2 of 3 chunks are reused" in make("with lora", THREE, lora=True)
    assert torch.equal(made_in(server, "with lora")[:TWO], short)
    assert "2 of 3 chunks are reused" in make("without lora", THREE, lora=False)
    server.free()
    [name] = new_runs(server, lambda: make("", TWO, lora=True, seed=52))
    assert new_runs(server, lambda: make("", THREE, lora=True, seed=52)) == []
    assert len(made_in(server, name)) == THREE


# Folders that are gone


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("by", ["hand", "Run Inspector"])
def test_a_deleted_video_is_made_again(server, by, named):
    """The host has the deleted one's handle in its cache, and would give it to whatever comes next."""
    prefix = f"deleted_by_{by.split()[0]}_{named}"
    prompt = video_prompt(prefix if named else "", num_frames=TWO, seed=60 + len(by))
    first = []
    [name] = new_runs(server, lambda: first.extend(videos_of(server.run(saved(prompt, f"{prefix}/1")))))
    for again in (2, 3):
        if by == "hand":
            shutil.rmtree(server.base / RUNS / name)
        else:
            delete = {"run_name": name, "action": "delete run", "chunk": 0, "take": 0, "confirm": name}
            look = {"look": {"class_type": "StreamingT2VRunInspector", "inputs": delete}}
            server.run(look).check()
        assert not (server.base / RUNS / name / "manifest.json").exists()
        report = server.run(saved(prompt, f"{prefix}/{again}"))
        assert torch.equal(videos_of(report)[0], first[0])
        assert torch.equal(made_in(server, name), first[0])
    kept = server.run(saved(prompt, f"{prefix}/4"))
    assert SAMPLER in kept.check().cached, "left alone, it comes from the cache"


# The same weights in another file


def copied_again(file: Path) -> str:
    """As machines do that download their models at every start: the same file, later."""
    time.sleep(1.1)  # file systems with times in whole seconds
    shutil.copyfile(file, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)
    return file.name


def renamed(file: Path) -> str:
    shutil.copy2(file, file.with_name("StreamingSVD.safetensors"))
    return "StreamingSVD.safetensors"


def in_a_subfolder(file: Path) -> str:
    (file.parent / "video").mkdir()
    shutil.copy2(file, file.parent / "video" / file.name)
    return os.path.join("video", file.name)


def as_a_link(file: Path) -> str:
    os.symlink(file, file.with_name("link.safetensors"))
    return "link.safetensors"


def as_float32(file: Path) -> str:
    save_file({name: weight.float() for name, weight in load_file(file).items()}, file.with_name("f32.safetensors"))
    return "f32.safetensors"


@pytest.mark.parametrize("place", [copied_again, renamed, in_a_subfolder, as_a_link, as_float32])
def test_the_same_weights_in_another_file_continue_a_video(server, place):
    if place is as_a_link and os.name == "nt":
        pytest.skip("links need a privilege there")
    name = f"weights {place.__name__}"
    server.run(video_prompt(name, num_frames=TWO)).check()
    before, log = stamps(server.base / RUNS / name), len(server.log())
    prompt = video_prompt(name, num_frames=THREE)
    prompt["load"]["inputs"]["ckpt_name"] = place(server.base / "models" / "checkpoints" / CHECKPOINT)
    server.run(prompt).check()
    assert "2 of 3 chunks are reused" in server.log()[log:]
    after = stamps(server.base / RUNS / name)
    assert len(after) == 3 and {file: after[file] for file in before} == before


# Lists


def test_two_seeds_as_a_list_under_one_run_name_are_two_videos(server):
    """One node, two calls in one prompt: what the second makes must not take the first one's place."""
    alone = []
    for seed in (71, 72):
        alone += videos_of(server.run(saved(video_prompt(f"seed {seed}", num_frames=TWO, seed=seed), f"seed_{seed}")))
    assert not torch.equal(*alone)
    prompt = saved(video_prompt("two seeds", num_frames=TWO), "two_seeds")
    prompt["seeds"] = {"class_type": "StreamingT2VTestSeeds", "inputs": {"text": "71, 72"}}
    prompt[SAMPLER]["inputs"]["seed"] = ["seeds", 0]
    both = videos_of(server.run(prompt))
    assert len(both) == 2 and all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
    takes = RunFolder.open(server.base / RUNS, "two seeds").manifest.takes
    assert [len(takes(index)) for index in (0, 1)] == [2, 2], "all that was made is kept"
