"""LVDM on the host, with tiny weights: files as released, official sampling, chunks that continue each other."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from tests.lvdm_oracle import guided, overwritten
from tiny_models.lvdm import (
    TINY,
    TINY_INTERPOLATION,
    TINY_PREDICTION,
    TINY_TEXT,
    lightning,
    lvdm_weights,
    write_tiny_autoencoder,
    write_tiny_lvdm,
)
from tiny_models.streamingsvd import write

import_host()
import_pack()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes import lvdm as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host import handed_out  # noqa: E402
from comfyui_streamingt2v.nodes.host.encoders import encode_prompt  # noqa: E402
from comfyui_streamingt2v.nodes.host.lvdm import family, load, model, sampler, vae  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope.ddim import Ddim  # noqa: E402
from comfyui_streamingt2v.nodes.host.remedies.guidance import against_previous  # noqa: E402
from comfyui_streamingt2v.nodes.host.remedies.steps import SigmaRange  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import preflight, videos  # noqa: E402
from comfyui_streamingt2v.streaming_core.errors import CheckpointError, SettingsError  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.chunk import Chunk  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.fillers import SampledGaps  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.hierarchy import GapPlan  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.plan import VideoPlan  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.remedies import Perturbation, PreviousGuidance  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.script import Cue, Script  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.steps import start_video, video_chunks  # noqa: E402
from comfyui_streamingt2v.streaming_core.models.lvdm.conditioning import (  # noqa: E402
    known_places,
    mask_channel,
    perturbed,
)
from comfyui_streamingt2v.streaming_core.models.lvdm.config import LATENT_SCALES  # noqa: E402
from comfyui_streamingt2v.streaming_core.models.lvdm.unet import LvdmUNet  # noqa: E402
from comfyui_streamingt2v.streaming_core.models.lvdm.weights import averaged, parts_of  # noqa: E402
from comfyui_streamingt2v.streaming_core.schedules.lvdm import ddim_sigmas, ddim_timesteps  # noqa: E402
from comfyui_streamingt2v.streaming_core.schedules.modelscope import ddim_eta_step, signal_scale  # noqa: E402

pytestmark = pytest.mark.slow
SIZE = (16, 32)
LATENT = (2, 4)
FILES = {
    "short_sky.ckpt": TINY,
    "short_taichi.ckpt": TINY,
    "sky_prediction.ckpt": TINY_PREDICTION,
    "sky_interpolation.safetensors": TINY_INTERPOLATION,
    "t2v.ckpt": TINY_TEXT,
}


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lvdm")
    for seed, (name, config) in enumerate(FILES.items()):
        write_tiny_lvdm(folder / name, config, seed)
    write_tiny_autoencoder(folder / "ae_sky.ckpt", seed=9)
    return folder


@pytest.fixture(scope="module", autouse=True)
def model_folders(folder):
    saved = {key: folder_paths.folder_names_and_paths[key] for key in ("checkpoints", "vae")}
    for key, (_, endings) in saved.items():
        folder_paths.folder_names_and_paths[key] = ([str(folder)], endings)
    yield
    folder_paths.folder_names_and_paths.update(saved)


@pytest.fixture(scope="module")
def loaded(folder) -> dict[str, load.Loaded]:
    return {name.partition(".")[0]: load.load_lvdm(name) for name in FILES}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(of, start: Tensor, positive, negative, cfg=1.0, steps=4, noises=None, name=None, **options) -> Tensor:
    chosen = Ddim(1.0, noises) if name is None else comfy.samplers.sampler_object(name)
    schedule = model.schedule_of(of.model.config)
    return comfy.sample.sample_custom(
        of,
        start,
        cfg,
        chosen,
        ddim_sigmas(steps, schedule),
        positive,
        negative,
        options.pop("latent", torch.zeros_like(start)),
        disable_pbar=True,
        seed=1,
        **options,
    )


# Files


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [
        ("short_sky", "unconditional", "sky"),
        ("short_taichi", "unconditional", "taichi"),
        ("sky_prediction", "conditional", "sky"),
        ("sky_interpolation", "conditional", "sky"),
    ],
)
def test_official_files_are_known_by_content_and_name(loaded, name, kind, scale):
    found = loaded[name]
    assert found.model.model.config.kind == kind and found.clip is None
    assert found.model.model.latent_format.scale == LATENT_SCALES[scale]
    assert isinstance(found.vae, vae.LvdmVae)


def test_text_to_video_brings_its_vae_and_text_encoder(loaded):
    found = loaded["t2v"]
    assert found.model.model.config.kind == "text" and found.vae.downscale_ratio == 8
    [[text, _]] = encode_prompt(found.clip, "a waterfall")
    assert text.shape == (1, 77, TINY_TEXT.context_width)
    assert found.model.model.latent_format.scale_factor == 0.18215


KEY = "input_blocks.1.0.in_layers.2.weight"


def key(of: load.Loaded) -> Tensor:
    return of.model.model.state_dict()[f"diffusion_model.{KEY}"]


def test_long_models_come_with_their_moving_average_and_short_ones_as_trained_last(loaded):
    for name, seed, config, averages in (("short_sky", 0, TINY, False), ("sky_prediction", 2, TINY_PREDICTION, True)):
        file = parts_of(lvdm_weights(config, seed))
        means = averaged(file.average, file.unet, name)
        wanted = {load.OFFICIAL: means if averages else file.unet, load.AVERAGE: means, load.LAST: file.unet}
        for weights, tensors in wanted.items():
            found = loaded[name] if weights == load.OFFICIAL else load.load_lvdm(f"{name}.ckpt", weights=weights)
            assert torch.equal(key(found), tensors[KEY]), (name, weights)
    with pytest.raises(CheckpointError, match="t2v.ckpt holds no moving average"):
        load.load_lvdm("t2v.ckpt", weights=load.AVERAGE)


def test_an_autoencoder_may_be_a_file_of_its_own(folder, loaded):
    write(folder / "unet_only.safetensors", parts_of(lvdm_weights(TINY)).unet)
    with pytest.raises(CheckpointError, match=r"unet_only.safetensors holds no autoencoder; choose .*ae_sky.ckpt"):
        load.load_lvdm("unet_only.safetensors", latents="sky")
    found = load.load_lvdm("unet_only.safetensors", "ae_sky.ckpt")
    assert found.model.model.latent_format.scale == LATENT_SCALES["sky"], "as the autoencoder is called"
    frames = torch.rand(4, *SIZE, 3)
    assert not torch.allclose(found.vae.encode(frames), loaded["short_sky"].vae.encode(frames), atol=1e-3)
    with pytest.raises(SettingsError, match="has its VAE in the checkpoint"):
        load.load_lvdm("t2v.ckpt", "ae_sky.ckpt")
    with pytest.raises(CheckpointError, match=r"short_sky_unet.*not an LVDM autoencoder.*a UNet without"):
        write(folder / "short_sky_unet.safetensors", parts_of(lvdm_weights(TINY)).unet)
        load.load_lvdm("short_sky.ckpt", "short_sky_unet.safetensors")


def test_latents_are_scaled_as_somebody_says(folder):
    write_tiny_lvdm(folder / "mine.safetensors")
    with pytest.raises(SettingsError, match="choose sky, taichi or ucf"):
        load.load_lvdm("mine.safetensors")
    found = load.load_lvdm("mine.safetensors", latents="ucf").model.model.latent_format
    assert found.scale == LATENT_SCALES["ucf"]
    latents = noise(1, 4, 2, 3, 3)
    assert torch.allclose(found.process_in(latents), 0.220142075 * (latents + 0.5837740898))
    assert torch.allclose(found.process_out(found.process_in(latents)), latents, atol=1e-5)
    told = lvdm_weights(TINY) | {"scale_factor": torch.tensor(0.25), "shift_factor": torch.tensor(3.0)}
    write(folder / "told.safetensors", {name: value.clone() for name, value in told.items()})
    assert load.load_lvdm("told.safetensors").model.model.latent_format.scale.shift == 3.0
    with pytest.raises(SettingsError, match="latents of Stable Diffusion"):
        load.load_lvdm("t2v.ckpt", latents="sky")


def test_a_safetensors_copy_is_the_same(folder, loaded):
    write_tiny_lvdm(folder / "copied_sky.ckpt", TINY_PREDICTION, 2)
    load.load_lvdm("copied_sky.ckpt", safetensors_copy=True)
    again = load.load_lvdm("copied_sky.safetensors")
    for name, value in loaded["sky_prediction"].model.model.state_dict().items():
        assert torch.equal(value, again.model.model.state_dict()[name]), name


def test_a_pickle_may_name_the_callbacks_of_lightning(folder, monkeypatch):
    """Lightning 1.4 keeps the state of its callbacks under their classes, which need not be installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    content = lightning(lvdm_weights(TINY))
    content["callbacks"] = {module.ModelCheckpoint: {"best_model_path": "x.ckpt", "monitor": None}}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("pytorch_lightning.callbacks"))
        patch.setitem(sys.modules, name, module)
        torch.save(content, folder / "called_back_sky.ckpt")
    assert torch.equal(key(load.load_lvdm("called_back_sky.ckpt")), lvdm_weights(TINY)[f"model.diffusion_model.{KEY}"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["short_sky", "sky_prediction", "t2v"])
def test_small_types_are_cast_layer_by_layer(loaded, monkeypatch, dtype, name):
    """As on a device where the host keeps weights as they are stored."""
    monkeypatch.setattr(model.mm, "unet_dtype", lambda **_: dtype)
    monkeypatch.setattr(model.mm, "unet_manual_cast", lambda *_: torch.float32)
    exact = loaded[name].model
    state = {
        stem.removeprefix("diffusion_model."): value.to(dtype)
        for stem, value in exact.model.state_dict().items()
        if stem.startswith("diffusion_model.")
    }
    small = model.build_lvdm(state, exact.model.config, LATENT_SCALES["sky"])
    assert small.model.state_dict()[f"diffusion_model.{KEY}"].dtype == dtype
    conds = [encode_prompt(loaded["t2v"].clip, "a waterfall")] * 2 if name == "t2v" else [model.no_text()] * 2
    start = noise(4, 4, *LATENT) if name == "t2v" else noise(1, 4, 4, *LATENT)
    got, want = (of.model.process_latent_in(sample(of, start, *conds)) for of in (small, exact))
    error = (got - want).abs().mean() / want.abs().mean()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.5)


def test_other_and_broken_files_are_refused_by_name(folder):
    write(
        folder / "sd15.safetensors",
        {
            f"model.diffusion_model.{name}": torch.zeros(shape)
            for name, shape in {
                "input_blocks.0.0.weight": (8, 4, 3, 3),
                "middle_block.0.x": (1,),
                "output_blocks.0.x": (1,),
                "time_embed.0.weight": (1,),
                "out.2.weight": (4, 8, 3, 3),
            }.items()
        },
    )
    for name, words in (("sd15.safetensors", "a UNet for images"), ("ae_sky.ckpt", "LVDM's autoencoder")):
        with pytest.raises(CheckpointError, match=f"{name} is not an LVDM checkpoint.*{words}"):
            load.load_lvdm(name)
    content = (folder / "short_sky.ckpt").read_bytes()
    (folder / "cut_sky.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut_sky.ckpt is damaged or cut off"):
        load.load_lvdm("cut_sky.ckpt")
    incomplete = {name: value.clone() for name, value in lvdm_weights(TINY).items() if "output_blocks.1.0" not in name}
    write(folder / "lacking_sky.safetensors", incomplete)
    with pytest.raises(CheckpointError, match=r"lacking_sky.safetensors: the UNet does not fit.*missing"):
        load.load_lvdm("lacking_sky.safetensors")


# Sampling


def network_of(config, seed: int) -> LvdmUNet:
    file = parts_of(lvdm_weights(config, seed))
    net = LvdmUNet(config).eval()
    net.load_state_dict(averaged(file.average, file.unet, "") if config.kind == "conditional" else file.unet)
    return net


def official(net, x: Tensor, noises, known=None, places=None, told=None, weight=0.1, level=100, steps=4) -> Tensor:
    """The official loop on the network; `x` is noise. With `known` latents these are written into x each time."""
    sigmas = ddim_sigmas(steps)
    x = x / signal_scale(sigmas[0])
    for number, timestep in enumerate(ddim_timesteps(steps).flip(0).tolist()):
        sigma, sigma_next, time = sigmas[number], sigmas[number + 1], torch.tensor([timestep])
        unit = x * signal_scale(sigma)
        if known is None:
            eps = net(unit, time) if not net.config.masked else net(torch.cat([unit, unit[:, :1] * 0], 1), time)
        else:
            unit = overwritten(unit, known, places)
            with_mask = torch.cat([unit, mask_channel(told, unit)], 1)
            eps = net(with_mask, time, labels=torch.tensor([level]))
            eps = guided(eps, net(torch.cat([unit, unit[:, :1] * 0], 1), time), weight)
            x = unit / signal_scale(sigma)
        x = ddim_eta_step(x, x - sigma * eps, sigma, sigma_next, 1.0, noises[number])
    return x * signal_scale(sigmas[-1])


def near(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() < 2e-4 * want.abs().max())


@pytest.mark.parametrize(("name", "seed", "config"), [("short_sky", 0, TINY), ("sky_prediction", 2, TINY_PREDICTION)])
def test_the_host_samples_as_the_official_program(loaded, name, seed, config):
    start, noises = noise(1, 4, 4, *LATENT), [noise(1, 4, 4, *LATENT, seed=n + 1) for n in range(4)]
    found = loaded[name].model
    got = sample(found, start, model.no_text(), model.no_text(), noises=noises)
    want = official(network_of(config, seed), start, noises)
    assert near(found.model.process_latent_in(got), want)


@pytest.mark.parametrize("whole", [False, True])
def test_known_latents_take_their_places_before_every_call(loaded, whole):
    start, noises = noise(1, 4, 4, *LATENT), [noise(1, 4, 4, *LATENT, seed=n + 1) for n in range(4)]
    places = known_places(4, 1)
    told = torch.ones_like(places) if whole else places
    known = perturbed(noise(1, 4, 1, *LATENT, seed=8), noise(1, 4, 1, *LATENT, seed=9), 100)
    found = loaded["sky_prediction"].model
    conds = model.with_known(known, places, told, 100), model.no_text()
    guided = against_previous(found, 0.1, SigmaRange(), model.untold)
    got = found.model.process_latent_in(sample(guided, start, *conds, noises=noises))
    want = official(network_of(TINY_PREDICTION, 2), start, noises, known, places, told)
    assert near(got[:, :, 1:], want[:, :, 1:])


def test_stock_samplers_masks_and_lora_work(loaded):
    found, start = loaded["short_sky"].model, noise(1, 4, 4, *LATENT)
    conds = model.no_text(), model.no_text()
    for name in ("euler", "dpmpp_2m", "uni_pc"):
        assert sample(found, start, *conds, name=name).isfinite().all()
    kept = noise(1, 4, 4, *LATENT, seed=5)
    mask = torch.ones(1, 1, 4, *LATENT)
    mask[:, :, 0] = 0
    held = sample(found, start, *conds, latent=kept, noise_mask=mask)
    # The official levels end above 0, and what is left of the noise lies on held latents, too.
    assert (held[:, :, 0] - kept[:, :, 0]).abs().mean() < 0.2
    assert (held[:, :, 1:] - kept[:, :, 1:]).abs().mean() > 0.5
    name = "diffusion_model.middle_block.1.qkv_t.weight"
    patched = found.clone()
    patched.add_patches({name: (torch.randn_like(found.model.state_dict()[name]),)}, 1.0)
    plain = sample(found, start, *conds)
    assert not torch.allclose(plain, sample(patched, start, *conds), atol=1e-3)
    assert torch.equal(plain, sample(found, start, *conds))


def test_frames_of_text_to_video_are_a_batch(loaded):
    found = loaded["t2v"]
    positive, negative = (encode_prompt(found.clip, text) for text in ("a waterfall", ""))
    start = noise(6, 4, *LATENT)
    got = sample(found.model, start, positive, negative, cfg=15.0)
    assert got.shape == start.shape and got.isfinite().all()
    alone = sample(found.model, start[:1], positive, negative, cfg=15.0)
    assert not torch.allclose(got[:1], alone, atol=1e-3), "frames see each other"
    assert not torch.allclose(got, sample(found.model, start, negative, negative, cfg=15.0), atol=1e-3)
    file = parts_of(lvdm_weights(TINY_TEXT, 4))
    net = LvdmUNet(TINY_TEXT)
    net.load_state_dict(file.unet)
    video, text = start.transpose(0, 1).unsqueeze(0), torch.cat([positive[0][0], negative[0][0]])
    want = net(video.repeat(2, 1, 1, 1, 1), torch.tensor([501, 501]), text)
    base = found.model.model.diffusion_model
    batched = base(start.repeat(2, 1, 1, 1), torch.full((12,), 501.0), text, transformer_options={})
    assert near(batched[:6].transpose(0, 1), want[0]) and near(batched[6:].transpose(0, 1), want[1])


def test_the_vae_fits_the_hosts_nodes(loaded):
    coder = loaded["short_sky"].vae
    images = torch.rand(9, *SIZE, 3, generator=torch.Generator().manual_seed(3))
    latents = coder.encode(images)
    assert latents.shape == (1, 4, 2, *LATENT), "what is no whole latent is left out"
    frames = coder.decode(latents)
    assert frames.shape == (1, 8, *SIZE, 3)
    assert torch.allclose(frames[0].movedim(-1, 1), vae.decode_frames(coder, latents), atol=1e-5)
    one = coder.encode(images[:1])
    assert torch.allclose(one, coder.encode(images[:1].expand(4, -1, -1, -1)), atol=1e-4), "an image stands still"


def test_long_videos_are_decoded_in_groups_that_keep_their_center(loaded, monkeypatch):
    coder, calls = loaded["short_sky"].vae, []
    monkeypatch.setattr(
        vae.VideoAutoencoder,
        "decode",
        lambda self, part: (calls.append(part[0, 0, :, 0, 0].tolist()), part.repeat_interleave(4, 2)[:, :3])[1],
    )
    latents = torch.arange(30.0).view(1, 1, 30, 1, 1).expand(1, 4, 30, 1, 1) / 40
    frames = vae.decode_frames(coder, latents)
    assert torch.allclose(frames[:, 0, 0, 0], (latents[0, 0, :, 0, 0].repeat_interleave(4) + 1) / 2)
    assert max(map(len, calls)) == vae.GROUP_LATENTS and len(calls) == 4
    assert len(vae.decode_frames(coder, latents, 28)) == 8


# Chunks


def chunk_sampler(loaded, name: str = "sky_prediction", interpolation: bool = False, **values):
    found = loaded[name]
    chosen = {"sampler": Ddim(1.0), "sigmas": ddim_sigmas(2, model.schedule_of(found.model.model.config))}
    if interpolation:
        chosen["interpolation"] = loaded["sky_interpolation"].model
    if name == "t2v":
        positive, negative = (encode_prompt(found.clip, text) for text in ("a waterfall", ""))
        chosen |= {"prompts": (positive,), "negative": negative, "clip": found.clip}
    return sampler.LvdmChunkSampler(found.model, found.vae, **(chosen | values))


@pytest.fixture
def run_root(tmp_path, monkeypatch):
    for module in (videos, handed_out):
        if hasattr(module, "runs_root"):
            monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    return tmp_path


def planned(frames: int, chunk_frames: int, overlap: int, seed: int = 5, script=None, **plan):
    made = videos.plan_video(
        num_frames=frames,
        chunk_frames=chunk_frames,
        overlap_frames=overlap,
        width=SIZE[1],
        height=SIZE[0],
        fit="crop",
        seed=seed,
        anchor_frame=0,
        **plan,
    )
    return made if script is None else replace(made, script=script)


def make(chosen, frames: int, chunk_frames: int, overlap: int = 4, name: str = "mine", **plan) -> Tensor:
    video = videos.make_video(chosen, planned(frames, chunk_frames, overlap, **plan), name)
    return video.read(0, len(video))


CASES = {
    "prediction": ("sky_prediction", False, 16, 4),
    "prediction of a longer chunk": ("sky_prediction", False, 24, 8),
    "interpolation": ("sky_prediction", True, 20, 4),
    "interpolation with two known": ("sky_prediction", True, 36, 20),
    "short sky": ("short_sky", False, 16, 4),
    "short taichi": ("short_taichi", False, 16, 8),
    "text": ("t2v", False, 6, 2),
}


QUICK = ("prediction", "interpolation", "text")


@pytest.mark.parametrize(
    ("name", "interpolation", "chunk", "overlap"),
    [pytest.param(*case, marks=() if name in QUICK else pytest.mark.slow, id=name) for name, case in CASES.items()],
)
def test_a_video_has_its_length_and_is_the_same_again(loaded, run_root, name, interpolation, chunk, overlap):
    chosen = chunk_sampler(loaded, name, interpolation)
    frames = chunk + 2 * (chunk - overlap) - 1
    read = make(chosen, frames, chunk, overlap)
    assert read.shape == (frames, *SIZE, 3) and read.isfinite().all()
    assert torch.equal(make(chosen, frames, chunk, overlap, "again"), read)
    other = make(chosen, frames, chunk, overlap, "other", seed=6)
    assert all(not torch.equal(other[n], read[n]) for n in range(frames))
    longer = make(chosen, frames + 3, chunk, overlap)
    assert torch.equal(longer[:frames], read), "a longer video keeps its frames"


@pytest.mark.parametrize(
    "values",
    [
        {"noise_level": 50},
        {"noise_level": -1},
        {"previous_guidance": PreviousGuidance(0.0)},
        {"previous_guidance": PreviousGuidance(0.3)},
        {"whole_mask": True},
        {"perturbation": Perturbation(0.2)},
        {"sigmas": ddim_sigmas(4)},
    ],
    ids=str,
)
def test_every_setting_changes_the_chunks_it_is_for_and_the_identity(loaded, run_root, values):
    plain, changed = chunk_sampler(loaded), chunk_sampler(loaded, **values)
    a, b = make(plain, 28, 16), make(changed, 28, 16, name="other")
    assert not torch.equal(a[16:], b[16:]) and plain.identity() != changed.identity()
    assert torch.equal(a[:16], b[:16]) == ("sigmas" not in values), "nothing is known in chunk 0"


def test_joined_latents_are_the_clean_ones(loaded):
    chosen = chunk_sampler(loaded, interpolation=True)
    plan = chosen.accept(planned(148, 52, 4))
    first = chosen.first_chunk(plan.chunk(0), SIZE, None)
    assert first.latents.shape == (1, 4, 13, *LATENT) and first.frames.shape == (52, 3, *SIZE)
    tail = chosen.hand_off(plan, None, first)
    assert torch.equal(tail, first.latents[:, :, -2:])
    second = chosen.sample_chunk(plan.chunk(1), tail, None)
    assert torch.equal(second[:, :, :1], tail[:, :, -1:]) and second.shape[2] == 13
    assert chosen.decode(second, plan.chunk(1), tail).shape[0] == 48
    assert chosen.steps(plan.chunk(1)) == 2 * 4 and chosen.steps(plan.chunk(0)) == 2 * 4


def test_the_base_latents_are_those_of_the_prediction_alone(loaded):
    """Filling in changes nothing of what lies between: every fourth latent is the prediction model's."""
    filled, alone = (chunk_sampler(loaded, interpolation=flag) for flag in (True, False))
    chunk = filled.accept(planned(52, 52, 4)).chunk(0)
    bases = alone.first_chunk(alone.accept(planned(16, 16, 4)).chunk(0), SIZE, None).latents
    assert torch.equal(filled.first_chunk(chunk, SIZE, None).latents[:, :, ::4], bases)


@pytest.mark.parametrize(
    ("interpolation", "asked", "fitted"),
    [
        (False, (16, 4), (16, 4)),
        (False, (18, 5), (20, 4)),
        (False, (4, 4), (8, 4)),
        (True, (52, 4), (52, 4)),
        (True, (16, 4), (20, 4)),
        (True, (64, 16), (68, 20)),
    ],
)
def test_lengths_are_those_that_latents_have(loaded, interpolation, asked, fitted):
    assert chunk_sampler(loaded, interpolation=interpolation).fit(*asked) == fitted


def test_a_video_of_ones_own_is_continued(loaded, run_root):
    frames = torch.rand(11, *SIZE, 3, generator=torch.Generator().manual_seed(2))
    for name, interpolation, chunk in (("sky_prediction", True, 20), ("short_sky", False, 16), ("t2v", False, 6)):
        overlap = 2 if name == "t2v" else 4
        read = make(chunk_sampler(loaded, name, interpolation), 20, chunk, overlap, name, start_frames=frames)
        assert read.shape[0] == 20 and torch.allclose(read[:11], frames, atol=0.003)
        other = make(
            chunk_sampler(loaded, name, interpolation), 20, chunk, overlap, f"{name}2", start_frames=1 - frames
        )
        assert not torch.allclose(read[11:], other[11:], atol=0.01)


def test_a_gap_is_filled_from_both_ends(loaded):
    chosen = chunk_sampler(loaded, interpolation=True)
    assert chosen.fills and not chunk_sampler(loaded).fills
    assert [chosen.fit_gap(n) for n in (2, 5, 9, 33)] == [2, 5, 9, 33]
    first, last = torch.rand(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    for count in (5, 20):
        chunk = Chunk(4, 0, count, count, 1, seed=3)
        assert chosen.steps(chunk) == 2
        frames = chosen.fill(first, last, chunk)
        assert frames.shape == (count, 3, *SIZE) and torch.equal(frames, chosen.fill(first, last, chunk))
        changed = chosen.fill(first, 1 - last, chunk)
        assert not torch.allclose(frames[0], frames[-1], atol=1e-3)
        assert not torch.allclose(frames[count // 2], changed[count // 2], atol=1e-3)
    with pytest.raises(SettingsError, match="cannot fill a gap"):
        chunk_sampler(loaded).fill(first, last, Chunk(0, 0, 5, 5, 1, seed=3))


@pytest.mark.parametrize(
    ("name", "interpolation", "calls"), [("sky_prediction", True, 8), ("short_sky", False, 2), ("t2v", False, 2)]
)
def test_preflight_counts_its_steps(loaded, name, interpolation, calls):
    chosen = chunk_sampler(loaded, name, interpolation)
    lengths = (100, 52, 4) if interpolation else (28, 16, 4)
    said = preflight.preflight(chosen, VideoPlan(*lengths, 0, Fraction(8)), SIZE[1], SIZE[0])
    assert said.steps == 2 * calls and said.num_chunks == 2


def test_hierarchies_of_any_stride_can_be_filled(loaded):
    chosen = chunk_sampler(loaded, interpolation=True)
    ends = torch.rand(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    for stride in (2, 3, 4, 16):
        filler = SampledGaps(chosen, stride)
        plan = GapPlan(num_frames=2 * stride + 1, stride=stride, model_frames=filler.model_frames)
        filler.accept(plan, SIZE)
        assert filler.fill(*ends, plan.chunk(1)).shape == (stride - 1, 3, *SIZE)
    with pytest.raises(SettingsError, match="cannot fill"):
        SampledGaps(chunk_sampler(loaded), 4)


def test_what_a_model_has_no_use_for_is_no_part_of_its_identity(loaded):
    unused = {"noise_level": 7, "previous_guidance": PreviousGuidance(0.5), "whole_mask": True}
    for name, values in (("short_sky", unused | {"cfg": 3.0}), ("t2v", unused), ("sky_prediction", {"cfg": 3.0})):
        assert chunk_sampler(loaded, name).identity() == chunk_sampler(loaded, name, **values).identity()
    assert chunk_sampler(loaded, "t2v").identity() != chunk_sampler(loaded, "t2v", cfg=3.0).identity()


def test_a_prompt_of_the_plan_changes_its_chunks_only(loaded, run_root):
    chosen = chunk_sampler(loaded, "t2v")
    plain = make(chosen, 14, 6, 2)
    cued = make(chosen, 14, 6, 2, script=Script(prompts=(Cue("fire", chunk=2),)))
    assert torch.equal(cued[:10], plain[:10]) and not torch.equal(cued[10:], plain[10:])
    with pytest.raises(SettingsError, match="cannot follow the plan's prompt"):
        chunk_sampler(loaded).accept(planned(28, 16, 4, script=Script(prompts=(Cue("fire", chunk=1),))))


def test_what_cannot_be_done_is_refused(loaded):
    image = torch.rand(1, *SIZE, 3)
    with pytest.raises(SettingsError, match="start_image has no place"):
        chunk_sampler(loaded).accept(planned(28, 16, 4, start_image=image))
    with pytest.raises(SettingsError, match="takes one noise level of the tail per chunk"):
        chunk_sampler(loaded).with_perturbed_tail(Perturbation(0.1, end=0.5))
    with pytest.raises(SettingsError, match="hold latents by a mask"):
        chunk_sampler(loaded, "short_sky").with_perturbed_tail(Perturbation(0.1))
    with pytest.raises(SettingsError, match="cannot be guided against the previous chunk"):
        chunk_sampler(loaded, "short_sky").with_previous_guidance(PreviousGuidance(0.1))
    with pytest.raises(SettingsError, match="interpolation_model has no effect"):
        chunk_sampler(loaded, "short_sky", True).accept(planned(28, 16, 4))
    with pytest.raises(SettingsError, match="VAE does not belong"):
        family.check_family(loaded["t2v"].model, loaded["short_sky"].vae, None)
    with pytest.raises(SettingsError, match="was not trained to fill in"):
        family.check_family(loaded["sky_prediction"].model, loaded["short_sky"].vae, loaded["short_sky"].model)
    patched = loaded["short_sky"].model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    with pytest.raises(SettingsError, match="attn1_patch"):
        chunk_sampler(loaded, "short_sky", **{}).__class__(
            patched, loaded["short_sky"].vae, Ddim(1.0), ddim_sigmas(2)
        ).accept(planned(28, 16, 4))
    with pytest.raises(SettingsError, match="takes no text"):
        text = [[torch.ones(1, 4, 16), {}]]
        sample(loaded["short_sky"].model, noise(1, 4, 4, *LATENT), text, text)
    with pytest.raises(SettingsError, match="video latents"):
        sample(loaded["short_sky"].model, noise(4, 4, *LATENT), model.no_text(), model.no_text())
    with pytest.raises(SettingsError, match="takes text of width 16"):
        sample(loaded["t2v"].model, noise(4, 4, *LATENT), model.no_text(), model.no_text())


# Nodes


def test_the_nodes_make_a_chunk_sampler(loaded):
    found = loaded["sky_prediction"]
    values = {
        "model": found.model,
        "vae": found.vae,
        "method": "DDIM",
        "steps": 4,
        "cfg": 15.0,
        "noise_level": 100,
        "previous_guidance": 0.1,
        "mask": nodes.PAPER,
    }
    chosen = nodes.LvdmChunkSampler.execute(**values).args[0]
    assert not chosen.whole_mask and torch.equal(chosen.sigmas, ddim_sigmas(4))
    assert nodes.LvdmChunkSampler.execute(**values | {"mask": nodes.RELEASED}).args[0].whole_mask
    assert len(nodes.LvdmChunkSampler.execute(**values | {"method": "DDPM"}).args[0].sigmas) == 1001
    with pytest.raises(SettingsError, match="no table for 3 steps"):
        nodes.LvdmChunkSampler.execute(**values | {"steps": 3})
    with pytest.raises(SettingsError, match="clip has no effect"):
        nodes.LvdmChunkSampler.execute(**values, clip=loaded["t2v"].clip)
    text = loaded["t2v"]
    values |= {"model": text.model, "vae": text.vae}
    with pytest.raises(SettingsError, match="needs a prompt"):
        nodes.LvdmChunkSampler.execute(**values)
    with pytest.raises(SettingsError, match="needs a negative prompt"):
        nodes.LvdmChunkSampler.execute(**values, positive=encode_prompt(text.clip, "x"))
    chosen = nodes.LvdmChunkSampler.execute(**values, clip=text.clip).args[0]
    assert torch.equal(chosen.negative[0][0], encode_prompt(text.clip, "")[0][0])
    chosen, sigmas, conditioning = nodes.LvdmSampling.execute(found.model, "DDIM", 4).args
    assert torch.equal(sigmas, ddim_sigmas(4)) and not conditioning[0][0].any() and isinstance(chosen, Ddim)


def test_ddpm_is_the_same_sampler_on_all_levels(loaded):
    chosen, sigmas, empty = nodes.LvdmSampling.execute(loaded["short_sky"].model, "DDPM", 50).args
    start = noise(1, 4, 2, 2, 2)
    got = comfy.sample.sample_custom(
        loaded["short_sky"].model,
        start,
        1.0,
        chosen,
        sigmas[-20:],
        empty,
        empty,
        torch.zeros_like(start),
        disable_pbar=True,
        seed=1,
    )
    assert got.isfinite().all()


def test_perturb_tail_sets_the_level_that_the_network_is_told(loaded):
    """Noise per signal of 0.455 is the official level 100 (reference: lvdm, 6.3); growth goes on to the next one."""
    plain = chunk_sampler(loaded, noise_level=-1)
    told = plain.with_perturbed_tail(Perturbation(0.455, growth=0.148))
    plan = planned(40, 16, 4)
    assert [told._level(plan.chunk(index)) for index in (1, 2)] == [100, 150]

    def made(sampler):
        state, _ = start_video(sampler.accept(plan), sampler)
        return [frames for _, frames in video_chunks(state, sampler)]

    first, second = made(told)
    by_level = made(replace(plain, noise_level=100))
    assert torch.equal(first, by_level[0]) and not torch.equal(second, by_level[1])
    assert plain.with_perturbed_tail(Perturbation())._level(plan.chunk(1)) == -1


def test_guidance_costs_a_call_per_step_and_can_end_early(loaded):
    plain, plan = chunk_sampler(loaded), planned(28, 16, 4)
    chunk = plan.chunk(1)
    assert plain.blind_calls(plan.chunk(0)) == 0 and plain.blind_calls(chunk) == plain.steps(chunk)
    part = plain.with_previous_guidance(PreviousGuidance(0.1, end=0.5))
    assert 0 < part.blind_calls(chunk) < plain.blind_calls(chunk)
    off = plain.with_previous_guidance(PreviousGuidance())
    assert off.blind_calls(chunk) == 0
    found = []
    for each in (plain, part, off):
        state, _ = start_video(each.accept(plan), each)
        [(_, frames)] = video_chunks(state, each)
        found.append(frames)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
