"""Files that are deleted, moved or replaced between two prompts, on hosts that keep outputs in different ways.

Whatever a node handed out may lie in the host's cache; the next Run makes what is missing, and nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

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
    video_prompt,
)
from hosting.server import HostServer
from streaming_core.frames import TensorFrames, VideoFrames, write_video
from tests.host.test_runs_server import made_in, saved, videos_of
from tests.unit.frame_videos import smooth_video

pytestmark = pytest.mark.slow
TWO = 2 * CHUNK_FRAMES - OVERLAP_FRAMES
PACK = """
import torch


class Text:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "give", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def give(self, text):
        return (text,)


class Name(Text):
    RETURN_TYPES = ("COMBO",)

    @classmethod
    def VALIDATE_INPUTS(cls, **_):
        return True


class Images:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "tests", "give", ("IMAGE",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seeds": ("STRING", {})}}

    def give(self, seeds):
        return ([torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(int(s))) for s in seeds.split(",")],)


NODE_CLASS_MAPPINGS = {"StreamingT2VTestText": Text, "StreamingT2VTestName": Name, "StreamingT2VTestImages": Images}
"""


@pytest.fixture(scope="module", params=[(), ("--cache-lru", "20"), ("--cache-none",)], ids=["classic", "lru", "none"])
def server(request) -> Iterator[HostServer]:
    server = HostServer(pack=dev.ROOT, extra=request.param, env=ONE_THREAD)
    prepare(server.base)
    (server.base / "custom_nodes").mkdir(exist_ok=True)
    (server.base / "custom_nodes" / "handles.py").write_text(PACK, "utf-8")
    with server:
        yield server


def keeps(server: HostServer) -> bool:
    """Whether the host keeps outputs from prompt to prompt."""
    return "--cache-none" not in server.extra


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced"])
def test_a_saved_video_that_is_gone_is_saved_again_and_nothing_is_sampled(server, change, tmp_path):
    prompt = saved(video_prompt(f"saved {change}", num_frames=TWO, seed=5), f"saved_{change}/x")
    [output] = server.run(prompt).check().outputs
    first = videos_of(server.run(prompt))[0] if not keeps(server) else VideoFrames.open(output.path).read(0, TWO)
    if keeps(server):
        assert "save" in server.run(prompt).check().cached, "left alone, it stays"
    files = list((server.base / "output" / f"saved_{change}").iterdir())
    for file in files:
        if change == "moved":
            shutil.move(file, tmp_path / file.name)
        else:
            file.unlink() if change == "deleted" else file.write_bytes(b"something else")
    report = server.run(prompt)
    assert torch.equal(videos_of(report)[0], first)
    assert not keeps(server) or SAMPLER in report.cached


def from_file(prefix: str) -> dict:
    """A video of the user, cut and saved with its audio."""
    save = {"filename_prefix": prefix, "codec": "ffv1", "crf": 18.0, "bitrate_mbps": 0.0}
    return {
        "file": {"class_type": "LoadVideo", "inputs": {"file": "mine.mkv"}},
        "source": {"class_type": "StreamingT2VStreamFromVideo", "inputs": {"video": ["file", 0], "fps": 0.0}},
        "save": {"class_type": "StreamingT2VSaveStream", "inputs": {"frames": ["source", 0], **save}},
    }


def test_a_stream_of_a_file_follows_the_file(server):
    path = server.base / "input" / "mine.mkv"
    one, two = smooth_video(6, 32, 48), smooth_video(9, 48, 32).flip(0)
    write_video(TensorFrames(one, 8), path, codec="ffv1", crf=None)
    assert len(videos_of(server.run(from_file("follows/1")))[0]) == 6
    path.unlink()
    server.run(from_file("follows/2")).check("refused")
    write_video(TensorFrames(two, 8), path, codec="ffv1", crf=None)
    assert videos_of(server.run(from_file("follows/2")))[0].shape == (9, 48, 32, 3)
    path.rename(path.with_name("elsewhere.mkv"))
    write_video(TensorFrames(one, 8), path, codec="ffv1", crf=None)
    assert videos_of(server.run(from_file("follows/2")))[0].shape == (6, 32, 48, 3)


def test_a_run_whose_encoded_video_is_gone_is_encoded_again(server):
    def prompt(prefix: str) -> dict:
        prompt = {key: node for key, node in video_prompt("encoded", num_frames=TWO).items() if key != "look"}
        save = {"video": [SAMPLER, 1], "filename_prefix": prefix, "format": "auto", "codec": "auto"}
        return prompt | {"save": {"class_type": "SaveVideo", "inputs": save}}

    before = len(server.run(prompt("encoded/1")).check().outputs)
    shutil.rmtree(server.base / "temp")
    assert len(server.run(prompt("encoded/2")).check().outputs) == before == 1


def test_two_images_as_a_list_under_one_run_name_survive_its_deletion(server):
    def prompt(seeds: str, name: str, prefix: str) -> dict:
        prompt = saved(video_prompt(name, num_frames=TWO), prefix)
        prompt["image"] = {"class_type": "StreamingT2VTestImages", "inputs": {"seeds": seeds}}
        return prompt

    alone = [videos_of(server.run(prompt(seed, f"image {seed}", f"image_{seed}")))[0] for seed in "12"]
    for number in (1, 2):
        both = videos_of(server.run(prompt("1,2", "both", f"both/{number}")))
        assert len(both) == 2 and all(map(torch.equal, both, alone))
        shutil.rmtree(server.base / RUNS / "both")


def by_link(prompt: dict) -> dict:
    """The names of run and checkpoint from other nodes."""
    run = prompt[SAMPLER]["inputs"]["run_name"]
    prompt["run"] = {"class_type": "StreamingT2VTestText", "inputs": {"text": run}}
    prompt["name"] = {"class_type": "StreamingT2VTestName", "inputs": {"text": CHECKPOINT}}
    prompt[SAMPLER]["inputs"]["run_name"] = ["run", 0]
    prompt["load"]["inputs"]["ckpt_name"] = ["name", 0]
    return prompt


def test_names_that_come_by_link(server):
    """The link decides, and what was handed out before: nothing runs for nothing, and nothing stale comes back."""
    name = "by link"

    def prompt(prefix: str) -> dict:
        return by_link(saved(video_prompt(name, num_frames=TWO), f"by_link/{prefix}"))

    first = videos_of(server.run(prompt("1")))[0]
    kept = server.run(prompt("2"))
    assert torch.equal(videos_of(kept)[0], first)
    assert not keeps(server) or {"load", "chunks", SAMPLER} <= set(kept.cached)
    shutil.rmtree(server.base / RUNS / name)
    again = server.run(prompt("3"))
    assert torch.equal(videos_of(again)[0], first) and torch.equal(made_in(server, name), first)
    assert not keeps(server) or "load" in again.cached
    path = server.base / "models" / "checkpoints" / CHECKPOINT
    weights = load_file(path)
    try:
        changed = {key: 0.8 * value if key.endswith("to_q.weight") else value for key, value in weights.items()}
        save_file(changed, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        other = videos_of(server.run(prompt("4")))[0]
        assert not torch.equal(other, first), "the weights were replaced under the link"
    finally:
        save_file(weights, path)
    assert torch.equal(videos_of(server.run(prompt("5")))[0], first)


def test_a_take_that_a_reroll_passes_over_into_may_be_deleted(server):
    """Its last frames are those of the take before, which the next chunk continues."""
    name = "rerolled"

    def prompt(prefix: str, reroll: bool) -> dict:
        prompt = saved(video_prompt(name, num_frames=TWO), f"rerolled/{prefix}")
        inputs = {"chunks": "0", "seed_mode": "new", "seed": 1, "scope": "selected only", "run_name": ""}
        inputs |= {"chunk_sampler": ["chunks", 0], "frames": [SAMPLER, 0]}
        if reroll:
            prompt["reroll"] = {"class_type": "StreamingT2VRerollChunks", "inputs": inputs}
            prompt["save"]["inputs"]["frames"] = ["reroll", 0]
        return prompt

    plain = videos_of(server.run(prompt("1", reroll=False)))[0]
    rerolled = videos_of(server.run(prompt("2", reroll=True)))[0]
    assert not torch.equal(plain, rerolled)
    (server.base / RUNS / name / "chunk_00000.safetensors").unlink()
    again = videos_of(server.run(prompt("3", reroll=True)))[0]
    ends = slice(CHUNK_FRAMES - OVERLAP_FRAMES, CHUNK_FRAMES)
    assert not torch.equal(again[ends], rerolled[ends]), "there is nothing to pass over into"
    again[ends] = rerolled[ends]
    assert torch.equal(again, rerolled)
    (server.base / RUNS / name / "chunk_00000.t1.safetensors").unlink()
    assert torch.equal(videos_of(server.run(prompt("4", reroll=False)))[0], plain)


@pytest.mark.parametrize("index", [0, 1])
def test_a_chunk_that_is_gone_is_made_again_alone(server, index):
    name = f"chunk {index} gone"
    prompts = [saved(video_prompt(name, num_frames=TWO), f"chunk_gone_{index}/{number}") for number in (1, 2)]
    first = videos_of(server.run(prompts[0]))[0]
    (server.base / RUNS / name / f"chunk_{index:05d}.safetensors").unlink()
    log = len(server.log())
    assert torch.equal(videos_of(server.run(prompts[1]))[0], first)
    assert f"chunk_{index:05d}.safetensors is gone" in server.log()[log:]
    assert "1 of 2 chunks are reused" in server.log()[log:]


def test_run_inspector_sees_a_chunk_that_is_gone(server):
    server.run(video_prompt("seen", num_frames=TWO)).check()
    inputs = {"run_name": "seen", "action": "look", "chunk": 0, "take": 0, "confirm": ""}
    look = {"look": {"class_type": "StreamingT2VRunInspector", "inputs": inputs}}
    [before] = server.run(look).check().ui["look"]["text"]
    (server.base / RUNS / "seen" / "chunk_00001.safetensors").unlink()
    [after] = server.run(look).check().ui["look"]["text"]
    assert before != after and "missing" in after
