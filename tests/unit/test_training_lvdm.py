"""Training LVDM: it learns, resumes bit for bit, and what it writes is a file of the official layout."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from streaming_core.errors import SettingsError
from streaming_core.models.lvdm.config import LATENT_SCALES
from streaming_core.models.lvdm.detect import detect, detect_autoencoder
from streaming_core.models.lvdm.weights import parts_of
from streaming_core.models.registry import shapes_of
from tests import training_runs
from tests.training_runs import assert_same_run, go_on, train
from training.configs import DEMO_LVDM, DEMO_LVDM_AE
from training.export import FILES, export
from training.loop import Recipe
from training.lvdm_ae import LvdmAeTask, scaled_weights
from training.lvdm_layers import FrameConv
from training.lvdm_pool import LatentPool, encoded, make_pool, read_pool, trained_autoencoder, write_pool
from training.lvdm_unet import MIXTURES, LvdmUnetTask, new_unet, noised
from training.videos import make_video

pytestmark = pytest.mark.slow
SIZE = 32
RATES = {"lvdm_ae": 5e-4, "lvdm_short": 1e-4, "lvdm_pred": 5e-4, "lvdm_interp": 5e-4}
RECIPES = {stage: Recipe(rate, warmup_steps=3, average_decay=0.8, seed=5) for stage, rate in RATES.items()}
STAGES = ("lvdm_ae", "lvdm_short", "lvdm_pred", "lvdm_interp")


def still_pool() -> LatentPool:
    """Two videos that stand still in one color each: twenty steps can learn them."""
    colors = torch.randn(2, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return LatentPool(colors.expand(2, 4, 14, 4, 4).half(), torch.ones(2, 1, 14, 4, 4).half())


def make_task(stage: str, folder):
    if stage == "lvdm_ae":
        return LvdmAeTask(SIZE, batch=4, frames=4)
    return LvdmUnetTask(stage, still_pool(), trained_autoencoder(folder), SIZE, "calm", batch=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, stages = tmp_path_factory.mktemp("trained"), {}
    for stage in STAGES:
        half_way = tmp_path_factory.mktemp("half_way") / stage
        stages[stage] = train(make_task(stage, folder), folder, half_way, RECIPES[stage], draws=24)
    return stages


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(trained, stage):
    assert trained[stage].after < 0.95 * trained[stage].before


@pytest.mark.parametrize("stage", ("lvdm_ae", "lvdm_interp"))
def test_a_killed_run_goes_on_bit_for_bit(trained, stage):
    folder, half_way = trained[stage].folder, trained[stage].half_way
    go_on(lambda: make_task(stage, half_way), half_way, RECIPES[stage])
    assert_same_run(folder, half_way, stage)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_file_of_the_official_layout_is_written(trained, stage, tmp_path):
    [path] = export(trained[stage].folder, stage, into=tmp_path)
    assert path.name == FILES[stage][0]
    parts = parts_of(load_file(path))
    parts.check_known(path.name)
    assert parts.latents.scale == pytest.approx(LATENT_SCALES["sky"].scale, abs=1e-3)
    assert detect(shapes_of(parts.unet)) == MIXTURES[stage].network
    assert detect_autoencoder(shapes_of(parts.first_stage)) == DEMO_LVDM_AE


def test_latents_have_mean_0_and_deviation_1_by_the_sky_scale_and_frames_are_the_same():
    task = LvdmAeTask(SIZE)
    video = make_video(3, SIZE, "calm").render(0, 8).frames.transpose(0, 1)[None] * 2 - 1
    with torch.no_grad():
        latents = task.network.encode(video).transpose(0, 1).flatten(1)
        before = task.network.decode(task.network.encode(video))
        task.network.load_state_dict(scaled_weights(task.network, latents.mean(1), latents.std(1)))
        after = task.network.decode(task.network.encode(video))
        scaled = LATENT_SCALES["sky"].to_model(task.network.encode(video)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scaled.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(1), torch.ones(4), atol=1e-3, rtol=0)


def test_the_autoencoder_begins_with_colors_in_their_places():
    """Red left, blue right, one video after the other: the decoded halves differ the same way from the first step."""
    task = LvdmAeTask(SIZE)
    video = torch.full((1, 3, 4, SIZE, SIZE), -0.5)
    video[:, 0, ..., : SIZE // 2] = 0.5
    video[:, 2, ..., SIZE // 2 :] = 0.5
    with torch.no_grad():
        decoded = task.network.decode(task.network.encode(video))
    left, right = decoded[..., : SIZE // 2 - 4].mean((2, 3, 4)), decoded[..., SIZE // 2 + 4 :].mean((2, 3, 4))
    assert left[0, 0] > right[0, 0] + 0.3 and right[0, 2] > left[0, 2] + 0.3
    assert (left[0, 1] - right[0, 1]).abs() < 0.05


@torch.no_grad()
def test_the_unet_begins_by_taking_all_for_noise():
    unet = new_unet(DEMO_LVDM, torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = unet(x, torch.tensor([900.0]))
    torch.testing.assert_close(noise, x / x.square().mean(dim=(2, 3, 4), keepdim=True).sqrt(), atol=2e-2, rtol=2e-2)


def test_a_convolution_of_frames_is_the_usual_one():
    conv = FrameConv(3, 5, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    x = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(conv(x), torch.nn.Conv3d.forward(conv, x))


def test_known_latents_are_shown_at_their_own_level(trained):
    """The prediction model's first latent carries the noise of the label, the others that of the timestep."""
    task, seen = trained["lvdm_pred"].task, []
    generator = torch.Generator().manual_seed(2)
    latents = task.pool.draw(generator, 4, task.frames, task.stride).latents
    condition = task._condition(latents, generator)
    assert set(condition.mask.flatten(1).sum(1).tolist()) <= {0.0, 1.0} and not condition.mask[:, :, 1:].any()
    original = task.network.denoise
    task.network.denoise = lambda x, *rest, **more: seen.append((x, more)) or original(x, *rest, **more)
    try:
        x = torch.where(condition.mask > 0, condition.shown(latents), torch.zeros_like(latents))
        task._predict(condition)(x, torch.full((4,), 500))
    finally:
        del task.network.denoise
    [(shown, more)] = seen
    assert torch.equal(more["labels"], condition.level)
    known = condition.mask[:, 0, 0, 0, 0] > 0
    want = noised(latents, condition.noise, condition.level)[:, :, 0]
    assert known.any() and torch.equal(shown[known, :4, 0], want[known])
    assert shown[known, 4, 0].eq(1).all() and shown[~known, 4].eq(0).all()


def test_clips_are_as_far_apart_as_asked():
    times = torch.arange(14.0).view(1, 1, 14, 1, 1).expand(1, 4, 14, 2, 2)
    pool = LatentPool(times.half(), times[:, :1].half())
    drawn = pool.draw(torch.Generator().manual_seed(0), 9, 4, 3).latents[:, 0, :, 0, 0]
    assert torch.equal(drawn.diff(dim=1), torch.full((9, 3), 3.0)) and drawn[:, 0].max() <= 4
    assert len(set(drawn[:, 0].tolist())) > 1


def test_a_pool_is_read_back_and_one_of_other_videos_refused(trained, tmp_path):
    autoencoder = trained_autoencoder(trained["lvdm_ae"].folder)
    pool = make_pool(autoencoder, SIZE, "calm", 2, 8)
    assert pool.latents.shape == (2, 4, 4, SIZE // 4, SIZE // 4) and pool.moving.shape == (
        2,
        1,
        4,
        SIZE // 4,
        SIZE // 4,
    )
    one = encoded(autoencoder, make_video(1, SIZE, "calm").render(0, 8))
    torch.testing.assert_close(pool.latents[1].float(), one.latents[0], atol=2e-3, rtol=2e-3)
    write_pool(pool, tmp_path, SIZE, "calm")
    assert torch.equal(read_pool(tmp_path, SIZE, "calm").latents, pool.latents)
    with pytest.raises(SettingsError, match="holds calm videos"):
        read_pool(tmp_path, SIZE, "slow")
    assert make_pool(autoencoder, SIZE, "calm", 2, 8, stopped=lambda: True) is None
