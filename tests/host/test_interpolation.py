"""Interpolation nodes inside a real host: weight files, the host's own node, its patcher, Cancel."""

from __future__ import annotations

import dataclasses
import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import CheckpointError, SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.interpolation import timeline
from streaming_core.interpolation.stream import InterpolatedFrames
from streaming_core.models.ema_vfi.interpolator import EmaVfiInterpolator, EmaVfiSettings
from tiny_models.ema_vfi import random_network, write_tiny_ema_vfi

import_host()
import_pack()

import comfy.model_management as mm  # noqa: E402
import comfy.ops  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes import interpolation as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host.files import read_weights  # noqa: E402
from comfyui_streamingt2v.nodes.host.interpolation import load as host  # noqa: E402


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def files():
    """Weight files under the published names, in the folder the host lists."""
    folder = folder_paths.get_folder_paths("frame_interpolation")[0]
    for name in ("ours.pkl", "ours_t.pkl", "ours_small.safetensors"):
        write_tiny_ema_vfi(Path(folder) / name)
    folder_paths.filename_list_cache.clear()
    return Path(folder)


def clip(num_frames: int = 4, height: int = 40, width: int = 56) -> torch.Tensor:
    """A texture that moves a little, `[F, H, W, 3]`."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 9, 11, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, (height, width + 2 * num_frames), mode="bilinear")[0]
    return torch.stack([wide[:, :, 2 * k : 2 * k + width].movedim(0, -1) for k in range(num_frames)])


def load(name: str = "ours_t.pkl", **options):
    chosen = {"times": "auto", "augmentation": "off", "flow_scale": "1", "dtype": "float32"} | options
    return nodes.LoadEmaVfi.execute(name, **chosen).result[0]


def interpolate(model, source: torch.Tensor, **options):
    chosen = {"target": "multiplier", "multiplier": 2, "num_frames": 10, "fps": 0.0, "scene_cut_threshold": 0.0}
    stream = TensorFrames(source, 8)
    return nodes.InterpolateStream.execute(stream, model, **(chosen | options)).result[0]


def test_the_folder_lists_weight_files_only(files):
    (files / "notes.txt").write_text("no weights")
    folder_paths.filename_list_cache.clear()
    assert set(host.interpolation_names()) == {"ours.pkl", "ours_t.pkl", "ours_small.safetensors"}
    schema = nodes.LoadEmaVfi.GET_SCHEMA()
    assert schema.inputs[0].id == "model_name"


@pytest.mark.parametrize("name", ["ours.pkl", "ours_small.safetensors"])
def test_published_files_load_and_give_the_networks_own_frames(files, name):
    source = clip(2)
    want = EmaVfiInterpolator(random_network(), EmaVfiSettings())
    between = want(*source.movedim(-1, 1).split(1))[0].movedim(0, -1)
    frames = interpolate(load(name), source).read(0, 3)
    assert torch.equal(frames[::2], source)
    torch.testing.assert_close(frames[1], between, atol=1e-6, rtol=0)


def test_which_weights_know_any_time_is_told_by_the_name(files):
    assert not load("ours.pkl").model.settings.any_time
    assert load("ours_t.pkl").model.settings.any_time
    assert load("ours.pkl", times="any time").model.settings.any_time
    assert not load("ours_t.pkl", times="halving").model.settings.any_time


def test_changed_files_are_loaded_anew(files):
    stamp = nodes.LoadEmaVfi.fingerprint_inputs("ours.pkl")
    assert nodes.LoadEmaVfi.fingerprint_inputs("ours.pkl", times="auto") == stamp
    write_tiny_ema_vfi(files / "other.pkl", seed=3)
    first = nodes.LoadEmaVfi.fingerprint_inputs("other.pkl")
    os.utime(files / "other.pkl", ns=(1, 1))
    assert nodes.LoadEmaVfi.fingerprint_inputs("other.pkl") != first
    (files / "other.pkl").unlink()


class Payload:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: torch.save({"state_dict": {"x.weight": torch.zeros(1)}}, path), "not a EMA-VFI|not an EMA-VFI"),
        (lambda path: path.write_bytes(b"no pickle at all"), "wrong.pkl is a text, not weights"),
        (lambda path: path.write_bytes(pickle.dumps({"a": Payload()})), "damaged|Python objects"),
        (lambda path: path.write_bytes(b""), "damaged"),
    ],
)
def test_other_files_are_refused_in_one_sentence(files, write, words, capsys):
    path = files / "wrong.pkl"
    write(path)
    try:
        with pytest.raises(CheckpointError, match=words) as caught:
            load("wrong.pkl")
        assert "\n" not in str(caught.value)
        assert "must not run" not in capsys.readouterr().out
    finally:
        path.unlink()


def test_targets_meet_count_rate_and_speed(files):
    model, source = load(), clip(5)
    for options, count, fps in (
        ({"target": "multiplier", "multiplier": 3}, 13, 24),
        ({"target": "frame count", "num_frames": 10, "fps": 24.0}, 10, 24),
        ({"target": "frame count", "num_frames": 9}, 9, 16),
        ({"target": "frame rate", "fps": 20.0}, 11, 20),
        ({"target": "official doubling", "num_frames": 10}, 10, 24),
        ({"target": "official doubling", "num_frames": 7, "fps": 12.0}, 7, 12),
    ):
        video = interpolate(model, source, **options)
        assert (len(video), video.fps) == (count, fps), options
    with pytest.raises(SettingsError, match="fps"):
        interpolate(model, source, target="frame rate")


def test_fast_augmentation_and_halves_run_through_the_node(files):
    source = clip(3)
    plain = interpolate(load(), source).read(0, 5)
    fast = interpolate(load(augmentation="fast"), source).read(0, 5)
    full = interpolate(load(augmentation="full"), source).read(0, 5)
    torch.testing.assert_close(fast, full, atol=1e-6, rtol=0)
    assert (fast - plain).abs().max() > 1e-4
    half = interpolate(load(dtype="bfloat16"), source).read(0, 5)
    assert torch.equal(half[::2], source)
    assert 0 < (half - plain).abs().mean() < 0.03
    small = interpolate(load(flow_scale="1/2"), source).read(0, 5)
    assert small.shape == plain.shape


def test_the_host_manages_the_weights(files):
    patcher = load()
    mm.unload_all_models()
    interpolate(patcher, clip(2)).read(0, 3)
    assert any(loaded.model is patcher for loaded in mm.current_loaded_models)
    assert patcher.model_dtype() == torch.float32
    assert patcher.model.memory_used_forward((9, 40, 56, 3), torch.float32) > 0


def test_weights_of_another_type_are_cast_where_they_are_used(files):
    """As the host keeps weights when memory is short: no layer may touch its weights past the host's casting."""
    settings, source = EmaVfiSettings(any_time=True), clip(2).movedim(-1, 1)
    tensors = read_weights(host.interpolation_file("ours_t.pkl"))
    cast = host.build(tensors, settings, operations=comfy.ops.manual_cast, dtype=torch.float16)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.float16}
    rounded = {key: value.half().float() if value.is_floating_point() else value for key, value in tensors.items()}
    want = host.build(rounded, settings)(*source.split(1))
    torch.testing.assert_close(cast(*source.split(1)), want, atol=1e-5, rtol=0)


def test_cancel_ends_at_the_next_pair(files, monkeypatch):
    video = interpolate(load(), clip(4))
    slices = video.slices()
    assert len(next(slices)) == 2
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        next(slices)


def out_of_memory_errors():
    yield torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")
    yield RuntimeError("CUDA driver error: out of memory")
    if hasattr(torch, "AcceleratorError"):
        yield torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later")


@pytest.mark.parametrize("error", list(out_of_memory_errors()), ids=lambda error: type(error).__name__)
def test_a_full_device_means_smaller_batches_whatever_raises_it(files, error, monkeypatch):
    model = host.to_core(load())
    source, line = TensorFrames(clip(), 8), timeline.multiplied(4, 8, 4)
    plain = InterpolatedFrames(source, line, model, cut_threshold=0).read(0, 13)
    real, tried = type(model.network).forward_multi_timestep, []

    def several(self, first, second, times, cache=None):
        tried.append(len(times))
        if len(times) > 1:
            raise error
        return real(self, first, second, times, cache)

    monkeypatch.setattr(type(model.network), "forward_multi_timestep", several)
    model = dataclasses.replace(model, free_bytes=lambda: 10**12)
    frames = InterpolatedFrames(source, line, model, cut_threshold=0).read(0, 13)
    assert tried[:2] == [3, 1] and set(tried[1:]) == {1}
    torch.testing.assert_close(frames, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory")])
def test_other_errors_are_not_taken_for_a_full_device(error):
    from comfyui_streamingt2v.nodes.host.compat import is_out_of_memory

    assert not is_out_of_memory(error)


def test_values_that_are_no_interpolation_models_are_refused():
    with pytest.raises(SettingsError, match="Load EMA-VFI"):
        interpolate(object(), clip(2))


needs_host_nodes = pytest.mark.skipif(
    find_spec("comfy_extras.nodes_frame_interpolation") is None, reason="this host cannot interpolate frames itself"
)


def host_node():
    from comfy_extras.nodes_frame_interpolation import FrameInterpolate

    return FrameInterpolate


@needs_host_nodes
@pytest.mark.parametrize("multiplier", [2, 4])
@pytest.mark.parametrize("name", ["ours.pkl", "ours_t.pkl"])
def test_the_hosts_own_node_takes_our_model(files, name, multiplier):
    model, source = load(name, augmentation="fast"), clip(4)
    theirs = host_node().execute(model, source, multiplier).result[0]
    ours = interpolate(load(name, augmentation="fast"), source, multiplier=multiplier).read(0, 3 * multiplier + 1)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@needs_host_nodes
def test_the_hosts_models_run_in_our_node(files):
    from comfy_extras.frame_interpolation_models.film_net import FILMNet

    torch.manual_seed(0)
    network = FILMNet().eval()
    for parameter in network.parameters():
        parameter.normal_(0, 0.02)
    patcher = host.managed(network, mm.get_torch_device(), mm.unet_offload_device())
    source = clip(3, 128, 96)
    theirs = host_node().execute(patcher, source, 3).result[0]
    ours = interpolate(patcher, source, multiplier=3).read(0, 7)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)
