"""Stage enhancer trains, stops and goes on, writes what Load Enhancer loads; the demo enhancer mends a video."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import demo_enhancer as demo
from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.models.i2vgenxl.detect import detect
from streaming_core.models.registry import shapes_of
from tests import training_runs
from tests.host.test_training_modelscope import RECIPE, SIZE, base_of, still_pool
from tests.training_runs import assert_same_run, go_on, train
from training import export
from training.configs import DEMO_ENHANCER, DEMO_TEXT_TO_VIDEO
from training.diffusion import Encoder
from training.enhancer import (
    ALPHAS,
    USUAL_TIMESTEP,
    Conditions,
    EnhancerTask,
    draw_levels,
    every,
    mend,
    new_enhancer,
    noise_ratio,
    run,
)
from training.enhancer_wear import Wear, color_axes, draw_wear, worn_image, worn_latents
from training.footage import clip_of
from training.layout import CPU, Base, write_weights
from training.loop import Run
from training.modelscope_unet import new_base_unet, run_base
from training.task import Clips
from training.vae import VaeTask
from training.videos import make_video

pytestmark = pytest.mark.slow
FILE = "trained_enhancer.safetensors"
"""Not the name of the demo file: the host looks a name up in all folders of its kind."""


def base_unet():
    return new_base_unet(DEMO_TEXT_TO_VIDEO, torch.Generator().manual_seed(0))


def make_task(folder: Path) -> EnhancerTask:
    clips = Clips(SIZE, pool=still_pool(), batch=1, frames=4)
    return EnhancerTask(base_of(folder), base_unet().state_dict(), clips)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield
    demo.opened.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """20 steps behind a VAE of first weights, on a base UNet of first weights."""
    import_host()
    import_pack()
    folder = tmp_path_factory.mktemp("trained")
    write_weights(folder / "vae.safetensors", VaeTask(SIZE, batch=1).weights())
    return train(make_task(folder), folder, tmp_path_factory.mktemp("half_way") / "enhancer", RECIPE)


def conditions(task: EnhancerTask, frames: int = 4) -> tuple[torch.Tensor, Conditions]:
    """Latents `[1, frames, 4, h, w]` and what to tell of them, always the same."""
    x = torch.randn(1, frames, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(3))
    image = make_video(3, SIZE).render(0, 1).frames[0]
    return x, Conditions(task.prompts("a ball"), x[:, 0] / 2, task.embed(image), torch.tensor([38]))


def test_the_loss_falls(trained):
    assert trained.after < 0.95 * trained.before


def test_a_killed_run_goes_on_bit_for_bit(trained):
    go_on(lambda: make_task(trained.half_way), trained.half_way, RECIPE)
    assert_same_run(trained.folder, trained.half_way, "enhancer")


def test_another_base_unet_is_refused():
    wide = {**base_unet().state_dict(), "conv_out.weight": torch.zeros(4, 128, 3, 3)}
    with pytest.raises(SettingsError, match=r"1 weights \(first conv_out.weight\) that the enhancer has not"):
        new_enhancer(DEMO_ENHANCER, wide, torch.Generator())


def test_every_weight_is_trained(trained):
    assert all(parameter.grad is not None for parameter in trained.task.network.parameters())


@torch.no_grad()
def test_it_begins_as_the_base_unet(trained):
    """v from the noise that a base UNet of first weights takes its whole input for."""
    task, unet = make_task(trained.folder), base_unet()
    x, given = conditions(task)
    timesteps = torch.tensor([USUAL_TIMESTEP])
    noise = run_base(unet, unet.project_context(given.text), x, timesteps)
    share = ALPHAS[USUAL_TIMESTEP]
    expected = (noise - (1 - share).sqrt() * noise) / share.sqrt()
    torch.testing.assert_close(run(task.network, x, timesteps, given), expected, atol=1e-3, rtol=1e-3)


def test_levels_lie_on_passes_that_a_strength_begins():
    levels, starts = draw_levels(20000, torch.Generator().manual_seed(0))
    assert starts.min() == 150 and starts.max() == 849 and levels.min() >= 1 and (levels <= starts).all()
    assert abs(levels.float().mean() - 250) < 5
    left = noise_ratio(levels) / noise_ratio(starts)
    assert left.max() <= 1 and left.min() > 0


def test_clips_of_keyframes_are_wide_apart():
    video = make_video(4, SIZE)
    clip = every(clip_of(video, 16, 2, None), 5)
    expected = torch.cat([video.render(k, k + 1).frames for k in (2, 7, 12, 17)])
    torch.testing.assert_close(clip.footage.frames, expected)
    assert len(clip.footage.moving) == 4 and clip.latents is None


def test_wear_is_drawn_in_its_shares():
    generator = torch.Generator().manual_seed(0)
    wears = [draw_wear(generator, 0.8) for _ in range(4000)]
    worn = [wear for wear in wears if wear is not None]
    assert abs(len(worn) / 4000 - 0.8) < 0.03
    assert abs(sum(wear.noise > 0 for wear in worn) / len(worn) - 0.75) < 0.03
    assert all(0.6 <= wear.grid_share <= 1 and 0 <= wear.noise <= 0.09 for wear in worn)


@pytest.fixture(scope="module")
def demo_vae():
    file = demo.MODELS / "checkpoints" / "demo_streamingsvd.safetensors"
    return Encoder(Base(load_file(file)).vae(CPU), None, 0, CPU)


@pytest.mark.parametrize("wear", [Wear(1.0, 0.05), Wear(10 / 12, 0.05), Wear(8 / 12, 0.0)])
def test_worn_latents_are_about_those_of_worn_images(demo_vae, wear):
    """As far from the clean ones, and nearer to the real ones than the clean ones are where nothing is drawn."""
    frames = make_video(5, 96, "slow").render(0, 2).frames
    clean = demo_vae.encode(frames)
    real = demo_vae.encode(worn_image(frames, wear, torch.Generator().manual_seed(1)))
    made = worn_latents(clean, wear, color_axes(demo_vae, 96), torch.Generator().manual_seed(2))
    assert 0.6 < (made - clean).std() / (real - clean).std() < 1.6
    if not wear.noise:
        assert (made - real).std() < 0.8 * (clean - real).std()
    assert worn_latents(clean, None, torch.zeros(3, 4), torch.Generator()) is clean


@torch.no_grad()
def test_the_exported_file_computes_what_was_trained(trained, tmp_path, capsys):
    import folder_paths
    from comfyui_streamingt2v.nodes.host.enhance.load import load_enhancer

    assert export.main(["--out", str(trained.folder), "--stage", "enhancer", "--file", str(tmp_path / FILE)]) == 0
    assert "MB" in capsys.readouterr().out
    weights = load_file(tmp_path / FILE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert detect(shapes_of(weights)) == DEMO_ENHANCER
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    unet = load_enhancer(FILE).model.diffusion_model.float()
    unet.compute_dtype = torch.float32
    task = make_task(trained.folder)
    x, given = conditions(task)
    with Run(task, trained.folder, RECIPE).averaged():
        expected = run(task.network, x, torch.tensor([700]), given)
        mended = mend(task.network, x, given, strength=0.5, steps=4)
    torch.testing.assert_close(run(unet, x, torch.tensor([700]), given), expected, atol=2e-2, rtol=2e-2)
    assert mended.shape == x.shape and mended.isfinite().all()


def test_the_committed_file_is_of_the_stage():
    weights = load_file(demo.MODEL)
    assert detect(shapes_of(weights)) == DEMO_ENHANCER
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert demo.MODEL.stat().st_size < 12e6


def test_the_demo_enhancer_brings_a_worn_video_nearer_to_the_true_one():
    """One window of a video; `benchmarks/demo_enhancer.py` has the numbers of whole ones."""
    given, truth = demo.worn_video(demo.FIRST_SEED + 100, next(iter(demo.WEARS.values())), frames=8)
    made = demo.quality(demo.enhanced(demo.MODEL, given), truth)
    alone = demo.quality(demo.through_vae(demo.MODEL, given), truth)
    assert made.psnr > alone.psnr > demo.quality(given, truth).psnr
    assert made.flicker < 0.7 * alone.flicker
