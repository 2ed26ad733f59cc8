"""Training DropletVideo: it learns, resumes bit for bit, and the pack loads and computes what was trained."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import dropletvideo_speed as speed
from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.models.dropletvideo.conditioning import inpaint_channels
from streaming_core.models.dropletvideo.config import DEFAULT_SCALING_FACTOR
from streaming_core.models.dropletvideo.detect import detect, detect_vae
from streaming_core.models.registry import shapes_of
from streaming_core.schedules.dropletvideo import official_steps
from tests import training_runs
from tests.training_runs import assert_same_run, go_on, train
from training import __main__ as command_line
from training.configs import DEMO_DROPLET, DEMO_DROPLET_VAE
from training.droplet import DropletTask, new_transformer, noised
from training.droplet_pool import KNOWN, encoded, known_of, latent_motion, make_clips
from training.droplet_vae import DropletVaeTask, build_vae, new_vae, rescaled, small_copy
from training.droplet_videos import FASTEST, OWN_FPS, SLOWEST, TimedClip, draw_timed
from training.export import FILES, export
from training.export import main as export_command
from training.layout import CPU
from training.loop import Recipe, step_generator
from training.videos import NARROW_SPEED, make_video

pytestmark = pytest.mark.slow
SIZE, FRAMES, CLIPS = 32, 9, 8
RECIPE = Recipe(learning_rate=2e-3, warmup_steps=3, average_decay=0.8, seed=5)
STAGES = ("droplet_vae", "droplet")


def untrained_vae():
    return build_vae(new_vae(DEMO_DROPLET_VAE, torch.Generator().manual_seed(0)).state_dict(), DEMO_DROPLET_VAE, CPU)


def make_task(stage: str):
    if stage == "droplet_vae":
        return DropletVaeTask(SIZE, batch=2, frames=FRAMES)
    vae = untrained_vae()
    return DropletTask(vae, make_clips(vae, SIZE, "narrow", CLIPS, FRAMES, CPU), SIZE, batch=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages, 20 steps each, in one folder; the transformer behind a VAE of first weights."""
    import_host()
    import_pack()
    folder, stages = tmp_path_factory.mktemp("trained"), {}
    for stage in STAGES:
        half_way = tmp_path_factory.mktemp("half_way") / stage
        stages[stage] = train(make_task(stage), folder, half_way, RECIPE, draws=12)
    return stages


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(trained, stage):
    assert trained[stage].after < 0.95 * trained[stage].before


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_bit_for_bit(trained, stage):
    folder, half_way = trained[stage].folder, trained[stage].half_way
    go_on(lambda: make_task(stage), half_way, RECIPE)
    assert_same_run(folder, half_way, stage)


def test_the_frame_rate_sets_how_far_the_ball_moves():
    video = make_video(3, SIZE)

    def step(fps: float) -> float:
        pose = video.sprites[0].path.pose(torch.arange(2, dtype=torch.float64) * (OWN_FPS / fps))
        return math.dist((pose.x[0], pose.y[0]), (pose.x[1], pose.y[1]))

    assert step(OWN_FPS) == pytest.approx(NARROW_SPEED * SIZE, rel=1e-6)
    assert step(32.0) == pytest.approx(NARROW_SPEED * SIZE * OWN_FPS / 32, rel=1e-6)
    own = TimedClip(video, OWN_FPS, 4).render(3)
    assert torch.equal(own.frames, video.render(4, 7).frames)
    rates = [draw_timed(step_generator(0, "rates", k), SIZE, "narrow").fps for k in range(400)]
    assert SLOWEST <= min(rates) < 3.5 and 34 < max(rates) <= FASTEST
    assert abs(torch.tensor(rates).log().mean() - math.log(SLOWEST * FASTEST) / 2) < 0.15


@torch.no_grad()
def test_pooled_clips_are_what_the_sampler_would_be_given():
    vae, generator = untrained_vae(), torch.Generator().manual_seed(2)
    timed = [draw_timed(generator, SIZE, "narrow") for _ in KNOWN]
    clips = encoded(vae, timed, list(KNOWN), 9, CPU)
    for index, (clip, known) in enumerate(zip(timed, KNOWN, strict=True)):
        want = inpaint_channels(known_of(clip.render(9).frames, *known), vae.encode, vae.config.scaling_factor)
        torch.testing.assert_close(clips.inpaint[index].float(), want[0], atol=2e-3, rtol=2e-3)
        again = clips.timed(index, SIZE, "narrow")
        assert again == clip
    first = clips.moving[0].float() / 255
    assert torch.equal(first, (255 * latent_motion(timed[0].render(9).moving, torch.Size((3, 4, 4)))).round() / 255)
    assert first.max() == 1 and (first == 0).any()


@torch.no_grad()
def test_another_scale_of_latents_is_the_same_autoencoder():
    vae = untrained_vae()
    generator = torch.Generator().manual_seed(4)
    for parameter in vae.parameters():  # no layer may be silent here
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    video = torch.rand(1, 3, 9, SIZE, SIZE, generator=generator) * 2 - 1
    latents = vae.encode(video)
    other = build_vae(rescaled(vae.state_dict(), latents.square().mean(dim=(0, 2, 3, 4)).sqrt()), vae.config, CPU)
    scaled = other.encode(video)
    size = scaled.square().mean(dim=(0, 2, 3, 4)).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 1 / DEFAULT_SCALING_FACTOR), rtol=1e-4, atol=0)
    torch.testing.assert_close(other.decode(scaled), vae.decode(latents), rtol=1e-3, atol=1e-4)
    grown = (scaled / latents).mean(dim=(0, 2, 3, 4)).log() * 2
    added = (other.moments(video)[1] - vae.moments(video)[1]).mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(added, grown, rtol=1e-3, atol=1e-3)


def test_the_guide_is_a_small_copy():
    video = torch.zeros(1, 3, 9, 16, 16)
    video[:, :, 0], video[:, :, 5:, :8] = 1.0, 2.0
    small = small_copy(video)
    assert small.shape == (1, 3, 3, 2, 2)
    assert (small[:, :, 0] == 1).all() and (small[:, :, 1] == 0).all() and (small[:, :, 2, 0] == 2).all()


def test_noise_and_answer_are_those_of_the_official_sampler():
    """One step of DDIM with the true answer leads from any level to the clip; the last level holds no signal."""
    latents, noise = torch.randn(2, 3, 16, 4, 4), torch.randn(2, 3, 16, 4, 4)
    x, v = noised(latents, noise, torch.tensor([999, 999]))
    assert torch.equal(x, noise) and torch.equal(v, -latents)
    step = official_steps(4)[1]
    x, v = noised(latents, noise, torch.tensor([step.timestep] * 2))
    torch.testing.assert_close(step.alpha.sqrt() * x - (1 - step.alpha).sqrt() * v, latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_transformer_begins_with_nothing():
    network = new_transformer(DEMO_DROPLET, torch.Generator().manual_seed(0))
    inputs = torch.randn(1, 2, 16, 4, 4), torch.randn(1, 2, 17, 4, 4), torch.tensor([500.0]), torch.randn(1, 7, 64)
    assert network(*inputs, torch.tensor([8.0])).abs().max() == 0


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export(trained["droplet"].folder, "droplet", into=folder)


def test_the_export_has_the_official_layout(exported):
    path, vae_path = exported
    assert [each.relative_to(path.parent).as_posix() for each in exported] == list(FILES["droplet"])
    assert detect(shapes_of(load_file(path))) == DEMO_DROPLET
    settings = json.loads(vae_path.with_name("config.json").read_text("utf-8"))
    assert detect_vae(shapes_of(load_file(vae_path)), settings=settings) == DEMO_DROPLET_VAE
    assert not path.with_name("config.json").exists(), "it would be read for other files of that folder"
    assert {tensor.dtype for each in exported for tensor in load_file(each).values()} == {torch.float16}
    assert all(each.stat().st_size < 4e6 for each in exported)


@torch.no_grad()
def test_the_loaded_networks_compute_what_was_trained(exported, trained, monkeypatch):
    import folder_paths
    from comfyui_streamingt2v.nodes.host.dropletvideo import load, vae

    for name in ("diffusion_models", "vae"):
        _, endings = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(exported[0].parent)], endings))
    loaded = load.load_dropletvideo(*FILES["droplet"])
    weights = {stage: load_file(trained[stage].folder / f"{stage}.safetensors") for stage in STAGES}
    own_vae = build_vae(weights["droplet_vae"], DEMO_DROPLET_VAE, CPU)
    video = TimedClip(make_video(1, SIZE), 8.0, 0).render(FRAMES).frames.transpose(0, 1)[None] * 2 - 1
    latents = own_vae.encode(video)
    torch.testing.assert_close(vae.encode_video(loaded.vae, video), latents, atol=0.05, rtol=0.02)
    decoded = vae.decode_video(loaded.vae, latents)
    want = ((own_vae.decode(latents)[0].transpose(0, 1) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded[-len(want) :], want, atol=1e-2, rtol=0)
    network = trained["droplet"].task.network
    network.load_state_dict(weights["droplet"])
    generator = torch.Generator().manual_seed(3)
    shape = (1, 3, 16, SIZE // 8, SIZE // 8)
    x, known = torch.randn(shape, generator=generator), torch.randn(1, 3, 17, *shape[3:], generator=generator)
    inputs = x, known, torch.tensor([700.0]), torch.randn(1, 77, 64, generator=generator), torch.tensor([8.0])
    found = loaded.model.model.diffusion_model.float().denoise(*inputs)
    torch.testing.assert_close(found, network(*inputs), atol=2e-2, rtol=2e-2)


def test_the_command_line_makes_both_tasks(trained, tmp_path, capsys):
    words = ["--size", str(SIZE), "--frames", str(FRAMES), "--out", str(trained["droplet"].folder), "--batch", "2"]
    assert command_line.make_task(command_line.arguments(["--stage", "droplet_vae", *words])).frames == FRAMES
    words = ["--stage", "droplet", *words, "--pool-videos", str(CLIPS)]
    start = ["--start", str(trained["droplet"].folder / "droplet.safetensors")]
    begun = command_line.make_task(command_line.arguments([*words, *start]))
    want = load_file(trained["droplet"].folder / "droplet.safetensors")
    assert all(torch.equal(begun.weights()[key], tensor) for key, tensor in want.items())
    again = command_line.make_task(command_line.arguments(words))
    assert torch.equal(again.clips.latents, begun.clips.latents), "read, not made again"
    with pytest.raises(SettingsError, match="use another folder, or remove it"):
        command_line.make_task(command_line.arguments([*words[:-1], "16"]))
    with pytest.raises(SettingsError, match="8k \\+ 1 frames, not 13"):
        DropletVaeTask(SIZE, frames=13)
    assert export_command(["--out", str(tmp_path), "--stage", "droplet"]) == 1
    assert "droplet.safetensors is not there yet" in capsys.readouterr().err


def test_the_demo_moves_as_fast_as_it_is_told(trained):
    """Three of the videos of `benchmarks/dropletvideo_speed.py`, which has the numbers."""
    parts = speed.open_parts()
    videos = [make_video(speed.FIRST_SEED + number, speed.SIZE) for number in range(3)]
    moved = {}
    for fps in (4.0, 32.0):
        made = [speed.made(parts, TimedClip(video, fps, 0)) for video in videos]
        assert all(speed.with_ball(frames) > 0.8 for frames in made)
        moved[fps] = sum(map(speed.motion, made))
    assert moved[4.0] > speed.LEAST_RATIO * moved[32.0]
