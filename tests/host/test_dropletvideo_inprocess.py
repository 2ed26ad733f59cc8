"""DropletVideo on the host, with tiny weights: its sampler is the official one, and chunks continue each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from tiny_models.dropletvideo import (
    TINY,
    transformer_weights,
    vae_settings,
    write_tiny_dropletvideo,
)

import_host()
import_pack()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes import blending  # noqa: E402
from comfyui_streamingt2v.nodes.host import handed_out  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo import ddim, load, model, sampler, vae  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import videos  # noqa: E402
from comfyui_streamingt2v.streaming_core.errors import CheckpointError, SettingsError  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.remedies import Perturbation  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.script import Cue, Script  # noqa: E402
from comfyui_streamingt2v.streaming_core.models.dropletvideo.network import DropletVideo  # noqa: E402
from comfyui_streamingt2v.streaming_core.schedules.ddim import ddim_step  # noqa: E402
from comfyui_streamingt2v.streaming_core.schedules.dropletvideo import (  # noqa: E402
    dropletvideo_sigmas,
    official_steps,
)

SIZE = (32, 48)


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_dropletvideo(tmp_path_factory.mktemp("droplet"))


@pytest.fixture(scope="module")
def loaded(folder) -> load.Loaded:
    return loaded_from(folder)


def loaded_from(folder: Path, *names: str, **options) -> load.Loaded:
    """Load what lies below a folder, as if both of the host's folders were there."""
    saved = {key: folder_paths.folder_names_and_paths[key] for key in ("diffusion_models", "vae")}
    for key, (_, endings) in saved.items():
        folder_paths.folder_names_and_paths[key] = ([str(folder)], endings)
    weights = "diffusion_pytorch_model.safetensors"
    try:
        return load.load_dropletvideo(*(names or (f"transformer/{weights}", f"vae/{weights}")), **options)
    finally:
        folder_paths.folder_names_and_paths.update(saved)


def text(seed: int, tokens: int = 10) -> list:
    return [[torch.randn(1, tokens, TINY.text_width, generator=torch.Generator().manual_seed(seed)), {}]]


def official(noise: Tensor, inpaint: Tensor, conds: list, fps: float, steps: int, cfg: float) -> Tensor:
    """The official loop on the network itself: scaled latents `[1, F, C, h, w]`."""
    network = DropletVideo(TINY)
    network.load_state_dict(transformer_weights())
    x, speed = noise, torch.tensor([fps])
    for step in official_steps(steps):
        outputs = [network(x, inpaint, torch.tensor([step.timestep]), cond[0][0], speed) for cond in conds]
        x = ddim_step(x, outputs[1] + cfg * (outputs[0] - outputs[1]), step.alpha, step.alpha_next)
    return x


@pytest.mark.parametrize("steps", [1, 3, 5, 50])
@pytest.mark.parametrize("fps", [4.0, 32.0])
def test_the_host_samples_as_the_official_program(loaded, steps, fps):
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 16, 3, 4, 6, generator=generator)
    inpaint = torch.randn(1, 17, 3, 4, 6, generator=generator)
    conds = [sampler.with_options(text(seed), **{model.INPAINT: inpaint, model.FPS: fps}) for seed in (1, 2)]
    got = comfy.sample.sample_custom(
        loaded.model,
        noise,
        6.0,
        ddim.DropletDdim(steps),
        dropletvideo_sigmas(steps),
        *conds,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )
    wanted = official(noise.transpose(1, 2), inpaint.transpose(1, 2), [text(1), text(2)], fps, steps, 6.0)
    scale = loaded.vae.config.scaling_factor
    error = (got * scale - wanted.transpose(1, 2)).abs()
    assert error.max() < 2e-3 * wanted.abs().max() and error.mean() < 1e-4 * wanted.abs().mean()
    assert loaded.model.model.latent_format.scale_factor == scale


def test_stock_samplers_come_near(loaded):
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))
    conds, options = (text(1), text(2)), {"disable_pbar": True, "seed": 1}
    sigmas, empty = dropletvideo_sigmas(20), torch.zeros_like(noise)
    exact = comfy.sample.sample_custom(loaded.model, noise, 6.0, ddim.DropletDdim(20), sigmas, *conds, empty, **options)
    for name in ("euler", "ddim", "dpmpp_2m", "uni_pc"):
        stock = comfy.samplers.sampler_object(name)
        near = comfy.sample.sample_custom(loaded.model, noise, 6.0, stock, sigmas.clone(), *conds, empty, **options)
        assert near.isfinite().all()
        if name in ("euler", "ddim"):
            assert (near - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_masks_hold_what_they_hold(loaded):
    kept = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(5))
    got = comfy.sample.sample_custom(
        loaded.model,
        noise,
        6.0,
        ddim.DropletDdim(4),
        dropletvideo_sigmas(4),
        text(1),
        text(2),
        kept,
        noise_mask=mask,
        disable_pbar=True,
        seed=1,
    )
    assert torch.allclose(got[:, :, 0], kept[:, :, 0], atol=1e-4)
    assert not torch.allclose(got[:, :, 1:], kept[:, :, 1:], atol=0.1)


def test_the_vae_fits_the_hosts_nodes(loaded):
    images = torch.rand(9, *SIZE, 3, generator=torch.Generator().manual_seed(3))
    latents = loaded.vae.encode(images)
    assert latents.shape == (1, 16, 3, 4, 6)
    ours = vae.encode_video(loaded.vae, images.movedim(-1, 0).unsqueeze(0) * 2 - 1)
    assert torch.allclose(latents, ours, atol=1e-4)
    frames = loaded.vae.decode(latents)
    assert frames.shape == (1, 9, *SIZE, 3)
    assert torch.allclose(frames[0].movedim(-1, 1), vae.decode_video(loaded.vae, latents), atol=1e-5)
    assert loaded.vae.encode(images[:7]).shape[2] == 2, "what is no whole latent is left out"


# Chunks


def chunk_sampler(loaded: load.Loaded, **values) -> sampler.DropletChunkSampler:
    chosen = {
        "prompts": (text(1),),
        "negative": text(2),
        "sampler": ddim.DropletDdim(3),
        "sigmas": dropletvideo_sigmas(3),
    }
    return sampler.DropletChunkSampler(loaded.model, loaded.vae, **{**chosen, **values})


@pytest.fixture
def run_root(tmp_path, monkeypatch):
    for module in (videos, handed_out):
        if hasattr(module, "runs_root"):
            monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    return tmp_path


def make(chosen: sampler.DropletChunkSampler, frames: int, chunk_frames: int, name: str = "mine", script=None, **plan):
    image = torch.rand(1, *SIZE, 3, generator=torch.Generator().manual_seed(4))
    planned = videos.plan_video(
        num_frames=frames,
        chunk_frames=chunk_frames,
        overlap_frames=1,
        width=SIZE[1],
        height=SIZE[0],
        fit="crop",
        seed=plan.pop("seed", 5),
        anchor_frame=0,
        start_image=image,
        **plan,
    )
    return videos.make_video(chosen, planned if script is None else replace(planned, script=script), name)


@pytest.mark.parametrize(("chunk_frames", "prefix"), [(9, 1), (13, 4), (17, 5), (8, 1)])
def test_a_video_of_three_chunks_has_its_length_and_is_the_same_again(loaded, run_root, chunk_frames, prefix):
    """9 frames are an odd number of latents, 13 an even one, which decodes to three frames more."""
    chosen = chunk_sampler(loaded, prefix_frames=prefix)
    whole = 4 * round((chunk_frames - 1) / 4) + 1
    frames = 3 * whole - 2 * prefix
    video = make(chosen, frames, chunk_frames)
    read = video.read(0, len(video))
    assert read.shape == (frames, *SIZE, 3) and read.isfinite().all()
    again = make(chosen, frames, chunk_frames, "again")
    assert torch.equal(again.read(0, frames), read)
    other = make(chosen, frames, chunk_frames, "other", seed=6)
    assert not torch.equal(other.read(0, frames), read)


def test_a_longer_video_reuses_what_is_there(loaded, run_root, monkeypatch):
    chosen, made = chunk_sampler(loaded), []
    original = sampler.DropletChunkSampler._sample
    monkeypatch.setattr(
        sampler.DropletChunkSampler,
        "_sample",
        lambda self, chunk, *rest: (made.append(chunk.index), original(self, chunk, *rest))[1],
    )
    short = make(chosen, 17, 9).read(0, 17)
    longer = make(chosen, 25, 9).read(0, 25)
    assert made == [0, 1, 2] and torch.equal(longer[:17], short)
    make(chunk_sampler(loaded, fps=4.0), 25, 9)
    assert made == [0, 1, 2, 0, 1, 2], "another motion setting is another video"


def test_a_motion_cue_changes_its_chunks_only(loaded, run_root):
    chosen = chunk_sampler(loaded)
    plain = make(chosen, 25, 9).read(0, 25)
    cued = make(chosen, 25, 9, script=Script(motion=(Cue(32.0, chunk=2),))).read(0, 25)
    assert torch.equal(cued[:17], plain[:17]) and not torch.equal(cued[17:], plain[17:])
    back = make(chosen, 25, 9).read(0, 25)
    assert torch.equal(back, plain)


def test_the_prefix_is_what_the_next_chunk_begins_with(loaded, run_root, monkeypatch):
    starts = []
    original = sampler.known_conditioning
    monkeypatch.setattr(
        sampler,
        "known_conditioning",
        lambda vae_, size, frames, start, **options: (
            starts.append(start),
            original(vae_, size, frames, start, **options),
        )[1],
    )
    video = make(chunk_sampler(loaded, prefix_frames=4), 2 * 13 - 4, 13)
    read = video.read(0, len(video)).movedim(-1, 1)
    assert starts[0].shape[0] == 1 and torch.allclose(starts[1], read[9:13], atol=0.003), "as bytes"


def test_noise_on_known_frames_comes_from_one_place(loaded):
    with pytest.raises(SettingsError, match="reference_noise"):
        chunk_sampler(loaded, reference_noise=0.05).with_perturbed_tail(Perturbation(0.02))
    assert chunk_sampler(loaded).with_perturbed_tail(Perturbation(0.02)) is not None


# Files


def test_what_lies_next_to_the_files_is_used(folder, tmp_path):
    other = write_tiny_dropletvideo(tmp_path / "other")
    settings = {**vae_settings(), "scaling_factor": 1.15258426}
    (other / "vae" / "config.json").write_text(json.dumps(settings))
    (other / "scheduler").mkdir()
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({"beta_end": 0.014}))
    found = loaded_from(other)
    assert found.model.model.latent_format.scale_factor == pytest.approx(1.15258426)
    assert found.model.model.schedule.beta_end == 0.014
    assert loaded_from(other, scaling_factor=0.5).vae.config.scaling_factor == 0.5
    with pytest.raises(SettingsError, match="scaling factor"):
        sampler.check_family(found.model, loaded_from(folder).vae)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_the_other_file_is_called_by_its_name(folder, part):
    weights = "diffusion_pytorch_model.safetensors"
    names = [f"transformer/{weights}", f"vae/{weights}"]
    names[part == "vae"] = names[part != "vae"]
    with pytest.raises(CheckpointError, match="VAE" if part == "transformer" else "transformer"):
        loaded_from(folder, *names)


def test_patches_and_foreign_models_are_refused(loaded):
    patched = loaded.model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    with pytest.raises(SettingsError, match="attn1_patch"):
        chunk_sampler(loaded._replace(model=patched)).accept(plan())
    with pytest.raises(SettingsError, match="ControlNet"):
        loaded.model.model.diffusion_model._run(*[torch.zeros(1)] * 3, {"output": []}, {}, torch.zeros(1))
    noise = torch.zeros(1, 16, 3, 4, 6)
    with pytest.raises(SettingsError, match="48x32 pixels and 3 latents"):
        loaded.model.model.extra_conds(
            noise=noise, device="cpu", cross_attn=text(1)[0][0], **{model.INPAINT: torch.zeros(1, 17, 2, 4, 6)}
        )
    with pytest.raises(SettingsError, match="T5 XXL"):
        loaded.model.model.extra_conds(noise=noise, device="cpu", cross_attn=torch.zeros(1, 4, 7))


def plan():
    return videos.plan_video(
        num_frames=9,
        chunk_frames=9,
        overlap_frames=1,
        width=SIZE[1],
        height=SIZE[0],
        fit="crop",
        seed=5,
        anchor_frame=0,
        start_image=torch.rand(1, *SIZE, 3),
    )


def test_lora_changes_the_video(loaded):
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    weight = loaded.model.model.state_dict()[key]
    patched = loaded.model.clone()
    patched.add_patches({key: (torch.randn_like(weight),)}, 1.0)
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))

    def result(of) -> Tensor:
        sampling, empty = (ddim.DropletDdim(2), dropletvideo_sigmas(2)), torch.zeros_like(noise)
        options = {"disable_pbar": True, "seed": 1}
        return comfy.sample.sample_custom(of, noise, 2.0, *sampling, text(1), text(2), empty, **options)

    plain = result(loaded.model)
    assert not torch.allclose(plain, result(patched), atol=1e-3) and torch.equal(plain, result(loaded.model))


def test_every_window_has_its_own_known_frames(loaded, monkeypatch):
    """Randomized Blending as a second pass: windows of 5 latents, each with the channels of its own latents."""
    latents, seen = 9, []
    inpaint = torch.arange(latents).float().view(1, 1, latents, 1, 1).expand(1, 17, latents, 4, 6).clone()
    network = loaded.model.model.diffusion_model
    original = network.denoise

    def noticed(noisy: Tensor, known: Tensor, *rest) -> Tensor:
        assert noisy.shape[1] == known.shape[1] == 5
        seen.append((float(known[0, 0].mean()), float(known[0, -1].mean())))
        return original(noisy, known, *rest)

    monkeypatch.setattr(network, "denoise", noticed)
    blended = blending.RandomizedBlending.execute(model=loaded.model, window=17, overlap=9, seed=0).args[0]
    conds = [sampler.with_options(text(seed), **{model.INPAINT: inpaint, model.FPS: 8.0}) for seed in (1, 2)]
    noise = torch.randn(1, 16, latents, 4, 6, generator=torch.Generator().manual_seed(5))
    sampling, empty = (ddim.DropletDdim(2), dropletvideo_sigmas(2)), torch.zeros_like(noise)
    got = comfy.sample.sample_custom(blended, noise, 3.0, *sampling, *conds, empty, disable_pbar=True, seed=1)
    assert got.isfinite().all()
    assert seen == [(0.0, 4.0), (2.0, 6.0), (4.0, 8.0)] * 2
