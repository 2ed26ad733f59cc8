"""Videos from file to file on a real host over its API: the shipped templates, preview, Cancel, kill -9."""

from __future__ import annotations

import copy
import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

import dev
from hosting.workflow import load_workflow, set_inputs, switched_on, to_prompt
from streaming_core.frames import AudioTrack, TensorFrames, VideoFrames, write_video
from tests.unit.frame_videos import smooth_video
from tiny_models.ema_vfi import write_tiny_ema_vfi
from tiny_models.enhancer import write_tiny_enhancer
from tiny_models.modelscope import write_tiny_modelscope
from tiny_models.streamingsvd import write_tiny_streamingsvd

SOURCE, INTERPOLATE, SAVE = (
    "StreamingT2VStreamFromVideo",
    "StreamingT2VInterpolateStream",
    "StreamingT2VSaveStream",
)
ENHANCE = "StreamingT2VEnhanceVideo"
FRAMES, RATE = 13, 44100
CHECKPOINT, ENCODERS, ENHANCER = "tiny_chain.safetensors", "tiny_encoders.ckpt", "tiny_enhancer.safetensors"


def furnish(server):
    """A video with a tone of one second and models for every step."""
    models = server.base / "models"
    for name in ("checkpoints", "diffusion_models"):
        (models / name).mkdir(parents=True, exist_ok=True)
    write_tiny_ema_vfi(models / "frame_interpolation" / "tiny_t.pkl")
    write_tiny_streamingsvd(models / "checkpoints" / CHECKPOINT)
    write_tiny_modelscope(models / "checkpoints" / ENCODERS)
    write_tiny_enhancer(models / "diffusion_models" / ENHANCER)
    (server.base / "input").mkdir(exist_ok=True)
    tone = 0.5 * torch.sin(torch.arange(RATE) * (2 * torch.pi * 440 / RATE)).expand(1, 1, -1)
    source = TensorFrames(smooth_video(FRAMES, 64, 96), 12)
    write_video(source, server.base / "input" / "with_audio.mp4", audio=AudioTrack.from_waveform(tone, RATE))
    pixels = np.random.default_rng(1).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(server.base / "input" / "chain.png")
    return server


@pytest.fixture(scope="module")
def server(host_server):
    return furnish(host_server)


def interpolation_prompt(server) -> dict:
    """The shipped template with a tiny file."""
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "interpolate_video.json"), server.object_info())
    set_inputs(prompt, "LoadVideo", file="with_audio.mp4")
    set_inputs(prompt, "StreamingT2VLoadEmaVfi", model_name="tiny_t.pkl", dtype="float32")
    return prompt


@pytest.fixture
def prompt(server) -> dict:
    return interpolation_prompt(server)


def node_of(prompt: dict, kind: str) -> str:
    return next(name for name, node in prompt.items() if node["class_type"] == kind)


def video(report) -> VideoFrames:
    [output] = report.check().outputs
    return VideoFrames.open(output.path)


def level(path) -> np.ndarray:
    """Loudness of every tenth of a second."""
    with av.open(str(path)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return np.abs(samples[: len(samples) // 4410 * 4410]).reshape(-1, 4410).mean(1)


def test_the_template_doubles_the_rate_and_carries_the_audio(server, prompt):
    report = server.run(prompt).check()
    found = video(report)
    assert (len(found), found.fps, found.has_audio) == (2 * FRAMES - 1, 24, True)
    source = VideoFrames.open(server.base / "input" / "with_audio.mp4")
    original, doubled = source.read(0, FRAMES), found.read(0, len(found))[::2]
    assert (original - doubled).abs().mean() < 0.02, "every second frame is an original"
    loud = level(found.path)
    assert len(loud) == 10 and loud[1:9].min() > 0.2
    shown = report.outputs[0]
    assert shown.kind == "images" and shown.path.parent == server.base / "output" / "video"


def test_slow_motion_has_silence_behind_its_audio(server, prompt):
    set_inputs(prompt, INTERPOLATE, multiplier=4, fps=12.0)
    found = video(server.run(prompt))
    assert (len(found), found.fps) == (4 * (FRAMES - 1) + 1, 12)
    loud = level(found.path)
    assert len(loud) == 40 and loud[1:9].min() > 0.2 and loud[12:].max() < 1e-3


@pytest.mark.parametrize(
    ("target", "values", "frames", "rate"),
    [
        ("frame count", {"num_frames": 31, "fps": 30.0}, 31, Fraction(30)),
        ("frame count", {"num_frames": 5, "fps": 0.0}, 5, Fraction(4)),
        ("frame rate", {"fps": 29.97}, 31, Fraction(30000, 1001)),
        ("frame rate", {"fps": 23.976}, 25, Fraction(24000, 1001)),
    ],
)
def test_exact_counts_and_rates(server, prompt, target, values, frames, rate):
    set_inputs(prompt, INTERPOLATE, target=target, **values)
    found = video(server.run(prompt))
    assert (len(found), found.fps) == (frames, rate)
    assert float(found.seconds) == pytest.approx(FRAMES / 12 if target == "frame rate" else frames / rate, abs=0.1)


def test_trimmed_joined_and_written_as_images(server, prompt):
    source, save = node_of(prompt, SOURCE), node_of(prompt, SAVE)
    for name, start, length in (("head", 0, 3), ("tail", -2, 0)):
        inputs = {"frames": [source, 0], "start": start, "length": length}
        prompt[name] = {"class_type": "StreamingT2VTrimStream", "inputs": inputs}
    joined = {"frames_1": ["tail", 0], "frames_2": ["head", 0]}
    prompt["joined"] = {"class_type": "StreamingT2VJoinStreams", "inputs": joined}
    inputs = {"frames": ["joined", 0], "filename_prefix": "frames/video", "compress_level": 1}
    prompt[save] = {"class_type": "StreamingT2VSaveStreamAsPngs", "inputs": inputs}
    report = server.run(prompt).check()
    assert report.bars()[save] == (5, 5)
    paths = [output.path for output in report.outputs]
    assert [path.name for path in paths] == [f"frame_{number:05d}.png" for number in range(5)]
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]) / 255
    frames = VideoFrames.open(server.base / "input" / "with_audio.mp4").read(0, FRAMES)
    assert (images - frames[[11, 12, 0, 1, 2]]).abs().max() < 1 / 255 + 1e-6
    assert "StreamingT2VTrimStream" in Image.open(paths[0]).text["prompt"]


def test_streams_become_images_for_the_host_s_nodes(server, prompt):
    source, save = node_of(prompt, SOURCE), node_of(prompt, SAVE)
    prompt["images"] = {"class_type": "StreamingT2VStreamToImages", "inputs": {"frames": [source, 0]}}
    prompt["back"] = {
        "class_type": "StreamingT2VStreamFromImages",
        "inputs": {"images": ["images", 0], "fps": ["images", 1]},
    }
    made = {"images": ["images", 0], "fps": ["images", 1], "audio": [source, 1]}
    prompt["made"] = {"class_type": "CreateVideo", "inputs": made}
    prompt["again"] = {"class_type": SOURCE, "inputs": {"video": ["made", 0], "fps": 0.0}}
    frames = VideoFrames.open(server.base / "input" / "with_audio.mp4").read(0, FRAMES)
    for origin, audio in (("back", [source, 1]), ("again", ["again", 1])):
        prompt[save]["inputs"] |= {"frames": [origin, 0], "audio": audio, "codec": "ffv1"}
        found = video(server.run(prompt))
        assert (len(found), found.fps, found.has_audio) == (FRAMES, 12, True)
        assert (found.read(0, FRAMES) - frames).abs().max() < 1 / 255 + 1e-6


def test_join_says_on_the_node_what_differs(server, prompt):
    source = node_of(prompt, SOURCE)
    prompt["faster"] = {"class_type": SOURCE, "inputs": {"video": [node_of(prompt, "LoadVideo"), 0], "fps": 30.0}}
    joined = {"frames_1": [source, 0], "frames_2": ["faster", 0]}
    prompt["joined"] = {"class_type": "StreamingT2VJoinStreams", "inputs": joined}
    prompt[node_of(prompt, SAVE)]["inputs"]["frames"] = ["joined", 0]
    error = server.run(prompt).check("error").error
    assert error.node_type == "StreamingT2VJoinStreams" and "96x64 at 12 fps" in error.message
    assert "96x64 at 30 fps" in error.message and len(error.message.strip().splitlines()) == 1


def test_a_quality_that_does_not_exist_is_refused_before_anything_runs(server, prompt):
    set_inputs(prompt, SAVE, crf=60.0)
    report = server.run(prompt).check("refused")
    assert "0 (best) .. 51" in json.dumps(report.node_errors)
    assert not report.executed


def test_half_a_file_is_refused_on_its_node(server, prompt):
    folder = server.base / "input"
    content = (folder / "with_audio.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(content[: len(content) // 2])
    set_inputs(prompt, "LoadVideo", file="half.mp4")
    error = server.run(prompt).check("error").error
    assert error.node_type == SOURCE and "half.mp4" in error.message
    assert len(error.message.strip().splitlines()) == 1


@pytest.mark.slow
def test_kill_in_the_middle_of_saving_leaves_no_video(fresh_server, tmp_path):
    server = furnish(fresh_server(base=tmp_path / "base"))
    prompt = interpolation_prompt(server)
    set_inputs(prompt, INTERPOLATE, multiplier=64)
    save = node_of(prompt, SAVE)

    def killed(report) -> bool:
        done, total = report.bars().get(save, (0, 1))
        if 0 < done < total:
            server.kill()
        return False

    server.run(prompt, cancel_when=killed).check("died")
    left = [path.name for path in (server.base / "output").rglob("*") if path.is_file()]
    assert all(name.startswith(".") and name.endswith(".part") for name in left), left
    again = fresh_server(base=tmp_path / "base")
    assert len(video(again.run(interpolation_prompt(again)))) == 2 * FRAMES - 1


# -- the official chain ------------------------------------------------------------------------------------------------


def chain(server, on: tuple[str, ...]) -> dict:
    """StreamingSVD's template, made small, with the groups of these nodes switched on."""
    template = load_workflow(dev.ROOT / "workflows" / "streamingsvd_image_to_video.json")
    prompt = to_prompt(switched_on(template, *on), server.object_info())
    set_inputs(prompt, "LoadImage", image="chain.png")
    set_inputs(prompt, "StreamingT2VLoadStreamingSVD", ckpt_name=CHECKPOINT)
    set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    size = {"width": 128, "height": 64, "chunk_frames": 8, "overlap_frames": 3, "anchor_frame": 2}
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=10, **size)
    if "Enhance" in on:
        set_inputs(prompt, "StreamingT2VLoadEnhancer", unet_name=ENHANCER)
        small = {"width": 192, "height": 96, "steps": 2, "strength": 0.5, "window": 6, "overlap": 2}
        set_inputs(prompt, ENHANCE, **small)
        known = server.object_info()["StreamingT2VLoadStreamingModelscope"]["input"]["required"]
        inputs = {"ckpt_name": ENCODERS, "safetensors_copy": False}
        prompt["encoders"] = {
            "class_type": "StreamingT2VLoadStreamingModelscope",
            "inputs": {name: value for name, value in inputs.items() if name in known},
        }
        enhance = prompt[node_of(prompt, ENHANCE)]["inputs"]
        for name, slot in (("clip", 1), ("clip_vision", 2), ("vae", 3)):
            del prompt[enhance[name][0]]
            enhance[name] = ["encoders", slot]
    if "Interpolate" in on:
        set_inputs(prompt, "StreamingT2VLoadEmaVfi", model_name="tiny_t.pkl", dtype="float32")
        set_inputs(prompt, INTERPOLATE, num_frames=20)
    return prompt


@pytest.mark.parametrize(
    ("on", "frames", "rate", "size"),
    [
        ((), 10, 12, (128, 64)),
        (("Interpolate",), 20, 24, (128, 64)),
        (("Enhance",), 10, 12, (192, 96)),
        (("Enhance", "Interpolate"), 20, 24, (192, 96)),
    ],
)
def test_enhancer_and_interpolator_can_be_left_out(server, on, frames, rate, size):
    prompt = copy.deepcopy(chain(server, on))
    kinds = {node["class_type"] for node in prompt.values()}
    assert (ENHANCE in kinds, INTERPOLATE in kinds) == ("Enhance" in on, "Interpolate" in on)
    found = video(server.run(prompt))
    assert (len(found), found.fps, (found.width, found.height)) == (frames, rate, size)
