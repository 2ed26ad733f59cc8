"""The DropletVideo nodes on a real host over its API: long videos from tiny weights, and files that are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.crashes import ONE_THREAD, stamps
from hosting.report import RunReport
from streaming_core.frames import VideoFrames
from streaming_core.runs.folder import RunFolder
from tiny_models.dropletvideo import TINY, WEIGHTS, transformer_weights, write_tiny_dropletvideo
from tiny_models.modelscope import TINY as TINY_MODELSCOPE
from tiny_models.modelscope import write_tiny_modelscope

RUNS = Path("output") / "streaming_runs"
TEXT = "tiny_modelscope_text.safetensors"
TRANSFORMER, VAE = f"tiny_droplet/transformer/{WEIGHTS}", f"tiny_droplet/vae/{WEIGHTS}"
SAMPLER, LOADER, CHUNKS = "sampler", "load", "chunks"
STEPS, CHUNK_FRAMES, PREFIX = 2, 9, 4
SHORT = CHUNK_FRAMES + 2 * (CHUNK_FRAMES - PREFIX)
"""Frames of a video of three chunks."""


def prepare(base: Path) -> None:
    """Tiny weights, and a text encoder of the host's that is as narrow: StreamingModelscope's."""
    config = replace(TINY, text_width=TINY_MODELSCOPE.unet.context_width)
    for name in ("diffusion_models", "vae"):
        write_tiny_dropletvideo(base / "models" / name / "tiny_droplet", config=config)
    write_tiny_modelscope(base / "models" / "checkpoints" / TEXT)
    (base / "input").mkdir(exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "input" / f"droplet_{number}.png")


@pytest.fixture(scope="module")
def server(host_server):
    prepare(host_server.base)
    return host_server


def video_prompt(run_name: str, num_frames: int = SHORT, chunk_frames: int = CHUNK_FRAMES, motion: str = "", **chunks):
    """A video of 48x32 pixels; what shows it is Run Inspector, so that nothing is encoded. `chunks`: of its sampler."""
    sampling = {
        "steps": STEPS,
        "cfg": 3.0,
        "motion_fps": 8.0,
        "prefix_frames": str(PREFIX),
        "reference_noise": -1.0,
        "quality": "",
        **chunks,
    }
    plan = {
        "num_frames": num_frames,
        "seconds": 0.0,
        "fps": 8.0,
        "chunk_frames": chunk_frames,
        "overlap_frames": 1,
        "prompts": "",
        "seed_mode": "fixed",
        "seed": chunks.pop("seed", 33),
        "seeds": "",
        "cam_strength": "",
        "anchor_strength": "",
        "motion": motion,
    }
    sampling.pop("seed", None)
    size = {"width": 48, "height": 32, "fit": "crop", "anchor_frame": 0}
    widgets = {key: plan[key] for key in ("num_frames", "chunk_frames", "overlap_frames", "seed", "fps")}
    links = {"chunk_sampler": [CHUNKS, 0], "plan": ["plan", 0], "start_image": ["image", 0]}
    words = {"clip": ["text", 1]}
    networks = {"model": [LOADER, 0], "vae": [LOADER, 1], "positive": ["good", 0], "negative": ["bad", 0]}
    look = {"run_name": "", "action": "look", "chunk": 0, "take": 0, "confirm": "", "frames": [SAMPLER, 0]}
    nodes = {
        "image": ("LoadImage", {"image": "droplet_0.png"}),
        "text": ("StreamingT2VLoadStreamingModelscope", {"ckpt_name": TEXT, "safetensors_copy": False}),
        "good": ("CLIPTextEncode", {"text": "a dog runs", **words}),
        "bad": ("CLIPTextEncode", {"text": "blurred", **words}),
        LOADER: ("StreamingT2VLoadDropletVideo", {"model_name": TRANSFORMER, "vae_name": VAE, "scaling_factor": 0.0}),
        CHUNKS: ("StreamingT2VDropletVideoChunkSampler", {**networks, **sampling}),
        "plan": ("StreamingT2VChunkPlan", plan),
        SAMPLER: (
            "StreamingT2VStreamSampler",
            {**links, **widgets, **size, "run_name": run_name, "collect_images": False},
        ),
        "look": ("StreamingT2VRunInspector", look),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def video(base: Path, run_name: str) -> torch.Tensor:
    stream = RunFolder.open(base / RUNS, run_name).frames_stream()
    return stream.read(0, len(stream))


def reroll_prompt(run_name: str, chunks: str, **options) -> dict:
    prompt = video_prompt(run_name, **options)
    inputs = {"run_name": "", "chunks": chunks, "seed_mode": "new", "seed": 1, "scope": "selected only"}
    links = {"chunk_sampler": [CHUNKS, 0], "frames": [SAMPLER, 0]}
    prompt["reroll"] = {"class_type": "StreamingT2VRerollChunks", "inputs": {**inputs, **links}}
    prompt["look"]["inputs"]["frames"] = ["reroll", 0]
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("chunk_frames", [81, 85])
def test_three_chunks_of_full_length_have_their_exact_length(server, chunk_frames):
    """85 frames are an even number of latents, which decode to 88."""
    num_frames = 3 * chunk_frames - 2 * PREFIX
    server.run(video_prompt(f"droplet {chunk_frames}", num_frames, chunk_frames, steps=1)).check()
    made = video(server.base, f"droplet {chunk_frames}")
    assert made.shape == (num_frames, 32, 48, 3) and made.std() > 0.01
    lengths = [record.num_frames for record in RunFolder.open(server.base / RUNS, f"droplet {chunk_frames}").chunks]
    assert lengths == [chunk_frames, chunk_frames - PREFIX, chunk_frames - PREFIX]


def test_the_same_seed_makes_the_same_frames_and_another_does_not(server):
    for name, seed in (("droplet a", 5), ("droplet b", 5), ("droplet c", 6)):
        server.run(video_prompt(name, seed=seed)).check()
    first, same, other = (video(server.base, f"droplet {name}") for name in "abc")
    assert len(first) == SHORT and torch.equal(first, same)
    assert not torch.equal(first[:CHUNK_FRAMES], other[:CHUNK_FRAMES])


def test_reroll_makes_the_chosen_chunk_only(server):
    name = "droplet reroll"
    server.run(video_prompt(name)).check()
    whole, before = video(server.base, name), stamps(server.base / RUNS / name)
    report = server.run(reroll_prompt(name, "1")).check()
    assert report.bars()["reroll"] == (STEPS, STEPS)
    after = stamps(server.base / RUNS / name)
    assert set(after) - set(before) == {"chunk_00001.t1.safetensors"}
    made, second = video(server.base, name), slice(CHUNK_FRAMES, 2 * CHUNK_FRAMES - PREFIX)
    assert not torch.equal(made[second], whole[second])
    assert torch.equal(made[: second.start], whole[: second.start])
    assert torch.equal(made[second.stop :], whole[second.stop :])


def test_a_speed_cue_changes_its_chunk_only(server):
    name = "droplet motion"
    server.run(video_prompt(name)).check()
    plain, before, log = video(server.base, name), stamps(server.base / RUNS / name), len(server.log())
    server.run(video_prompt(name, motion="2: 32")).check()
    assert "2 of 3 chunks are reused" in server.log()[log:]
    assert "chunk 2 is made again because motion" in server.log()[log:]
    cued, start = video(server.base, name), 2 * CHUNK_FRAMES - PREFIX
    assert torch.equal(cued[:start], plain[:start]) and not torch.equal(cued[start:], plain[start:])
    after = stamps(server.base / RUNS / name)
    assert set(after) - set(before) == {"chunk_00002.t1.safetensors"}


def faded_prompt(run_name: str, **options) -> dict:
    """A video whose chunks cross-fade, and whose last frame but two of the last model call is an image."""
    prompt = video_prompt(run_name, **{"num_frames": SHORT - 2, "join": "cross-fade", **options})
    prompt["end"] = {"class_type": "LoadImage", "inputs": {"image": "droplet_1.png"}}
    prompt[CHUNKS]["inputs"]["end_image"] = ["end", 0]
    return prompt


def test_what_is_saved_has_faded_and_ends_with_the_image(server):
    plain, name = "droplet plain end", "droplet faded"
    server.run(video_prompt(plain, num_frames=SHORT - 2)).check()
    prompt = faded_prompt(name)
    inputs = {"filename_prefix": "video/droplet_faded", "codec": "ffv1", "crf": 18.0, "bitrate_mbps": 0.0}
    prompt["save"] = {"class_type": "StreamingT2VSaveStream", "inputs": {**inputs, "frames": [SAMPLER, 0]}}
    [output] = [each for each in server.run(prompt).check().outputs if each.node == "save"]
    saved, made = VideoFrames.open(output.path), video(server.base, name)
    assert len(saved) == len(made) == SHORT - 2
    assert (saved.read(0, len(saved)) - made).abs().max() < 0.01
    before, fade = video(server.base, plain), slice(CHUNK_FRAMES - PREFIX, CHUNK_FRAMES)
    assert torch.equal(made[: fade.start], before[: fade.start]) and not torch.equal(made[fade], before[fade])
    last = RunFolder.open(server.base / RUNS, name).record(2)
    assert last.lead_frames == PREFIX and last.num_frames == CHUNK_FRAMES - PREFIX and "end_image" in last.own


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
@pytest.mark.parametrize("video_prompt", [video_prompt, faded_prompt], ids=["plain", "faded, with an end image"])
def test_a_killed_server_costs_the_chunk_in_work_only(fresh_server, tmp_path, video_prompt):
    prepare(tmp_path)
    server = fresh_server(base=tmp_path, env=ONE_THREAD)
    server.run(video_prompt("whole")).check()

    def in_chunk_one(report: RunReport) -> bool:
        if report.bars().get(SAMPLER, (0, 0))[0] > STEPS and server.alive:
            server.kill()
        return False

    assert server.run(video_prompt("killed"), cancel_when=in_chunk_one).status == "died"
    kept = stamps(tmp_path / RUNS / "killed")
    assert "chunk_00000.safetensors" in kept and len(kept) < 3
    server = fresh_server(base=tmp_path, env=ONE_THREAD)
    server.run(video_prompt("killed")).check()
    after = stamps(tmp_path / RUNS / "killed")
    assert len(after) == 3 and {name: after[name] for name in kept} == kept
    assert torch.equal(video(tmp_path, "killed"), video(tmp_path, "whole"))


# Files


def without_fps(width: int, channels: int, wrapper: str = "") -> Callable[[Path], None]:
    """Writes what CogVideoX has of DropletVideo's keys; the first layer tells its variants apart."""

    def write(path: Path) -> None:
        tensors = {key: value for key, value in transformer_weights().items() if not key.startswith("fps_embedding.")}
        tensors["patch_embed.proj.weight"] = torch.zeros(width, channels, 2, 2)
        save_file({wrapper + key: value for key, value in tensors.items()}, path)

    return write


def t5(path: Path) -> None:
    save_file({"shared.weight": torch.zeros(8, 4), "encoder.block.0.layer.0.layer_norm.weight": torch.zeros(4)}, path)


def lora(path: Path) -> None:
    save_file({f"transformer_blocks.0.attn1.to_q.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}, path)


def cut_off(path: Path) -> None:
    save_file(transformer_weights(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("cogvideox", without_fps(3072, 16), "CogVideoX 5B (text to video)"),
        ("cogvideox_i2v", without_fps(3072, 32), "CogVideoX 5B (image to video)"),
        ("fun", without_fps(3072, 33), "CogVideoX-Fun 5B InP, from which DropletVideo was trained"),
        ("2b", without_fps(1920, 16), "CogVideoX 2B"),
        ("fun_2b", without_fps(1920, 33), "CogVideoX-Fun 2B InP"),
        ("fun_wrapped", without_fps(3072, 33, "model.diffusion_model."), "CogVideoX-Fun 5B InP"),
        ("lora", lora, "a LoRA: load it with a LoRA loader"),
        ("t5", t5, "a T5 text encoder"),
        ("cut_off", cut_off, "is damaged or cut off"),
    ],
)
def test_wrong_files_are_refused_by_their_name(server, name: str, make: Callable[[Path], None], words: str):
    file = f"droplet_wrong_{name}.safetensors"
    path = server.base / "models" / "diffusion_models" / file
    make(path)
    prompt = video_prompt("droplet wrong")
    prompt[LOADER]["inputs"]["model_name"] = file
    error = server.run(prompt).check("error").error
    assert error.node_type == "StreamingT2VLoadDropletVideo"
    assert len(error.message.strip().splitlines()) == 1
    assert file in error.message and words in error.message, error.message
    assert not (server.base / RUNS / "droplet wrong").exists()
