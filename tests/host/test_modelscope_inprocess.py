"""StreamingModelscope on the host's own code: loading, sampling, CAM, APM, the chunk loop. Small random networks."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import CheckpointError, FrameMismatchError, SettingsError
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.script import Cue, Script, parse_cues
from streaming_core.loop.steps import start_video, video_chunks
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError
from streaming_core.models.unet3d import DownPath
from tiny_models.modelscope import base_weights, tiny_weights, write_tiny_base, write_tiny_modelscope

SIDE = 32


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import folder_paths
    from comfyui_streamingt2v.nodes.host import files
    from comfyui_streamingt2v.nodes.host.modelscope import apm as modelscope_apm
    from comfyui_streamingt2v.nodes.host.modelscope import cam as modelscope_cam
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import model as modelscope_model
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import towers as modelscope_file
    from comfyui_streamingt2v.nodes.host.svd import load as load_streamingsvd

    return SimpleNamespace(
        comfy=comfy,
        folder_paths=folder_paths,
        files=files,
        load=load_modelscope,
        load_svd=load_streamingsvd,
        family=modelscope,
        apm=modelscope_apm,
        cam=modelscope_cam,
        file=modelscope_file,
        model=modelscope_model,
    )


def model_path(host, folder: str, name: str):
    from pathlib import Path

    return Path(host.folder_paths.get_folder_paths(folder)[0]) / name


@pytest.fixture(scope="module")
def loaded(host):
    write_tiny_modelscope(model_path(host, "checkpoints", "modelscope_tiny.safetensors"))
    return host.load.load_streamingmodelscope("modelscope_tiny.safetensors")


@pytest.fixture(scope="module")
def base(host):
    write_tiny_base(model_path(host, "diffusion_models", "modelscope_base_tiny.safetensors"))
    return host.load.load_modelscope_unet("modelscope_base_tiny.safetensors")


def encode(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def frames(seed: int, count: int = 8, side: int = SIDE) -> torch.Tensor:
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def sample(
    host,
    model,
    positive,
    negative,
    *,
    steps=2,
    cfg=7.5,
    seed=1,
    frame_count=16,
    side=SIDE,
    sampler="euler",
    callback=None,
):
    noise = torch.randn(frame_count, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    sigmas = host.family.modelscope_sigmas(steps)
    sampler = host.comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return host.comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        torch.zeros_like(noise),
        seed=seed,
        callback=callback,
        disable_pbar=True,
    )


@pytest.fixture(scope="module")
def prompts(loaded):
    return encode(loaded.clip, "a cat runs on the street"), encode(loaded.clip, "")


def anchored(host, loaded, prompts, seed=3, weight=1.0, count=1):
    image = frames(seed, count, 80).movedim(-1, 1)
    tokens = host.apm.anchor_tokens(loaded.clip_vision, loaded.apm, image)
    return (
        host.apm.with_tokens(prompts[0], tokens.positive, weight),
        host.apm.with_tokens(prompts[1], tokens.negative, weight),
    )


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "heun"])
def test_base_model_samples_with_the_hosts_samplers(host, base, prompts, sampler):
    latent = sample(host, base, *prompts, sampler=sampler)
    assert latent.shape == (16, 4, SIDE // 8, SIDE // 8) and latent.isfinite().all()
    assert torch.equal(latent, sample(host, base, *prompts, sampler=sampler)), "same seed, same latent"
    other = encode_twice = sample(host, base, prompts[1], prompts[1], sampler=sampler)
    assert not torch.equal(latent, other), "the prompt matters"
    assert encode_twice.isfinite().all()


@pytest.mark.parametrize("seed", [0, 7])
def test_ddim_draws_other_noise_than_the_host_starts_from(host, seed):
    """The host's sampling nodes make both from one seed: the same draw twice leaves its specks to the end."""
    start, seen = host.comfy.sample.prepare_noise(torch.zeros(8, 4, 16, 16), seed), []
    sampler = host.family.official_sampling().sampler
    nothing = lambda x, sigma, **_: torch.zeros_like(x)  # noqa: E731
    sampler._run(
        nothing, 10 * start, torch.tensor([10.0, 5.0, 2.0]), {"seed": seed}, lambda step: seen.append(step["x"])
    )
    alike = torch.corrcoef(torch.stack([start.flatten(), seen[1].flatten()]))[0, 1]
    assert 0.2 < alike < 0.9


def test_latents_decode_through_the_vae_of_the_file(host, loaded, prompts):
    latent = sample(host, loaded.model, *prompts)
    images = loaded.vae.decode(latent)
    assert images.shape == (16, SIDE, SIDE, 3)
    again = host.family.decode_frames(loaded.vae, latent[3:5])
    torch.testing.assert_close(again.movedim(1, -1), images[3:5], atol=1e-5, rtol=0)
    assert loaded.vae.encode(images).shape == latent.shape


def test_anchor_changes_what_is_made_and_weight_zero_does_not(host, loaded, prompts, caplog):
    plain = sample(host, loaded.model, *prompts)
    assert "without appearance preservation" in caplog.text
    assert torch.equal(plain, sample(host, loaded.model, *anchored(host, loaded, prompts, weight=0.0)))
    first, second = (sample(host, loaded.model, *anchored(host, loaded, prompts, seed)) for seed in (3, 4))
    assert not torch.equal(plain, first) and not torch.equal(first, second)


def test_several_anchors_are_averaged(host, loaded):
    images = frames(5, 3, 80).movedim(-1, 1)
    tokens = host.apm.anchor_tokens(loaded.clip_vision, loaded.apm, images)
    assert tokens.positive.shape == (1, 16, 64) and tokens.negative.shape == (1, 16, 64)
    repeated = host.apm.anchor_tokens(loaded.clip_vision, loaded.apm, images[:1].expand(3, -1, -1, -1))
    single = host.apm.anchor_tokens(loaded.clip_vision, loaded.apm, images[:1])
    torch.testing.assert_close(repeated.positive, single.positive, atol=1e-5, rtol=0)
    assert not torch.allclose(tokens.positive, single.positive, atol=1e-3)
    gray = host.apm.anchor_tokens(loaded.clip_vision, loaded.apm, torch.full((1, 3, 32, 32), 0.5))
    torch.testing.assert_close(gray.positive, gray.negative, atol=1e-4, rtol=0)


def test_base_model_ignores_an_anchor_and_says_so(host, base, loaded, prompts, caplog):
    conds = anchored(host, loaded, prompts)
    assert torch.equal(sample(host, base, *conds), sample(host, base, *prompts))
    assert "no appearance preservation" in caplog.text


def test_cam_continues_control_frames(host, loaded, prompts):
    conds = anchored(host, loaded, prompts)
    plain = sample(host, loaded.model, *conds)
    first, second = (
        sample(host, host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(seed)), *conds) for seed in (1, 2)
    )
    assert not torch.equal(plain, first) and not torch.equal(first, second)
    assert torch.equal(plain, sample(host, loaded.model, *conds)), "the model itself stays as it was"


def test_rows_apart_or_in_the_other_order_give_the_same(host, loaded, prompts, monkeypatch):
    conds = anchored(host, loaded, prompts)
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(1))
    together = sample(host, model, *conds, cfg=2.0)
    orders = []
    network = loaded.model.model.diffusion_model
    inner = type(network).forward

    def spy(self, x, timesteps, **kwargs):
        orders.append(list(kwargs["transformer_options"]["cond_or_uncond"]))
        return inner(self, x, timesteps, **kwargs)

    monkeypatch.setattr(type(network), "forward", spy)
    assert torch.equal(together, sample(host, model, *conds, cfg=2.0))
    assert {tuple(order) for order in orders} == {(1, 0)} or {tuple(order) for order in orders} == {(0, 1)}
    monkeypatch.setattr(type(loaded.model.model), "memory_required", lambda self, *a, **k: 2**60)
    orders.clear()
    apart = sample(host, model, *conds, cfg=2.0)
    assert {tuple(order) for order in orders} == {(0,), (1,)}
    assert (apart - together).abs().max() < 1e-5 * together.abs().max()
    # cfg 1: the conditional row alone.
    orders.clear()
    sample(host, model, *conds, cfg=1.0)
    assert {tuple(order) for order in orders} == {(0,)}


def test_context_and_pixels_are_projected_once_per_chunk(host, loaded, prompts, monkeypatch):
    conds = anchored(host, loaded, prompts)
    counts = {"context": 0, "pixels": 0}
    cam = loaded.cam.network

    def counted(owner, name, key):
        inner = getattr(owner, name)

        def call(self, *args, **kwargs):
            counts[key] += 1
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(DownPath, "_project", "context")
    counted(type(cam), "encode_pixels", "pixels")
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(1))
    for steps in (1, 4):
        counts["context"] = 0
        sample(host, model, *conds, steps=steps)
        # UNet and CAM branch, prompt and negative prompt; the number of steps does not matter.
        assert counts["context"] == 4
    assert counts["pixels"] == 1


def test_partially_loaded_below_its_size_gives_the_same(host, loaded, prompts):
    """UNet and CAM both kept out of the device for two thirds, mixers and mergers included."""
    conds = anchored(host, loaded, prompts)
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(1))
    whole = sample(host, model, *conds)
    cpu = torch.device("cpu")
    patchers = (loaded.model, loaded.cam.patcher)
    for patcher in patchers:
        patcher.detach()
        patcher.load(cpu, lowvram_model_memory=patcher.model_size() // 3)
        assert patcher.model.model_lowvram
        kept_out = [module for module in patcher.model.modules() if hasattr(module, "prev_comfy_cast_weights")]
        sizes = sum(host.comfy.model_management.module_size(module) for module in kept_out)
        assert sizes > patcher.model_size() / 2
    assert torch.equal(sample(host, model, *conds), whole)
    for patcher in patchers:
        patcher.detach()
    assert torch.equal(sample(host, model, *conds), whole)


def test_long_prompts_are_mixed_piece_by_piece(host, loaded, prompts):
    long = encode(loaded.clip, "a cat runs on the street, " * 30)
    assert long[0][0].shape[1] > 77 and long[0][0].shape[1] % 77 == 0
    conds = anchored(host, loaded, (long, prompts[1]))
    assert sample(host, loaded.model, *conds).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 16)])
def test_sizes_need_not_be_square(host, loaded, prompts, height, width):
    control = torch.rand(8, height, width, 3, generator=torch.Generator().manual_seed(0))
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, control)
    noise = torch.randn(16, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    sampler = host.comfy.samplers.sampler_object("euler")
    latent = host.comfy.sample.sample_custom(
        model,
        noise,
        3.0,
        sampler,
        host.family.modelscope_sigmas(2),
        *anchored(host, loaded, prompts),
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    assert latent.shape == noise.shape and latent.isfinite().all()


def chunk_sampler(host, loaded, texts, **settings):
    defaults = {
        "model": loaded.model,
        "cam": loaded.cam,
        "vae": loaded.vae,
        "prompts": texts[:1],
        "negative": texts[1],
        "clip_vision": loaded.clip_vision,
        "apm": loaded.apm,
        "first_model": loaded.model,
        "sampling": host.family.official_sampling(2),
        "first_sampling": host.family.first_clip_sampling(2),
    }
    return host.family.ModelscopeChunkSampler(**{**defaults, **settings})


def video(sampler, num_frames: int, seed: int = 33):
    state, first = start_video(VideoPlan(num_frames, 16, 8, seed, height=SIDE, width=SIDE), sampler)
    made = [first, *(part for _, part in video_chunks(state, sampler))]
    return torch.cat(made)[:num_frames]


def test_video_has_its_length_and_repeats(host, loaded, prompts, caplog):
    caplog.set_level(logging.INFO)
    sampler = chunk_sampler(host, loaded, prompts)
    whole = video(sampler, 29)
    assert whole.shape == (29, 3, SIDE, SIDE)
    assert torch.equal(whole, video(sampler, 29))
    assert "32x32 is not the 256x256 that StreamingModelscope was trained on" in caplog.text
    assert torch.equal(video(sampler, 20), whole[:20]), "a shorter video is the beginning of a longer one"
    assert not torch.equal(video(sampler, 29, seed=34)[:16], whole[:16])


def test_a_video_keeps_the_looks_of_several_anchors(host, loaded, prompts):
    from comfyui_streamingt2v.nodes.host.runs import videos

    def made(anchor):
        plan = videos.plan_video(20, 16, 8, SIDE, SIDE, "crop", 5, 0, anchor=anchor)
        with torch.inference_mode():
            state, _ = start_video(plan, chunk_sampler(host, loaded, prompts))
        return state

    both = made(frames(1, 2, 40))
    assert both.anchor.frame.shape == (2, 3, SIDE, SIDE)
    singles = [made(frames(1, 2, 40)[index : index + 1]) for index in range(2)]
    tokens = [state.anchor.embedding.positive for state in (both, *singles)]
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4) and not torch.allclose(tokens[0], tokens[2], atol=1e-4)


def test_later_prompts_act_from_their_chunk_on(host, loaded, prompts, caplog):
    caplog.set_level(logging.INFO)
    other = encode(loaded.clip, "an empty street at night")
    one = video(chunk_sampler(host, loaded, prompts), 32)
    two = video(chunk_sampler(host, loaded, prompts, prompts=(prompts[0], other)), 32)
    assert torch.equal(one[:16], two[:16]) and not torch.equal(one[16:24], two[16:24])
    assert "chunk 2 has no prompt of its own; the last of 2 prompts is used" in caplog.text
    settings = [chunk_sampler(host, loaded, prompts, prompts=p) for p in ((prompts[0],), (prompts[0], other))]
    assert settings[0].identity() == settings[1].identity()
    chunks = VideoPlan(32, 16, 8).chunks
    assert [settings[0].chunk_identity(c) == settings[1].chunk_identity(c) for c in chunks] == [True, False, False]


def test_guidance_steps_and_seed_take_effect(host, loaded, prompts):
    base = video(chunk_sampler(host, loaded, prompts), 24)
    for sampling in (host.family.official_sampling(3), host.family.official_sampling(2, cfg=2.0)):
        changed = video(chunk_sampler(host, loaded, prompts, sampling=sampling), 24)
        assert torch.equal(changed[:16], base[:16]) and not torch.equal(changed[16:], base[16:])


def test_a_plans_prompts_and_strengths_act_on_their_chunks(host, loaded, prompts):
    """Chunks 0, 1, 2 show frames 0-15, 16-23, 24-31."""

    def made(script, **changes):
        sampler = chunk_sampler(host, loaded, prompts, **changes)
        plan = VideoPlan(32, 16, 8, 33, script=script, height=SIDE, width=SIDE)
        with torch.inference_mode():
            state, first = start_video(plan, sampler)
            frames = torch.cat([first, *(part for _, part in video_chunks(state, sampler))])
        return frames, [sampler.chunk_identity(chunk) for chunk in plan.chunks]

    base, base_settings = made(Script())
    text = "an empty street at night"
    listed, listed_settings = made(Script(), prompts=(prompts[0], encode(loaded.clip, text)))
    planned, settings = made(Script(prompts=parse_cues(f"1: {text}")), clip=loaded.clip)
    assert torch.equal(planned, listed)
    assert [own["positive"] for own in settings] == [own["positive"] for own in listed_settings]
    for name in ("cam_strength", "anchor_strength"):
        for value in (0.0, 0.5):
            frames, settings = made(Script(**{name: (Cue(value, 2),)}))
            assert torch.equal(frames[:24], base[:24]) and not torch.equal(frames[24:], base[24:])
            assert settings[:2] == base_settings[:2] and settings[2][name] == value
    same, settings = made(Script(cam_strength=(Cue(1.0, 0),)))
    assert torch.equal(same, base) and settings == base_settings
    with pytest.raises(SettingsError, match="connect clip"):
        made(Script(prompts=parse_cues("1: a")))
    with pytest.raises(SettingsError, match="chunk 0 has no prompt"):
        made(Script(prompts=parse_cues("1: a")), prompts=(), clip=loaded.clip)


def test_wrong_control_frames_are_refused(host, loaded, prompts):
    with pytest.raises(FrameMismatchError, match="multiples of 16 pixels"):
        host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(0, side=28))
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(0, side=48))
    with pytest.raises(FrameMismatchError, match="48x48, but the model was called with a latent for 32x32"):
        sample(host, model, *prompts)
    model = host.cam.with_modelscope_cam(loaded.model, loaded.cam, frames(0, count=16))
    with pytest.raises(SettingsError, match="16 control frames leave nothing new"):
        sample(host, model, *prompts)
    with pytest.raises(SettingsError, match="already attached"):
        host.cam.with_modelscope_cam(model, loaded.cam, frames(0))


def test_text_of_another_encoder_is_refused(host, loaded):
    foreign = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(SettingsError, match="takes text of width 64, got shape"):
        sample(host, loaded.model, foreign, foreign)


def test_anchor_of_another_tower_is_refused(host, loaded):
    other = SimpleNamespace(
        patcher=loaded.clip_vision.patcher,
        image_size=224,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        load_device=loaded.clip_vision.load_device,
        model=lambda **_: (None, None, torch.zeros(1, 32)),
    )
    with pytest.raises(SettingsError, match="width 32, this APM takes 64"):
        host.apm.anchor_tokens(other, loaded.apm, torch.zeros(1, 3, 32, 32))


def test_pickle_loads_like_safetensors_and_is_copied_once(host, loaded):
    path = write_tiny_modelscope(model_path(host, "checkpoints", "modelscope_pickle.ckpt"))
    model = host.load.load_streamingmodelscope(path.name, safetensors_copy=True).model
    copy = path.with_suffix(".safetensors")
    saved = load_file(copy)
    want = tiny_weights()
    assert saved.keys() == want.keys() and all(torch.equal(saved[key], want[key]) for key in want)
    for key, value in loaded.model.model.diffusion_model.state_dict().items():
        assert torch.equal(value, model.model.diffusion_model.state_dict()[key])
    stamp = copy.stat().st_mtime_ns
    host.load.load_streamingmodelscope(path.name, safetensors_copy=True)
    assert copy.stat().st_mtime_ns == stamp and not list(copy.parent.glob("*.partial"))


def test_pickle_with_foreign_classes_is_not_opened(host):
    import argparse

    path = model_path(host, "checkpoints", "modelscope_foreign.ckpt")
    torch.save({"state_dict": tiny_weights(), "args": argparse.Namespace(a=1)}, path)
    with pytest.raises(CheckpointError, match="Python objects besides weights") as caught:
        host.load.load_streamingmodelscope(path.name)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_in_a_sentence(host):
    whole = write_tiny_modelscope(model_path(host, "checkpoints", "modelscope_cut.safetensors"))
    whole.write_bytes(whole.read_bytes()[: 2**20])
    with pytest.raises(CheckpointError, match="damaged or cut off") as caught:
        host.load.load_streamingmodelscope(whole.name)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def svd_file(host) -> str:
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    path = model_path(host, "checkpoints", "svd_tiny.safetensors")
    write_tiny_streamingsvd(path)
    return path.name


def test_files_of_other_families_are_named(host, loaded, svd_file):
    with pytest.raises(WrongCheckpointError, match="svd_tiny.safetensors is not a StreamingModelscope.*StreamingSVD"):
        host.load.load_streamingmodelscope(svd_file)
    with pytest.raises(WrongCheckpointError, match="is not a StreamingSVD.*StreamingModelscope"):
        host.load_svd.load_streamingsvd("modelscope_tiny.safetensors")
    save_file(base_weights(), model_path(host, "checkpoints", "base.safetensors"))
    with pytest.raises(WrongCheckpointError, match="ModelScope text-to-video UNet without CAM and APM"):
        host.load.load_streamingmodelscope("base.safetensors")
    write_tiny_modelscope(model_path(host, "diffusion_models", "whole.safetensors"))
    with pytest.raises(WrongCheckpointError, match="Load StreamingModelscope reads"):
        host.load.load_modelscope_unet("whole.safetensors")


@pytest.mark.parametrize(
    "prefix",
    ["base_model.conv_in.", "unet.mid_block.", "resampler.", "text_encoder.text_model.final", "vae.quant_conv."],
)
def test_missing_parts_are_counted_and_named(host, prefix):
    weights = {key: value for key, value in tiny_weights().items() if not key.startswith(prefix)}
    path = model_path(host, "checkpoints", "modelscope_missing.safetensors")
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=prefix.split(".")[1] or "resampler"):
        host.load.load_streamingmodelscope(path.name)


def test_unknown_keys_are_refused(host):
    path = model_path(host, "checkpoints", "modelscope_more.safetensors")
    save_file({**tiny_weights(), "mystery.lr": torch.zeros(1)}, path)
    with pytest.raises(IncompleteCheckpointError, match=r"1 keys unknown to StreamingModelscope \(first mystery.lr\)"):
        host.load.load_streamingmodelscope(path.name)


def test_cam_of_the_other_family_is_refused_in_words(host, loaded, svd_file):
    svd = host.load_svd.load_streamingsvd(svd_file)
    from comfyui_streamingt2v.nodes.host.svd.cam import with_cam

    with pytest.raises(SettingsError, match="this CAM belongs to StreamingModelscope, but the model is StreamingSVD"):
        with_cam(svd.model, loaded.cam, frames(0))
    with pytest.raises(SettingsError, match="this CAM belongs to StreamingSVD"):
        host.cam.with_modelscope_cam(loaded.model, svd.cam, frames(0))
