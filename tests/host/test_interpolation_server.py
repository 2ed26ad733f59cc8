"""Interpolated videos on a real host over its API: from the shipped template to the written file."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import VideoFrames
from streaming_core.frames.slices import MOST_FRAMES
from tiny_models.ema_vfi import write_tiny_ema_vfi
from tiny_models.streamingsvd import write_tiny_streamingsvd

LOADER, INTERPOLATE, SAVE = "StreamingT2VLoadEmaVfi", "StreamingT2VInterpolateStream", "StreamingT2VSaveStream"
CHECKPOINT = "tiny_interpolated.safetensors"
NUM_FRAMES = 9


@pytest.fixture(scope="module")
def server(host_server):
    models = host_server.base / "models"
    (models / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_tiny_streamingsvd(models / "checkpoints" / CHECKPOINT)
    write_tiny_ema_vfi(models / "frame_interpolation" / "tiny_t.pkl")
    pixels = np.random.default_rng(1).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(host_server.base / "input" / "interpolated.png")
    return host_server


@pytest.fixture
def prompt(server) -> dict:
    """StreamingSVD's template with interpolation between video and file."""
    template = load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json")
    made = to_prompt(template, server.object_info())
    set_inputs(made, "LoadImage", image="interpolated.png")
    set_inputs(made, "StreamingT2VLoadStreamingSVD", ckpt_name=CHECKPOINT)
    set_inputs(made, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    size = {"width": 128, "height": 64, "chunk_frames": 8, "overlap_frames": 3, "anchor_frame": 2}
    set_inputs(made, "StreamingT2VStreamSampler", num_frames=NUM_FRAMES, run_name="interpolated", fps=8.0, **size)
    (save,) = (node for node in made.values() if node["class_type"] == SAVE)
    made["interpolate"] = {
        "class_type": INTERPOLATE,
        "inputs": {
            "frames": save["inputs"]["frames"],
            "interp_model": ["loader", 0],
            "target": "frame count",
            "multiplier": 2,
            "num_frames": 20,
            "fps": 24.0,
            "scene_cut_threshold": 0.0,
        },
    }
    made["loader"] = {
        "class_type": LOADER,
        "inputs": {
            "model_name": "tiny_t.pkl", "times": "auto", "augmentation": "fast", "flow_scale": "1", "dtype": "float32",
        },
    }  # fmt: skip
    save["inputs"] |= {"frames": ["interpolate", 0], "filename_prefix": "video/interpolated"}
    return made


def node_of(prompt: dict, kind: str) -> str:
    return next(name for name, node in prompt.items() if node["class_type"] == kind)


def test_file_has_the_frames_and_the_rate_asked_for(server, prompt):
    report = server.run(prompt).check()
    [output] = report.outputs
    video = VideoFrames.open(output.path)
    assert (len(video), video.fps, video.width, video.height) == (20, Fraction(24), 128, 64)
    bar = [move.value for move in report.progress if move.node == node_of(prompt, SAVE)]
    assert bar == sorted(bar)
    assert report.bars()[node_of(prompt, SAVE)] == (20, 20)
    # It moves with every pair, not only with every slice. Later hosts send no more than ten moves a second.
    assert len(bar) > 1 + math.ceil(20 / MOST_FRAMES)


def test_official_doubling_makes_the_official_count(server, prompt):
    set_inputs(prompt, INTERPOLATE, target="official doubling", num_frames=2 * NUM_FRAMES, fps=0.0)
    [output] = server.run(prompt).check().outputs
    video = VideoFrames.open(output.path)
    assert (len(video), video.fps) == (2 * NUM_FRAMES, 24)


def test_cancel_leaves_no_file(server, prompt):
    set_inputs(prompt, INTERPOLATE, target="multiplier", multiplier=64)
    set_inputs(prompt, SAVE, filename_prefix="canceled/video")
    save = node_of(prompt, SAVE)
    report = server.run(prompt, cancel_when=lambda r: r.bars().get(save, (0, 0))[0] > 0).check("interrupted")
    assert report.bars()[save][0] < report.bars()[save][1]
    folder = server.base / "output" / "canceled"
    assert not folder.exists() or not list(folder.iterdir())


def test_wrong_files_are_refused_in_one_sentence(server, prompt):
    (server.base / "models" / "frame_interpolation" / "wrong.pkl").write_bytes(b"not weights")
    set_inputs(prompt, LOADER, model_name="wrong.pkl")
    report = server.run(prompt).check("error")
    assert report.error.node_type == LOADER
    assert "wrong.pkl" in report.error.message and "\n" not in report.error.message.strip()
