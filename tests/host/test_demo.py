"""The trained demo models: `dev.py demo` from an image to a video, and what CAM is worth on held-out videos."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

import dev
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import VideoFrames
from training.demo import CHECKPOINT, INTERPOLATOR, MODELS, furnish

pytestmark = pytest.mark.slow
FRAMES = 13


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=dev.ROOT, capture_output=True, text=True, timeout=900, check=False
    )


def test_the_files_are_small_enough_to_be_cloned():
    files = list(MODELS.rglob("*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    assert {CHECKPOINT, INTERPOLATOR} <= set(files)
    assert max(sizes) < 25e6 and sum(sizes) < 60e6


def test_the_demo_shows_what_it_says(tmp_path):
    run = python("-m", "training.demo", "--out", str(tmp_path), "--frames", str(FRAMES))
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-3000:]
    video = VideoFrames.open(tmp_path / "video.mp4")
    assert (len(video), video.width, video.height, video.fps) == (2 * FRAMES - 1, 96, 96, 12)
    # The sprite of the start image stays: something bright and colored on a dark background, and it moves.
    frames = video.read(0, len(video))
    bright = frames.amax(dim=-1) > 0.6
    assert all(0.02 < share < 0.25 for share in bright.float().mean(dim=(1, 2)).tolist())
    assert (bright[0] & bright[-1]).sum() < 0.7 * bright[0].sum()
    for name in ("contact_sheet.png", "side_by_side.png", "side_by_side.webp"):
        assert Image.open(tmp_path / name).width > 500


def test_the_demo_says_where_its_models_are(tmp_path, monkeypatch, capsys):
    from training import demo

    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "demo_streamingsvd.safetensors")
    assert demo.main(["--out", str(tmp_path / "out")]) == 2
    assert "lacks demo_streamingsvd.safetensors: they are in the project's repository" in capsys.readouterr().err


def test_words_become_a_video_of_the_color_they_name(fresh_server):
    server = fresh_server()
    furnish(server.base)
    template = load_workflow(dev.ROOT / "workflows" / "demo_text_to_video.json")
    prompt = to_prompt(template, server.object_info())
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=16)
    [output] = server.run(prompt, timeout=900).check().outputs
    video = VideoFrames.open(output.path)
    assert (len(video), video.width, video.height, video.fps) == (16, 96, 96, 6)
    red, green, blue = video.read(0, 16).unbind(dim=-1)
    shares = ((red > 0.6) & (green < 0.35) & (blue < 0.35)).float().mean(dim=(1, 2))
    assert (shares > 0.015).float().mean() >= 0.8, shares  # "a red ball moving right"


def test_cam_continues_videos():
    """Three of the videos of `benchmarks/demo_models.py`, which has the numbers: against the same model without CAM."""
    from benchmarks.demo_models import FIRST_SEED, MODEL, SIZE, VIDEOS, moving_error
    from training import showcase
    from training.videos import make_video

    parts, errors = showcase.open_parts(MODEL), {1.0: 0.0, 0.0: 0.0}
    for seed in range(FIRST_SEED + 1, FIRST_SEED + 4):
        truth = make_video(seed, SIZE, VIDEOS).render(0, FRAMES)
        for strength in errors:
            made = showcase.with_cam(parts, truth.frames[:8], FRAMES, seed % 2**32, strength)
            errors[strength] += moving_error(made[8:], truth.frames[8:], truth.moving[8:])
    assert errors[1.0] < 0.7 * errors[0.0], errors
