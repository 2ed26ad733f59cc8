"""Training on the host's own classes: it learns, resumes bit for bit, and what it exports is what the pack loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.frames import write_video
from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.config import Level, StreamingSVDConfig
from streaming_core.models.streamingsvd.detect import detect_streamingsvd
from streaming_core.models.towers import ClipVisionConfig, VaeConfig
from tests import training_runs
from tests.training_runs import BREAK, STEPS, assert_same_run, go_on, same, train
from training import __main__ as command
from training import stages
from training.configs import DEMO_SVD
from training.control_frames import with_drift
from training.diffusion import Encoder, draw_sigmas
from training.export import FILES, export
from training.export import main as export_command
from training.files import streamingsvd
from training.footage import FolderSource, VideoSource, clip_of
from training.layout import CPU, LATENT_SCALE, Base, run_unet, stage_weights, trained_base, vae_base
from training.loop import Recipe, Run, read_log
from training.pool import make_pool, read_pool, write_pool
from training.stages import STAGES
from training.svd_cam import SvdCamTask, run_with_cam
from training.svd_unet import SvdUnetTask
from training.task import Clips
from training.vae import VaeTask, crop_around_movement
from training.videos import VARIETIES, make_video

pytestmark = pytest.mark.slow
SIZE = 32
LATENT = SIZE // 8
MINIATURE = StreamingSVDConfig(
    cam=replace(DEMO_SVD.cam, unet=replace(DEMO_SVD.cam.unet, levels=(Level(64, (1,), True), Level(64, (0,), False)))),
    image_encoder=VaeConfig(32, (1, 1, 1, 1), 1, 4, temporal=False),
    first_stage=VaeConfig(32, (1, 1, 1, 1), 1, 4, temporal=True),
    clip_vision=ClipVisionConfig(64, 2, 1, 128, 56, 224, 64),
)
RECIPE = Recipe(learning_rate=2e-3, matrix_rate=0.02, warmup_steps=3, average_decay=0.8, seed=5)


class OneVideo:
    """The same clip every time: twenty steps of CAM show on a video that they have seen, and on no other."""

    def draw(self, generator, num_frames, starts, anchor_frame):
        return clip_of(make_video(1, SIZE), num_frames, starts[0], anchor_frame)


def make_task(stage: str, folder: Path):
    """A new task of a miniature, on what the folder holds of earlier stages."""
    if stage == "vae":
        return VaeTask(SIZE, batch=2, config=MINIATURE)
    if stage == "unet":
        base, pool = vae_base(folder), read_pool(folder, SIZE, "narrow")
        return SvdUnetTask(base, Clips(SIZE, pool=pool, batch=1, frames=4), MINIATURE.cam.unet)
    return SvdCamTask(trained_base(folder), OneVideo(), SIZE, batch=1, frames=4, overlap=2)


def encoder_of(folder: Path) -> Encoder:
    base = vae_base(folder)
    return Encoder(base.vae(CPU), base.clip_vision(), 192, CPU)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All three stages, 20 steps each, in one folder."""
    import_host()
    import_pack()
    folder, stages = tmp_path_factory.mktemp("trained"), {}
    for stage in ("vae", "unet", "cam"):
        half_way = tmp_path_factory.mktemp("half_way") / stage
        stages[stage] = train(make_task(stage, folder), folder, half_way, RECIPE)
        if stage == "vae":
            write_pool(make_pool(encoder_of(folder), SIZE, "narrow", 2, 9), folder, SIZE, "narrow")
    return stages


@pytest.mark.parametrize("stage", ("vae", "unet", "cam"))
def test_the_loss_falls(trained, stage):
    assert trained[stage].after < 0.95 * trained[stage].before


@pytest.mark.parametrize("stage", ("vae", "unet", "cam"))
def test_a_killed_run_goes_on_bit_for_bit(trained, stage):
    """From its checkpoint of step 10, with more in its log than in there, by objects that know nothing of the rest."""
    half_way = trained[stage].half_way
    with (half_way / f"{stage}.jsonl").open("a") as log:
        log.write('{"step": 11, "loss": 0.0}\n{"step": 1')
    go_on(lambda: make_task(stage, half_way), half_way, RECIPE)
    assert_same_run(trained[stage].folder, half_way, stage)


def test_a_stopped_run_goes_on_bit_for_bit(trained, tmp_path):
    """Here the whole run has not even saved half way, which must not matter either."""
    run = Run(make_task("vae", tmp_path), tmp_path, RECIPE)
    run.train(steps=STEPS, stopped=lambda: run.progress.step == BREAK)
    assert run.progress.step == BREAK and not run.progress.finished
    Run(make_task("vae", tmp_path), tmp_path, RECIPE).train(steps=STEPS)
    whole = tmp_path / "whole"
    Run(make_task("vae", whole), whole, RECIPE).train(steps=STEPS)
    assert_same_run(tmp_path, whole, "vae")
    assert_same_run(tmp_path, trained["vae"].folder, "vae")


@torch.no_grad()
def test_clips_of_a_pool_come_with_the_latents_of_their_frames(trained):
    folder = trained["vae"].folder
    source = VideoSource(SIZE, "narrow", read_pool(folder, SIZE, "narrow"))
    clip = source.draw(torch.Generator().manual_seed(3), 4, range(6), None)
    encoded = encoder_of(folder).encode(clip.footage.frames)
    torch.testing.assert_close(clip.latents, encoded, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert torch.equal(clip.anchor, clip.footage.frames[:1]) and torch.equal(clip.anchor_latent, clip.latents[0])
    elsewhere = source.draw(torch.Generator().manual_seed(3), 4, (5,), 2)
    expected = encoder_of(folder).encode(elsewhere.anchor)[0]
    torch.testing.assert_close(elsewhere.anchor_latent, expected, atol=2e-3, rtol=2e-3)
    videos = [make_video(seed, SIZE).render(0, 9).frames for seed in (0, 1)]
    assert any(torch.equal(video[s : s + 4], clip.footage.frames) for video in videos for s in range(6))
    with pytest.raises(SettingsError, match="videos have 9 frames and frame 10 was asked for"):
        source.draw(torch.Generator(), 4, (6,), 0)


def test_a_pool_of_other_videos_is_refused(trained, tmp_path):
    with pytest.raises(SettingsError, match="holds narrow videos of 32 pixels, not wide ones of 64"):
        read_pool(trained["vae"].folder, 64, "wide")
    with pytest.raises(SettingsError, match="run python -m training --stage pool"):
        read_pool(tmp_path, 64, "wide")
    assert make_pool(encoder_of(trained["vae"].folder), SIZE, "narrow", 2, 9, stopped=lambda: True) is None


def test_a_frozen_unet_is_not_trained(trained):
    cam = trained["cam"].task
    stored = trained_base(trained["cam"].folder).unet(torch.device("cpu")).state_dict()
    assert same(dict(stored), dict(cam.unet.state_dict()))
    assert all(parameter.grad is None for parameter in cam.unet.parameters())


@pytest.fixture(scope="module")
def loaded(trained):
    """What Load StreamingSVD makes of the exported file, and the file."""
    import folder_paths
    from comfyui_streamingt2v.nodes.host.svd.load import load_streamingsvd

    path = Path(folder_paths.get_folder_paths("checkpoints")[0]) / "trained.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    export(trained["cam"].folder, into=path.parent, name=path.name)
    return load_streamingsvd(path.name), path


def test_a_run_can_begin_with_what_another_one_wrote(trained, loaded, tmp_path):
    """With its own file, or with the whole one that was exported, whose VAE then makes the pool, too."""
    folder, whole = trained["cam"].folder, loaded[1]
    words = ["--out", str(tmp_path), "--size", str(SIZE), "--base", str(whole), "--frames", "14"]
    encode = STAGES["pool"].encode
    assert encode(command.arguments(["--stage", "pool", *words, "--pool-videos", "2"]), lambda: False)
    own = make_pool(encoder_of(folder), SIZE, "narrow", 2, 14).latents
    torch.testing.assert_close(read_pool(tmp_path, SIZE, "narrow").latents, own, atol=0.05, rtol=0.02)
    words = ["--stage", "cam", *words[:-1], "4", "--overlap", "2"]
    run = Run(make_task("cam", folder), folder, RECIPE)
    with run.averaged():
        for start, precision in ((folder / "cam.safetensors", 1e-5), (whole, 2e-3)):  # the whole file is float16
            begun = command.make_task(command.arguments([*words, "--start", str(start)])).network.state_dict()
            for name, tensor in run.task.network.state_dict().items():
                torch.testing.assert_close(begun[name], tensor, atol=precision, rtol=precision)


def test_a_stage_is_found_in_a_whole_file(trained, loaded):
    for stage in ("unet", "cam"):
        alone = load_file(trained[stage].folder / f"{stage}.safetensors")
        found = stage_weights(loaded[1], stage)
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=2e-3)


def test_drifted_frames_have_other_colors_and_the_same_shapes():
    frames = make_video(1, SIZE).render(0, 2).frames
    drifted = with_drift(frames, torch.Generator().manual_seed(4))
    assert drifted.shape == frames.shape and 0 <= drifted.min() and drifted.max() <= 1
    assert (drifted - frames).abs().amax() > 0.03
    alike = frames[:, :, :1, :1].expand_as(frames)  # a place of one color stays one
    assert with_drift(alike, torch.Generator().manual_seed(4)).std(dim=(0, 2, 3)).max() < 1e-6


def test_cam_sees_drifted_frames_and_is_to_make_undrifted_ones(trained):
    """Of two draws that differ in the drift alone, the control frames differ and what is wanted does not."""
    task, worn = trained["cam"].task, []
    clip = task.source.draw(torch.Generator(), 4, task.starts, 1)
    latents = task.encoder.encode(clip.footage.frames)
    for seed in range(40):
        worn.append((task._worn(clip, latents, torch.Generator().manual_seed(seed)) + 1) / 2)
    cast = torch.stack([(frames - clip.footage.frames[:2]).mean(dim=(0, 2, 3)).abs().max() for frames in worn])
    assert 0.25 < (cast > 0.01).float().mean() < 0.75


def test_the_export_has_the_official_layout(loaded):
    from streaming_core.models.streamingsvd.shapes import official_shapes

    tensors = load_file(loaded[1])
    assert detect_streamingsvd(shapes_of(tensors)) == MINIATURE
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    text = "conditioner.embedders.0.open_clip.model."
    official = {key: shape for key, shape in official_shapes(MINIATURE).items() if "visual." in key or text not in key}
    assert shapes_of(tensors) == official


@torch.no_grad()
def test_the_loaded_vae_is_the_trained_one(loaded, trained):
    """Latents have the official scale, and images come back as they did while training."""
    frames = make_video(1, SIZE).render(0, 3).frames
    averaged = Base(vae_base(trained["vae"].folder).tensors).vae(torch.device("cpu"))
    latents = loaded[0].vae.encode(frames.movedim(1, -1))
    torch.testing.assert_close(latents, averaged.encode(frames * 2 - 1), atol=0.05, rtol=0.01)
    from comfyui_streamingt2v.nodes.host.vae import decode_clip

    decoded = decode_clip(loaded[0].vae, latents)
    torch.testing.assert_close(decoded, ((averaged.decode(latents) + 1) / 2).clamp(0, 1), atol=5e-3, rtol=0)
    run = Run(make_task("vae", trained["vae"].folder), trained["vae"].folder, RECIPE)
    with run.averaged():
        raw = run.task.network
        torch.testing.assert_close(averaged.decode(latents), raw.decode(raw.encode(frames * 2 - 1)), atol=1e-2, rtol=0)
        held_out = averaged.encode(run.task._held_out())
    size = held_out.square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(size * LATENT_SCALE, torch.ones(4), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_first_stage_alone_encodes_alike(trained):
    """The official file has its encoder twice, once with the convolution behind it folded in."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfyui_streamingt2v.nodes.host import vae

    tensors = vae_base(trained["vae"].folder).tensors
    prefix = "first_stage_model."
    folded = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix + "encoder.")}
    prefix = "conditioner.embedders.3.encoder."
    image = AutoencoderKL(ddconfig=vae.autoencoder_params(MINIATURE.image_encoder), embed_dim=4)
    image.load_state_dict({key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}, strict=True)
    frames = make_video(1, SIZE).render(0, 2).frames * 2 - 1
    latents = image.eval().encode(frames)
    assert latents.shape == (2, 4, LATENT, LATENT) and image.decode(latents).shape == frames.shape
    image.encoder.load_state_dict({key.removeprefix("encoder."): t for key, t in folded.items()}, strict=True)
    torch.testing.assert_close(image.encoder(frames)[:, :4], latents, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_loaded_networks_compute_what_was_trained(loaded, trained):
    """UNet and CAM as the pack's sampler runs them, image latents unscaled, against the ones of training."""
    from comfyui_streamingt2v.nodes.host.cam import encode_control_frames
    from comfyui_streamingt2v.nodes.host.svd.cam import CamGuide

    task = trained["cam"].task
    frames, control = 4, make_video(2, SIZE).render(0, 2).frames
    generator = torch.Generator().manual_seed(3)
    noisy, image, context, vector = (
        torch.randn(4, *shape, generator=generator)
        for shape in ((4, LATENT, LATENT), (4, LATENT, LATENT), (1, 64), (192,))
    )
    levels = torch.full((frames,), 0.3)
    run = Run(make_task("cam", trained["cam"].folder), trained["cam"].folder, RECIPE)
    with run.averaged():
        x = torch.cat([noisy, image], dim=1)
        expected = run_with_cam(task.unet, run.task.network, control * 2 - 1, x, levels, context, vector, frames)
        plain = run_unet(task.unet, x, levels, context, vector, frames)
    cam = loaded[0].cam
    guide = CamGuide(cam, encode_control_frames(cam, control.movedim(1, -1)))
    unet = loaded[0].model.model.diffusion_model

    def call(x, timesteps, context, y, control, options, **kwargs):
        patches = {"output_block_patch": [guide.merge]}
        return unet(x, timesteps, context, y, transformer_options={**options, "patches": patches}, **kwargs)

    official = torch.cat([noisy, image / LATENT_SCALE], dim=1)
    found = guide.around_unet(call, official, levels, context, vector, None, {}, num_video_frames=frames)
    torch.testing.assert_close(found.float(), expected, atol=5e-3, rtol=5e-3)
    assert (expected - plain).abs().max() > 1e-3  # CAM does something


def test_the_exported_file_makes_a_video(loaded):
    from comfyui_streamingt2v.nodes.host import vae
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd

    sampling = svd.SamplingSettings(svd.default_sampling().sampler, torch.tensor([700.0, 2.0, 0.0]), 2.0, 1.0)
    parts = loaded[0]
    embedding = svd.embed_image(parts.clip_vision, torch.rand(1, 3, SIZE, SIZE))
    conds = svd.image_conditioning(
        parts.vae, torch.rand(1, 3, SIZE, SIZE), embedding, torch.zeros(1, 3, SIZE, SIZE), svd.MotionSettings()
    )
    model = svd.with_cam(parts.model, parts.cam, torch.rand(2, SIZE, SIZE, 3))
    latents = svd.sample_clip(model, sampling, conds, torch.randn(4, 4, LATENT, LATENT), 0, None)
    frames = vae.decode_clip(parts.vae, latents)
    assert frames.shape == (4, 3, SIZE, SIZE) and torch.isfinite(frames).all() and frames.std() > 0


def test_cam_for_a_file_and_clips_of_ones_own(loaded, tmp_path):
    """The command's own way: any file of the layout, any folder of videos; the CAM it brings along is exchanged."""
    write_video([make_video(4, 64).render(0, 9).frames.movedim(1, -1)], tmp_path / "clip.mp4", fps=7)
    words = ["--stage", "cam", "--out", str(tmp_path / "run"), "--base", str(loaded[1]), "--clips", str(tmp_path)]
    args = command.arguments(
        [*words, "--size", "64", "--frames", "4", "--overlap", "2", "--batch", "1", "--steps", "2"]
    )
    task = command.make_task(args)
    assert isinstance(task.source, FolderSource)
    run = Run(task, args.out, RECIPE)
    run.train(args.steps)
    [measured] = [entry["measured"] for entry in read_log(args.out / "cam.jsonl") if "measured" in entry]
    assert all(0 < value < 100 for value in measured.values())
    target = tmp_path / "own.safetensors"
    export(args.out, base=loaded[1], into=target.parent, name=target.name)
    own, base = load_file(target), load_file(loaded[1])
    assert own.keys() == base.keys()
    changed = {key for key in own if not torch.equal(own[key], base[key])}
    assert changed and all(key.startswith(("controlnet.", "model.diffusion_model.cross_attention_")) for key in changed)
    assert streamingsvd(Base(base), load_file(args.out / "cam.safetensors")).keys() == own.keys()


def test_a_time_limit_becomes_a_number_of_steps(trained, tmp_path, monkeypatch):
    """Fixed once, from the first steps, and kept by whoever resumes."""
    recipe = Recipe(warmup_steps=8)
    task = make_task("vae", tmp_path)
    monkeypatch.setattr(task, "loss", lambda generator: next(task.network.parameters()).square().sum())
    monkeypatch.setattr(task, "measure", dict)
    run = Run(task, tmp_path, recipe)
    run.train(minutes=1e-6, stopped=lambda: run.progress.step == 14)
    assert run.progress.steps == 16
    [fixed] = [entry for entry in read_log(tmp_path / "vae.jsonl") if "steps" in entry]
    assert fixed["steps"] == 16 and fixed["seconds_per_step"] > 0
    again = Run(task, tmp_path, recipe)
    assert again.train(minutes=100).finished and again.progress.step == 16


def test_other_settings_are_refused(trained):
    folder = trained["vae"].folder
    with pytest.raises(SettingsError, match="use the same settings or another folder"):
        Run(make_task("vae", folder), folder, Recipe(seed=6))
    with pytest.raises(SettingsError, match="either a number of steps or of minutes"):
        Run(make_task("vae", folder), folder, RECIPE).train()


def test_an_export_without_cam_says_what_is_missing(trained, tmp_path, capsys):
    for stage in ("vae", "unet"):
        shutil.copy(trained[stage].folder / f"{stage}.safetensors", tmp_path)
    assert export_command(["--out", str(tmp_path)]) == 1
    assert "run python -m training --stage cam" in capsys.readouterr().err


def test_a_stage_says_which_one_comes_before(tmp_path):
    with pytest.raises(SettingsError, match="vae.safetensors is not there yet; run python -m training --stage vae"):
        make_task("unet", tmp_path)
    with pytest.raises(SettingsError, match="leave nothing new in clips of 4"):
        SvdCamTask(Base({}), frames=4, overlap=4)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--minutes", "1", "--steps", "2"], "exclude each other"),
        (["--size", "100"], "multiple of 32"),
        (["--clips", "."], "--clips is for --stage cam, not for vae"),
        (["--base", "."], "--base is for --stage pool, unet, cam, ms_unet, ms_cam, enhancer, not for vae"),
        (["--start", "."], "droplet, lvdm_short, lvdm_pred, lvdm_interp, not for vae"),
        (["--stride", "1"], "--stride is for --stage lvdm_short, lvdm_pred, lvdm_interp, not for vae"),
    ],
)
def test_wrong_arguments_are_refused(words, problem, capsys):
    with pytest.raises(SystemExit):
        command.arguments(["--stage", "vae", "--out", "x", *words])
    assert problem in capsys.readouterr().err


def test_defaults_are_the_recipe():
    args = command.arguments(["--stage", "unet", "--out", "x"])
    assert (args.minutes, args.size, args.batch, args.frames, args.device) == (75, 96, 3, 8, "cpu")
    assert command.arguments(["--stage", "cam", "--out", "x"]).overlap == 3
    assert command.arguments(["--stage", "ms_cam", "--out", "x"]).overlap == 4
    assert command.arguments(["--stage", "pool", "--out", "x"]).frames == 33


def test_the_help_names_every_stage_and_what_it_makes(capsys):
    with pytest.raises(SystemExit):
        command.arguments(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {stage.name:<10}{stage.about}" in shown for stage in STAGES.values())
    assert "{" + ",".join(STAGES) + "}" in shown and set(FILES) < set(STAGES) and stages.VARIETIES == VARIETIES


def test_the_rate_warms_up_stays_and_falls():
    recipe = Recipe(learning_rate=1.0, warmup_steps=10, constant_share=0.6, final_share=0.03)
    rates = [recipe.share(step, 100) for step in range(100)]
    assert rates[:10] == [pytest.approx((k + 1) / 10) for k in range(10)]
    assert set(rates[10:60]) == {1.0}
    assert all(a > b for a, b in zip(rates[60:], rates[61:], strict=False)) and 0.03 < rates[-1] < 0.04
    assert recipe.share(50, None) == 1.0


def test_noise_levels_are_drawn_as_the_recipe_says():
    levels = draw_sigmas(20000, torch.Generator().manual_seed(0)).log()
    assert 0.02 <= levels.exp().min() and levels.exp().max() <= 700.01
    far = (levels > 0.4 + 3 * 1.4).float().mean()  # hardly any of the normal draws, 18 % of the uniform ones
    assert 0.15 * 0.18 * 0.7 < far < 0.15 * 0.18 * 1.4
    assert abs(levels.median() - 0.5) < 0.1


def test_crops_hold_what_moves():
    for seed in range(20):
        footage = make_video(seed, 128).render(0, 2)
        cut = crop_around_movement(footage, 64, torch.Generator().manual_seed(seed))
        assert cut.frames.shape == (2, 3, 64, 64) and cut.moving[0].max() > 0.5
    footage.moving.zero_()
    assert crop_around_movement(footage, 64, torch.Generator()).frames.shape == (2, 3, 64, 64)


def test_the_log_is_lines_of_json(trained):
    lines = (trained["unet"].folder / "unet.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries[-1].keys() == {"step", "measured"}
    assert entries[-1]["measured"].keys() == {"error_1", "error_3", "error_10", "error_50"}
    steps = [entry for entry in entries if "measured" not in entry]
    assert len(steps) == STEPS and len(entries) == STEPS + 2  # measured half way and at the end
    assert all(entry.keys() == {"step", "loss", "rate", "norm", "processor", "seconds"} for entry in steps)
