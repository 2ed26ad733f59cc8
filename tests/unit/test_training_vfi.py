"""Training of EMA-VFI: true flow is true, a miniature learns and resumes bit for bit, and its file loads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import dev
from streaming_core.models.ema_vfi.config import standard_config
from streaming_core.models.ema_vfi.interpolator import EmaVfiSettings, build
from streaming_core.models.ema_vfi.warp import warp
from tests import training_runs
from tests.training_runs import assert_same_run, go_on, train
from training import __main__ as command
from training.configs import DEMO_VFI
from training.export import FILES
from training.export import main as export
from training.loop import Recipe, Run, read_log
from training.vfi import Triplet, VfiTask, image_loss, is_steady, new_network, pyramid
from training.videos import HELD_OUT, VARIETIES, make_video

SIZE = 32
MINIATURE = standard_config(4, (1, 1, 1, 2, 2))
RECIPE = Recipe(learning_rate=5e-3, warmup_steps=3, average_decay=0.8, seed=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2 * HELD_OUT), st.sampled_from(VARIETIES), st.floats(0, 30), st.floats(0.5, 4), st.floats(0, 1))
def test_the_true_flow_brings_either_frame_to_the_one_between(seed, variety, start, gap, share):
    """But for edges, and for what the other frame hides, of which a flow says nothing."""
    video = make_video(seed, 64, variety)
    shot = Triplet.of([(video, start, gap, share)])
    for frame, flow, hidden in ((shot.first, shot.flow[:, :2], start), (shot.second, shot.flow[:, 2:], start + gap)):
        there = video.at(torch.tensor([hidden], dtype=torch.float64)).moving
        target = video.at(torch.tensor([start + share * gap], dtype=torch.float64)).moving
        # Background on which nothing lies in either, and images without a second sprite in front.
        seen = (warp(there, flow) == 0) & (target == 0)
        if len(video.sprites) == 1:
            seen |= (warp(there, flow) == 1) & (target == 1)
        inside = warp(torch.ones_like(there), flow)  # borders are repeated, so a background that slides in is not there
        places = torch.arange(64.0)
        x, y = places + flow[0, 0], places[:, None] + flow[0, 1]
        seen &= ((x >= 0) & (x <= 63) & (y >= 0) & (y <= 63))[None, None] & (inside > 0)
        error = (warp(frame, flow) - shot.target).abs().amax(dim=1, keepdim=True)[seen]
        assert len(error) > 100 and error.mean() < 0.01 and error.quantile(0.98) < 0.15


def test_pairs_in_which_something_turned_round_are_known():
    """A flow cannot be right there; those where nothing did have a flow as long as the way."""
    kept = 0
    for seed in range(40):
        video = make_video(seed, 64)
        shot = Triplet.of([(video, 1.0, 2.0, 0.5)])
        [path] = [sprite.path for sprite in video.sprites]
        turned = any(
            not path.low < start + velocity * time < path.high
            for start, velocity in zip(path.start, path.velocity, strict=True)
            for time in (1.0, 3.0)
        )
        steady = bool(shot.steady)
        kept += steady
        if not turned:
            assert steady and shot.flow.abs().amax() <= 3.5 + 1e-4  # one frame's way, of a video of 64 pixels
        if not steady:
            assert turned
    assert 20 < kept < 40
    assert not is_steady(wall := make_video(5, 64), torch.arange(0.0, 40.0, dtype=torch.float64)), wall


def test_a_triplet_is_in_the_order_of_the_network():
    video = make_video(3, SIZE)
    shot = Triplet.of([(video, 2.0, 2.0, 0.5), (video, 5.0, 4.0, 0.25)])
    truth = video.render(0, 10).frames.flip(1)  # the network wants BGR
    assert torch.equal(shot.first, truth[[2, 5]]) and torch.equal(shot.second, truth[[4, 9]])
    assert torch.equal(shot.target, truth[[3, 6]])
    assert shot.times.tolist() == [0.5, 0.25] and shot.moving.shape == (2, 1, SIZE, SIZE)


def test_a_pyramid_holds_all_of_a_image():
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    *bands, rest = pyramid(image)
    assert [band.shape[-1] for band in (*bands, rest)] == [32, 16, 8, 4]
    for band in reversed(bands):
        rest = band + torch.nn.functional.interpolate(rest, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(rest, image)


def test_errors_where_something_moves_count_more():
    shot = Triplet.of([(make_video(1, SIZE), 0.0, 2.0, 0.5)])
    assert image_loss(shot.target, shot) == 0
    wrong = [image_loss(shot.target + 0.1 * where, shot) for where in (shot.moving, shot.moving.flip(2, 3))]
    assert wrong[0] > 1.5 * wrong[1]


def test_a_new_network_is_the_mean_of_both_frames():
    shot = Triplet.of([(make_video(1, SIZE), 0.0, 2.0, 0.3)])
    network = new_network(MINIATURE, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(shot.first, shot.second, shot.times), (shot.first + shot.second) / 2)
    again = new_network(MINIATURE, torch.Generator().manual_seed(0)).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in network.state_dict().items())


class OneVideo(VfiTask):
    """Always the same pair, at any time: twenty steps show on what they have seen, and on nothing else."""

    def _shot(self, generator, size):
        _, _, _, share = super()._shot(generator, size)
        return make_video(1, size), 2.0, 2.0, share


def make_task():
    return OneVideo(SIZE, batch=1, config=MINIATURE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(make_task(), tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("half_way") / "run", RECIPE)


def test_the_loss_falls(trained):
    assert trained.after < 0.85 * trained.before


def test_every_weight_is_trained(trained):
    task = trained.task
    task.network.zero_grad(set_to_none=True)
    for seed in range(8):  # steps of both kinds
        task.loss(torch.Generator().manual_seed(seed)).backward()
    still = [name for name, weight in task.network.named_parameters() if not weight.grad.abs().sum() > 0]
    # Motion is a difference of embedded coordinates, from which this one falls out.
    assert all(name.endswith("cor_embed.bias") for name in still), still


def test_a_killed_run_goes_on_bit_for_bit(trained):
    go_on(make_task, trained.half_way, RECIPE)
    assert_same_run(trained.folder, trained.half_way, "vfi")


def test_what_is_measured(trained):
    measured = [entry["measured"] for entry in read_log(trained.folder / "vfi.jsonl") if "measured" in entry][-1]
    names = [f"{what}_{gap}" for what in ("psnr", "moving") for gap in (1, 2)]
    assert measured.keys() == {"flow", *(of + name for of in ("", "blend_", "repeat_") for name in names)}
    assert measured["blend_moving_1"] < measured["blend_psnr_1"]
    assert measured["blend_moving_2"] < measured["blend_moving_1"]
    assert measured["repeat_moving_2"] < measured["blend_moving_2"]


def test_the_exported_file_loads_and_interpolates(trained):
    """Half precision, published names, and the same images as the averaged weights make."""
    task, folder = trained.task, trained.folder
    target = folder / "small_t.safetensors"
    assert export(["--stage", "vfi", "--out", str(folder), "--file", str(target)]) == 0
    tensors = load_file(target)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(key.startswith("module.") for key in tensors)
    model = build(tensors, EmaVfiSettings(any_time=True), dtype=torch.float32)
    assert model.network.config == MINIATURE
    shot = Triplet.of([(make_video(HELD_OUT, SIZE), 0.0, 2.0, 0.25)])
    with torch.no_grad(), Run(task, folder, RECIPE).averaged():
        expected = task.network(shot.first, shot.second, shot.times)
        found = model.forward_multi_timestep(shot.first.flip(1), shot.second.flip(1), [0.25]).flip(1)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_the_command_makes_the_recipe(tmp_path):
    args = command.arguments(["--stage", "vfi", "--out", str(tmp_path), "--videos", "wide"])
    task = command.make_task(args)
    assert args.minutes == 15 and task.settings() == {"size": 96, "videos": "wide", "batch": 4}
    assert task.network.config == DEMO_VFI


def test_the_shipped_weights_beat_blending_on_videos_that_were_not_trained_on():
    """Through the pack's builder, at the time between two frames; error where something moves, walls included."""
    tensors = load_file(dev.ROOT / "demo_models" / "models" / "frame_interpolation" / FILES["vfi"][0])
    model = build(tensors, EmaVfiSettings(any_time=True), dtype=torch.float32)
    made = blended = 0.0
    for number in range(12):
        shot = Triplet.of([(make_video(HELD_OUT + 100 + number, 96), 4.0 + number, 1.0, 0.5)])
        with torch.no_grad():
            middle = model(shot.first.flip(1), shot.second.flip(1), 0.5).flip(1)
        made += float((shot.moving * (middle - shot.target).square()).sum())
        blended += float((shot.moving * ((shot.first + shot.second) / 2 - shot.target).square()).sum())
    assert made < 0.4 * blended
