"""Training StreamingModelscope: it learns, resumes bit for bit, and the pack loads and computes what was trained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dev
from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.models.modelscope.apm import join_context
from streaming_core.models.modelscope.detect import detect_streamingmodelscope
from streaming_core.models.modelscope.shapes import official_shapes
from streaming_core.models.registry import shapes_of
from tests import training_runs
from tests.training_runs import assert_same_run, go_on, train
from training import __main__ as command_line
from training.configs import DEMO_MODELSCOPE, DEMO_SVD, DEMO_TEXT_TO_VIDEO
from training.control_frames import with_specks
from training.export import FILES, export
from training.export import main as export_command
from training.footage import VideoPool
from training.layout import CPU, Base, autoencoder_tensors, random_clip_vision, write_weights
from training.loop import Recipe, Run
from training.modelscope_cam import ModelscopeCamTask, run_with_cam_and_apm
from training.modelscope_towers import Prompts
from training.modelscope_unet import (
    SIGMAS,
    ModelscopeUnetTask,
    draw_captioned,
    draw_timesteps,
    nearest_timesteps,
    new_base_unet,
    run_base,
)
from training.pool import write_pool
from training.task import Clips
from training.vae import VaeTask
from training.videos import COLORS, HEADINGS, make_video

pytestmark = pytest.mark.slow
SIZE = 64
RECIPE = Recipe(learning_rate=5e-4, warmup_steps=3, average_decay=0.8, seed=5)
STAGES = ("ms_unet", "ms_cam")
FILE, BASE_FILE = FILES["ms_cam"]
OWN_FILE, OWN_BASE_FILE = "trained_modelscope.safetensors", "trained_modelscope_t2v.safetensors"
"""Not the names of the demo files: the host looks a name up in all folders of its kind, for other tests, too."""


def still_pool() -> VideoPool:
    """Two videos that stand still in one color each: twenty steps can learn them, and nothing need be encoded here."""
    colors = torch.randn(2, 1, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    return VideoPool(colors.expand(2, 12, 4, SIZE // 8, SIZE // 8).half())


def base_of(folder: Path) -> Base:
    vae = load_file(folder / "vae.safetensors")
    return Base({**autoencoder_tensors(vae), **random_clip_vision(DEMO_SVD.clip_vision)})


def make_task(stage: str, folder: Path):
    clips = Clips(SIZE, pool=still_pool(), batch=1, frames=4)
    if stage == "ms_unet":
        return ModelscopeUnetTask(base_of(folder), clips)
    return ModelscopeCamTask(base_of(folder), load_file(folder / "ms_unet.safetensors"), clips, overlap=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with training_runs.one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages, 20 steps each, behind a VAE of first weights, in one folder.

    Judged by 18 draws: six would be decided by the one or two that have the most noise.
    """
    import_host()
    import_pack()
    folder, stages = tmp_path_factory.mktemp("trained"), {}
    write_weights(folder / "vae.safetensors", VaeTask(SIZE, batch=1).weights())
    for stage in STAGES:
        half_way = tmp_path_factory.mktemp("half_way") / stage
        stages[stage] = train(make_task(stage, folder), folder, half_way, RECIPE, draws=18)
    return stages


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(trained, stage):
    assert trained[stage].after < 0.95 * trained[stage].before


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_bit_for_bit(trained, stage):
    folder, half_way = trained[stage].folder, trained[stage].half_way
    go_on(lambda: make_task(stage, half_way), half_way, RECIPE)
    assert_same_run(folder, half_way, stage)


def test_a_stage_begins_with_what_another_run_or_a_whole_file_holds(trained, tmp_path):
    """As the command line hands it over."""
    folder, words = trained["ms_unet"].folder, ["--size", str(SIZE), "--frames", "4", "--overlap", "2"]
    export(folder, "ms_cam", into=tmp_path)
    write_pool(still_pool(), tmp_path, SIZE, "narrow")
    write_weights(tmp_path / "ms_unet.safetensors", load_file(folder / "ms_unet.safetensors"))
    write_weights(tmp_path / "base.safetensors", base_of(folder).tensors)
    words += ["--out", str(tmp_path), "--base", str(tmp_path / "base.safetensors")]
    files = {"ms_unet": "demo_modelscope_t2v.safetensors", "ms_cam": "demo_streamingmodelscope.safetensors"}
    for stage, name in files.items():
        want = load_file(folder / f"{stage}.safetensors")
        for start, precision in ((folder / f"{stage}.safetensors", 0), (tmp_path / name, 2e-3)):  # these are float16
            arguments = command_line.arguments(["--stage", stage, *words, "--start", str(start)])
            begun = command_line.make_task(arguments).weights()
            assert begun.keys() == want.keys()
            for key, tensor in want.items():
                torch.testing.assert_close(begun[key], tensor, atol=precision, rtol=precision)


def test_specks_are_few_and_other_ones_in_each_frame():
    frames = torch.full((2, 3, SIZE, SIZE), 0.3)
    speckled = with_specks(frames, 0.05, torch.Generator().manual_seed(1))
    assert 0 <= speckled.min() and speckled.max() <= 1
    changed = ((speckled - frames).abs() > 0.02).any(dim=1)
    assert 0.01 < changed.float().mean() < 0.4 and not torch.equal(changed[0], changed[1])
    assert torch.equal(with_specks(frames, 0.0, torch.Generator().manual_seed(1)), frames)


def test_only_cam_and_apm_are_trained(trained):
    task, stored = trained["ms_cam"].task, load_file(trained["ms_cam"].folder / "ms_unet.safetensors")
    own = task.unet.state_dict()
    assert all(torch.equal(own[key], stored[key]) for key in stored)
    assert own.keys() - stored.keys() == {key for key in own if ".attn2." in key and "conv" in key or "alpha" in key}
    assert all(parameter.grad is not None for parameter in task.network.parameters())


@torch.no_grad()
def test_the_unet_begins_by_taking_all_for_noise():
    unet = new_base_unet(DEMO_TEXT_TO_VIDEO, torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = run_base(unet, unet.project_context(torch.zeros(1, 77, 64)), x, torch.tensor([900]))
    torch.testing.assert_close(noise, x / x.square().mean(dim=(3, 4), keepdim=True).sqrt(), atol=1e-3, rtol=1e-3)


def test_prompts_of_different_words_are_different_vectors(trained):
    prompts = Prompts(DEMO_MODELSCOPE.text_encoder, CPU)
    words = [f"a {color} ball moving {heading}" for color in COLORS for heading in HEADINGS]
    vectors = torch.cat([prompts(text)[:, -1] for text in words])
    assert prompts("").abs().max() == 0
    alike = torch.nn.functional.cosine_similarity(vectors[:, None], vectors, dim=-1) - torch.eye(len(words))
    assert alike.max() < 0.95 and alike.abs().mean() < 0.5


def test_the_image_tower_tells_colors_apart(trained):
    """Frames of one color lie closer together than those of two; a gray image is nothing."""
    encoder = trained["ms_cam"].task.encoder
    videos = [make_video(seed, SIZE) for seed in range(24)]
    seen = torch.cat([encoder.embed(video.render(0, 1).frames)[:, 0] for video in videos])
    distances, colors = torch.cdist(seen, seen), [video.sprites[0].color for video in videos]
    same = torch.tensor([[one == other for other in colors] for one in colors])
    own = same & ~torch.eye(len(videos), dtype=torch.bool)
    assert distances[own].max() < distances[~same].min()
    assert encoder.embed(torch.full((1, 3, SIZE, SIZE), 0.5)).abs().max() < 0.1


def test_captions_are_those_of_the_clip_or_of_the_anchor(trained):
    source = trained["ms_unet"].task.source
    for seed in range(4):
        drawn, anchored = (
            draw_captioned(source, torch.Generator().manual_seed(seed), 4, range(2, 6), anchor) for anchor in (None, 0)
        )
        videos = [make_video(video, SIZE) for video in range(2)]
        assert drawn.caption in {video.caption(start) for video in videos for start in range(2, 6)}
        assert anchored.caption in {video.caption(0) for video in videos}
        assert torch.equal(drawn.clip.latents, anchored.clip.latents) and drawn.clip.latents.dtype == torch.float32


def test_levels_are_the_hosts(loaded):
    """The host's sampler asks for the timestep of a level: it is the one that was trained."""
    sampling = loaded.model.model.model_sampling
    torch.testing.assert_close(sampling.sigmas, SIGMAS, rtol=1e-4, atol=1e-6)
    levels = torch.tensor([0.1, 1.0, 3.3, 14.6])
    assert torch.equal(sampling.timestep(levels).long(), nearest_timesteps(levels))
    drawn = SIGMAS[draw_timesteps(20000, torch.Generator().manual_seed(0))].log()
    # 0.75 * Phi((x - 1) / 1.1) + 0.25 * (x - ln 0.1) / (ln 14.6 - ln 0.1) is 0.5 at 0.87 and 0.910 at 2.4.
    assert abs(drawn.median() - 0.87) < 0.05 and abs((drawn > 2.4).float().mean() - 0.090) < 0.01


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory):
    """What Load StreamingModelscope makes of the exported file."""
    import folder_paths
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope

    folders = [Path(folder_paths.get_folder_paths(name)[0]) for name in ("checkpoints", "diffusion_models")]
    paths = export(trained["ms_cam"].folder, "ms_cam", into=tmp_path_factory.mktemp("exported"))
    for path, folder, name in zip(paths, folders, (OWN_FILE, OWN_BASE_FILE), strict=True):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    return load_modelscope.load_streamingmodelscope(OWN_FILE)


def test_the_export_has_the_official_layout(trained):
    """By the command itself, in a process of its own: there nobody has set up the host yet."""
    folder = trained["ms_cam"].folder
    words = [sys.executable, "-m", "training.export", "--stage", "ms_cam", "--out", str(folder)]
    run = subprocess.run(words, cwd=dev.ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0 and "MB" in run.stdout, run.stderr
    shapes = shapes_of(load_file(folder / FILE))
    assert detect_streamingmodelscope(shapes) == DEMO_MODELSCOPE
    unused = {"image_encoder.model.text_projection", "image_encoder.model.logit_scale"}
    assert shapes == {key: shape for key, shape in official_shapes(DEMO_MODELSCOPE).items() if key not in unused}
    assert sum((folder / name).stat().st_size for name in (FILE, BASE_FILE)) < 34e6


@torch.no_grad()
def test_the_loaded_networks_compute_what_was_trained(loaded, trained):
    """UNet, CAM, APM and both towers as the pack's sampler runs them, against the ones of training."""
    from comfyui_streamingt2v.nodes.host.cam import encode_control_frames
    from comfyui_streamingt2v.nodes.host.modelscope import apm as modelscope_apm
    from comfyui_streamingt2v.nodes.host.modelscope import cam as modelscope_cam
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope

    task, frames = trained["ms_cam"].task, 4
    video = make_video(3, SIZE)
    control, anchor = video.render(4, 6).frames, video.render(0, 1).frames
    run = Run(make_task("ms_cam", trained["ms_cam"].folder), trained["ms_cam"].folder, RECIPE)
    task = run.task
    x = torch.randn(1, frames, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(3))
    text = task.prompts(video.caption(0))
    with run.averaged():
        tokens = task.network.projector(task.encoder.embed(anchor))
        gray = task.network.projector(task.gray)
        context = join_context(text, tokens)
        expected = run_with_cam_and_apm(
            task.unet, task.network.cam, context, text, control * 2 - 1, x, torch.tensor([700])
        )
    own = modelscope_apm.anchor_tokens(loaded.clip_vision, loaded.apm, anchor)
    torch.testing.assert_close(own.positive, tokens, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(own.negative, gray, atol=2e-3, rtol=2e-3)
    encoded = modelscope.encode_prompts(loaded.clip, [video.caption(0)])[video.caption(0)]
    torch.testing.assert_close(encoded[0][0].float(), text, atol=5e-3, rtol=5e-3)
    guide = modelscope_cam.ModelscopeCamGuide(loaded.cam, encode_control_frames(loaded.cam, control.movedim(1, -1)))
    unet = loaded.model.model.diffusion_model
    memory = unet.project_context(join_context(encoded[0][0], own.positive))

    def call(x, timesteps, context, control, options, cam_memory=None, **kwargs):
        return unet(x, timesteps, context, control, options, memory=memory, **kwargs)

    cam_memory = guide.project_text(encoded[0][0])
    found = guide.around_unet(call, x[0], torch.full((frames,), 700.0), None, None, {}, cam_memory=cam_memory)
    torch.testing.assert_close(found.float(), expected[0], atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_the_loaded_vae_is_the_trained_one(loaded, trained):
    frames = make_video(1, SIZE).render(0, 2).frames
    vae = base_of(trained["ms_unet"].folder).vae(CPU)
    latents = loaded.vae.encode(frames.movedim(1, -1))
    torch.testing.assert_close(latents, vae.encode(frames * 2 - 1), atol=0.05, rtol=0.02)
    decoded = loaded.vae.decode(latents).movedim(-1, 1)
    torch.testing.assert_close(decoded, ((vae.decode(latents) + 1) / 2).clamp(0, 1), atol=1e-2, rtol=0)


def test_text_becomes_a_video_of_several_chunks(loaded):
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope

    from streaming_core.loop.plan import VideoPlan
    from streaming_core.loop.steps import start_video, video_chunks

    prompts = modelscope.encode_prompts(loaded.clip, ["a red ball moving up left", ""])
    sampler = modelscope.ModelscopeChunkSampler(
        model=loaded.model, cam=loaded.cam, vae=loaded.vae, prompts=(prompts["a red ball moving up left"],),
        negative=prompts[""], first_model=load_modelscope.load_modelscope_unet(OWN_BASE_FILE),
        sampling=modelscope.official_sampling(2, 2.0), first_sampling=modelscope.first_clip_sampling(2, 2.0),
    )  # fmt: skip
    plan = VideoPlan(8, 4, 2, seed=1, height=SIZE, width=SIZE)
    with torch.inference_mode():
        state, first = start_video(plan, sampler)
        frames = torch.cat([first, *(part for _, part in video_chunks(state, sampler))])
    assert frames.shape == (8, 3, SIZE, SIZE) and frames.isfinite().all() and frames.std() > 0


def test_impossible_settings_are_refused(trained, tmp_path, capsys):
    with pytest.raises(SettingsError, match="leave nothing new in clips of 4"):
        ModelscopeCamTask(Base({}), {}, Clips(frames=4), overlap=4)
    other = replace(RECIPE, seed=6)
    with pytest.raises(SettingsError, match="use the same settings or another folder"):
        Run(make_task("ms_unet", trained["ms_unet"].folder), trained["ms_unet"].folder, other)
    assert export_command(["--out", str(tmp_path), "--stage", "ms_cam"]) == 1
    assert "ms_unet.safetensors is not there yet" in capsys.readouterr().err
