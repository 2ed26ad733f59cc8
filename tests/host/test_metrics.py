"""Measuring nodes inside a real host: its optical flow, CLIP, videos, Cancel; and over its API."""

from __future__ import annotations

import csv
import json
import os
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dev
from benchmarks.metrics_videos import pan, stream
from hosting.inprocess import import_host, import_pack
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.errors import CheckpointError, FrameError, SettingsError
from streaming_core.frames import TensorFrames, VideoFrames, write_video
from streaming_core.loop.chunk_layout import lay_out
from streaming_core.metrics.flow import RAFT_FILE, empty_raft
from streaming_core.metrics.measure import measure

import_host()
import_pack()

import comfy.model_management as mm  # noqa: E402
import folder_paths  # noqa: E402
from comfy_api.latest import InputImpl, Types  # noqa: E402
from comfyui_streamingt2v.nodes import metrics as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host.metrics.load import load_raft, optical_flow_names  # noqa: E402
from comfyui_streamingt2v.nodes.host.metrics.measure import clip_tools, estimator  # noqa: E402
from comfyui_streamingt2v.nodes.host.patchers import managed  # noqa: E402
from comfyui_streamingt2v.nodes.host.video import streams  # noqa: E402

from tiny_models.clip import tiny_clip, tiny_clip_vision  # noqa: E402

SAFE_FILE = "raft_large.safetensors"


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def shown_frames() -> torch.Tensor:
    frames = torch.cat((pan(30), pan(12, seed=3)))
    frames[24:] += 0.03
    return frames.clamp(0, 1)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    network = empty_raft()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
    return network.state_dict()


@pytest.fixture(scope="module")
def files(weights) -> Path:
    """Weights under both names, in the folder the host lists."""
    folder = Path(folder_paths.get_folder_paths("optical_flow")[0])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / RAFT_FILE)
    save_file({key: value.clone() for key, value in weights.items()}, folder / SAFE_FILE)
    folder_paths.filename_list_cache.clear()
    return folder


def quick(optical_flow):
    """The same model with a flow that is found at once: RAFT at 720x720 takes long on a CPU."""

    def forward(left: torch.Tensor, right: torch.Tensor) -> list[torch.Tensor]:
        assert left.shape == right.shape == (1, 3, 720, 720) and left.abs().max() <= 1
        flow = (left - right)[:, :2] * 20
        return [torch.zeros_like(flow), flow]  # as RAFT: one flow after every refinement, the last is the best

    optical_flow.model.forward = forward
    return optical_flow


# -- models of the host ------------------------------------------------------------------------------------------------


def test_the_folder_lists_weight_files_only(files):
    (files / "notes.txt").write_text("no weights")
    folder_paths.filename_list_cache.clear()
    assert set(optical_flow_names()) == {RAFT_FILE, SAFE_FILE}


@pytest.mark.parametrize("name", [RAFT_FILE, SAFE_FILE])
def test_both_kinds_of_file_load_strictly(files, weights, name):
    optical_flow = nodes.LoadRaft.execute(name).result[0]
    loaded = optical_flow.model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert nodes.LoadRaft.fingerprint_inputs(name).startswith(name)


def test_wrong_and_damaged_weights_are_refused(files, weights):
    short = {key: value.clone() for key, value in weights.items() if not key.startswith("mask_predictor.conv.b")}
    save_file(short, files / "short.safetensors")
    (files / "broken.pth").write_bytes(b"not weights")
    try:
        with pytest.raises(CheckpointError, match="1 missing"):
            load_raft("short.safetensors")
        with pytest.raises(CheckpointError, match=r"broken.pth is a text, not weights"):
            load_raft("broken.pth")
    finally:
        (files / "short.safetensors").unlink()
        (files / "broken.pth").unlink()


def test_other_values_are_no_optical_flow():
    with pytest.raises(SettingsError, match="connect Load RAFT"):
        estimator(object())
    with pytest.raises(CheckpointError, match="is not a RAFT-large"):
        estimator(managed(torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu")))


def test_mawe_of_the_node_is_mawe_of_the_core(files, shown_frames):
    from streaming_core.metrics.flow import raft_estimator
    from streaming_core.metrics.measure import measure_mawe

    optical_flow = quick(load_raft(SAFE_FILE))
    frames = shown_frames[28:31]
    value, is_still, text = nodes.MeasureMawe.execute(frames, optical_flow).result
    want = measure_mawe(stream(frames), raft_estimator(lambda left, right: optical_flow.model(left, right)[-1]))
    assert value == pytest.approx(want.value) and not is_still
    assert f"MAWE {want.value:.4f} over 2 pairs" in text
    assert any(loaded.model is optical_flow for loaded in mm.current_loaded_models)


def test_a_still_video_has_no_mawe(files, shown_frames):
    optical_flow = quick(load_raft(SAFE_FILE))
    value, is_still, text = nodes.MeasureMawe.execute(shown_frames[:1].expand(3, -1, -1, -1), optical_flow).result
    assert is_still and text.startswith("still: none of the 2 frame pairs")
    assert type(value).__name__ == "ExecutionBlocker"


@pytest.mark.skipif(find_spec("comfy_extras.nodes_void") is None, reason="this host has no optical flow of its own")
def test_the_hosts_own_loader_gives_the_same(files, shown_frames):
    from comfy_extras.nodes_void import OpticalFlowLoader

    theirs, ours = OpticalFlowLoader.execute(SAFE_FILE).result[0], load_raft(SAFE_FILE)
    pair = shown_frames[:2].movedim(-1, 1)[..., :64, :96].contiguous() * 255
    pair = torch.nn.functional.interpolate(pair, (128, 128))
    assert torch.equal(*(estimator(model).estimate(pair[:1], pair[1:]) for model in (theirs, ours)))


def test_cancel_ends_within_one_pair(files, shown_frames):
    optical_flow = quick(load_raft(SAFE_FILE))
    calls = []

    def press_cancel(*_):
        calls.append(1)
        mm.interrupt_current_processing(True)

    optical_flow.model.register_forward_hook(press_cancel)
    with pytest.raises(mm.InterruptProcessingException):
        nodes.MeasureMawe.execute(shown_frames, optical_flow)
    assert len(calls) == 1


# -- CLIP of the host --------------------------------------------------------------------------------------------------


def test_clip_scores_are_cosines_of_projected_embeddings(shown_frames, tmp_path):
    clip_vision, clip = tiny_clip_vision(tmp_path, 24), tiny_clip(l=16, g=24)
    tools = clip_tools(clip_vision, clip, " a cat ")
    part = clip.cond_stage_model.clip_g
    tokens = clip.tokenize("a cat")["g"]
    part.set_clip_options({"projected_pooled": False})
    unprojected = part.encode_token_weights(tokens)[1][0]
    part.reset_clip_options()
    want = part.transformer.text_projection.weight @ unprojected
    torch.testing.assert_close(tools.text, want, atol=1e-5, rtol=1e-5)
    found = measure(stream(shown_frames), lay_out(42, (24, 18)), clip=tools)
    images = clip_vision.encode_image(shown_frames)["image_embeds"]
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(torch.tensor(found.text.values), cosine(images, want[None]), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found.anchor.values), cosine(images, images[:1]), atol=1e-5, rtol=0)


def test_the_clip_is_left_as_it_was(tmp_path):
    clip_vision, clip = tiny_clip_vision(tmp_path, 24), tiny_clip(l=24)
    part = clip.cond_stage_model.clip_l
    before = part.return_projected_pooled, part.layer
    clip_tools(clip_vision, clip, "a cat")
    assert (part.return_projected_pooled, part.layer) == before


def test_only_words_and_a_clip_give_a_text_score(tmp_path):
    clip_vision = tiny_clip_vision(tmp_path, 24)
    assert clip_tools(clip_vision, tiny_clip(l=24), "  ").text is None
    assert clip_tools(clip_vision, None, "a cat").text is None


def test_parts_of_different_clips_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="width 24, clip has l: 16; load the text encoder of the same CLIP"):
        clip_tools(tiny_clip_vision(tmp_path, 24), tiny_clip(l=16), "a cat")


@pytest.mark.parametrize("weight", [torch.zeros(24, 24), torch.eye(24), torch.full((24, 24), torch.nan)])
def test_a_clip_without_projection_is_refused(tmp_path, weight):
    clip = tiny_clip(l=24)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.copy_(weight)
    with pytest.raises(SettingsError, match="without text_projection"):
        clip_tools(tiny_clip_vision(tmp_path, 24), clip, "a cat")


def test_an_anchor_may_have_alpha_and_company(shown_frames, tmp_path):
    clip_vision = tiny_clip_vision(tmp_path, 24)
    anchor = torch.cat((shown_frames[5:8], torch.ones_like(shown_frames[5:8, ..., :1])), -1)
    tools = clip_tools(clip_vision, anchor=anchor)
    assert measure(stream(shown_frames), clip=tools).anchor.values[5] == pytest.approx(1, abs=1e-5)


# -- videos of the host ------------------------------------------------------------------------------------------------


def test_every_kind_of_video_is_taken(shown_frames, tmp_path):
    path = tmp_path / "video.mp4"
    write_video(stream(shown_frames, fps=12), path)
    from_file = streams.as_stream(InputImpl.VideoFromFile(str(path)), 24.0)
    assert isinstance(from_file, VideoFrames) and (len(from_file), from_file.fps) == (42, 12)
    components = Types.VideoComponents(images=shown_frames, frame_rate=Fraction(8))
    from_memory = streams.as_stream(InputImpl.VideoFromComponents(components), 24.0)
    assert isinstance(from_memory, TensorFrames) and from_memory.fps == 8
    images = streams.as_stream(shown_frames, 30.0)
    assert isinstance(images, TensorFrames) and images.fps == 30
    assert streams.as_stream(images, 5.0) is images
    with pytest.raises(FrameError, match="got str"):
        streams.as_stream("video.mp4", 24.0)


@pytest.mark.skipif(not hasattr(InputImpl.VideoFromFile, "get_active_trim_window"), reason="this host trims no videos")
@pytest.mark.parametrize(("start", "seconds"), [(0.5, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_trimmed_videos_are_read_as_the_host_reads_them(shown_frames, tmp_path, start, seconds):
    path = tmp_path / "video.mp4"
    write_video(stream(shown_frames, fps=12), path)
    video = InputImpl.VideoFromFile(str(path), start_time=start, duration=seconds)
    ours, theirs = streams.as_stream(video, 24.0), video.get_components().images
    whole = InputImpl.VideoFromFile(str(path)).get_components().images
    first = int((whole - theirs[:1]).abs().mean((1, 2, 3)).argmin())
    assert len(ours) == len(theirs) and torch.equal(whole[first], theirs[0])
    assert torch.equal(ours.read(0, 1), VideoFrames.open(path).read(first, first + 1))


# -- over the API ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(host_server, shown_frames):
    """The session's server with a video in its input folder."""
    write_video(stream(shown_frames, fps=12), host_server.base / "input" / "measured.mp4")
    longer = shown_frames[:, ::2, ::2].repeat(40, 1, 1, 1)
    write_video(stream(longer, fps=12), host_server.base / "input" / "measured_long.mp4")
    return host_server


@pytest.fixture
def prompt(server) -> dict:
    """The shipped template."""
    template = load_workflow(dev.ROOT / "workflows" / "measure_video.json")
    prompt = to_prompt(template, server.object_info())
    set_inputs(prompt, "LoadVideo", file="measured.mp4")
    set_inputs(prompt, "StreamingT2VVideoReport", chunks="24,18", filename_prefix="report/api")
    return prompt


def test_template_writes_the_whole_report(server, prompt):
    report = server.run(prompt).check()
    node = next(key for key, value in prompt.items() if value["class_type"] == "StreamingT2VVideoReport")
    [chart] = [output.path for output in report.outputs if output.node == node]
    assert chart.parent == server.base / "output" / "report" and chart.suffix == ".png"
    with Image.open(chart) as image:
        assert image.width == 1024 and json.loads(image.info["prompt"])[node]["inputs"]["chunks"] == "24,18"
    found = json.loads(chart.with_suffix(".json").read_text())
    assert found["video"]["frames"] == 42 and found["video"]["fps"] == 12
    assert found["boundaries"] == [24] and found["cuts"]["frames"] == [30]
    assert found["seams"]["largest"] > 5
    assert len(list(csv.reader(chart.with_suffix(".csv").open()))) == 43
    [text] = report.ui[node]["text"]
    assert text == chart.with_suffix(".txt").read_text() and "at frame 24" in text
    assert report.bars()[node] == (42, 42)


def test_wrong_chunks_are_refused_before_anything_runs(server, prompt):
    set_inputs(prompt, "StreamingT2VVideoReport", chunks="25;18")
    report = server.run(prompt)
    assert report.status == "refused"
    assert any("whole numbers such as 25,18" in message for message in report.messages.values())


def test_cancel_stops_a_report(server, prompt):
    set_inputs(prompt, "LoadVideo", file="measured_long.mp4")
    written = set((server.base / "output").rglob("*"))
    report = server.run(prompt, cancel_when=lambda so_far: len(so_far.progress) >= 2).check("interrupted")
    assert report.seconds - report.canceled_at < 10
    assert max(step.value for step in report.progress) < 1680
    assert set((server.base / "output").rglob("*")) == written


def test_report_is_described(server):
    info = server.object_info("StreamingT2VVideoReport")["StreamingT2VVideoReport"]
    assert info["output_node"] and info["output_name"] == ["image", "text", "json"]
    assert set(info["input"]["optional"]) == {"optical_flow", "clip_vision", "clip", "anchor"}
    assert os.path.commonprefix([info["category"], "video/StreamingT2V"]) == "video/StreamingT2V"
