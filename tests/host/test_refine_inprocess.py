"""MS-Vid2Vid on the host's own code: levels, guidance, windows, sizes, loading. Small random networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from streaming_core.errors import CheckpointError, SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.models.registry import WrongCheckpointError
from streaming_core.schedules.vid2vid import refiner_sigmas, rescaled_guidance
from tests.golden.oracles import dpmpp_2m_sde_step
from tests.host.inprocess import import_host, import_pack
from tests.tiny_modelscope import write_tiny_base, write_tiny_modelscope, write_tiny_vid2vid

WIDTH = 64


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    import comfy.sample
    import comfy.samplers
    import folder_paths
    from comfyui_streamingt2v.nodes.host.enhance import load as load_enhancer
    from comfyui_streamingt2v.nodes.host.enhance import refine
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import vid2vid

    models = Path(folder_paths.get_folder_paths("diffusion_models")[0])
    write_tiny_vid2vid(models / "vid2vid_tiny.pth")
    write_tiny_modelscope(Path(folder_paths.get_folder_paths("checkpoints")[0]) / "modelscope_tiny.safetensors")
    return SimpleNamespace(
        comfy=comfy,
        models=models,
        enhancer=load_enhancer,
        family=load_modelscope,
        refine=refine,
        vid2vid=vid2vid,
    )


@pytest.fixture(scope="module")
def model(host):
    return host.enhancer.load_enhancer("vid2vid_tiny.pth")


@pytest.fixture(scope="module")
def vae(host):
    return host.family.load_streamingmodelscope("modelscope_tiny.safetensors").vae


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, 77, WIDTH, generator=generator), {}]] for _ in range(2)]


def video(frames: int, height: int = 32, width: int = 32) -> TensorFrames:
    return TensorFrames(torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(1)), 8)


def request(host, model, vae, texts, frames, **settings):
    defaults = {"steps": 2, "cfg": 2.0, "window_frames": 6, "overlap_frames": 2}
    chosen = host.refine.RefineSettings(**{**defaults, **settings})
    return host.refine.RefineRequest(model, vae, frames, *texts, 32, 32, chosen)


def test_levels_are_the_official_ones(host, model):
    sampling = model.model.model_sampling
    sigmas = host.vid2vid.vid2vid_sigmas()
    assert len(sigmas) == 31 and sigmas[-1] == 0
    torch.testing.assert_close(sampling.sigmas[599], sigmas[0], rtol=1e-5, atol=0)
    assert sampling.sigmas.isfinite().all() and (sampling.sigmas.diff() > 0).all()
    timesteps = [int(sampling.timestep(sigma)) for sigma in sigmas[:-1]]
    assert timesteps[:5] == [599, 580, 560, 541, 522] and timesteps[-3:] == [76, 57, 38]


def test_host_sampler_takes_the_official_steps(host, model, texts):
    """The host's DPM-Solver++(2M) SDE, guidance included, against the recorded arithmetic written out."""
    sigmas = refiner_sigmas(4, 599)
    clean, noise = (torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    draws = [torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(10 + step)) for step in range(len(sigmas))]
    guided = host.vid2vid.with_rescaled_guidance(model, 0.2)
    pending = iter(draws)
    sampler = host.comfy.samplers.KSAMPLER(
        host.comfy.k_diffusion.sampling.sample_dpmpp_2m_sde, {"noise_sampler": lambda *_: next(pending)}
    )
    got = host.comfy.sample.sample_custom(guided, noise, 7.5, sampler, sigmas, *texts, clean, disable_pbar=True)

    network, sampling = model.model.diffusion_model, model.model.model_sampling
    memory = torch.cat([network.project_context(text[0][0]) for text in texts])
    scale = model.model.latent_format.scale_factor
    x, before = clean * scale + sigmas[0] * noise, None
    for step, sigma in enumerate(sigmas[:-1]):
        signal = (1 + sigma**2).rsqrt()
        with torch.inference_mode():
            velocity = network(
                torch.cat([x * signal] * 2), sampling.timestep(sigma).float().repeat(6), memory=memory
            ).chunk(2)
        v = rescaled_guidance(velocity[0][None], velocity[1][None], 7.5, 0.2)[0]
        denoised = signal**2 * x - sigma * signal * v
        x = dpmpp_2m_sde_step(x, denoised, before, sigmas, step, draws[step])
        before = denoised
    assert (got - x / scale).abs().max() < 1e-4 * got.abs().max()


@pytest.mark.parametrize("frames", [1, 5, 6, 7, 13])
def test_no_frame_is_lost(host, model, vae, texts, frames):
    images = host.refine.refine_images(request(host, model, vae, texts, video(frames)))
    assert images.shape == (frames, 32, 32, 3) and images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1


def test_same_seed_same_video_and_streams_equal_batches(host, model, vae, texts):
    first = host.refine.refine_images(request(host, model, vae, texts, video(9)))
    assert torch.equal(first, host.refine.refine_images(request(host, model, vae, texts, video(9))))
    stream = host.refine.refine_stream(request(host, model, vae, texts, video(9)))
    assert len(stream) == 9 and stream.fps == 8
    torch.testing.assert_close(stream.read(0, 9), first, atol=1 / 255, rtol=0)
    other = host.refine.refine_images(request(host, model, vae, texts, video(9), seed=34))
    assert not torch.equal(first, other)


def test_result_fits_the_box_without_bars(host, model, vae, texts):
    wide = request(host, model, vae, texts, video(3, 32, 60))
    assert (wide.size.height_px, wide.size.width_px) == (16, 32)
    assert host.refine.refine_images(wide).shape == (3, 16, 32, 3)


def test_settings_that_cannot_work_are_refused(host, model, vae, texts):
    with pytest.raises(SettingsError, match="overlap of 6"):
        request(host, model, vae, texts, video(3), overlap_frames=6)
    with pytest.raises(SettingsError, match="between 1 and 998, got 999"):
        request(host, model, vae, texts, video(3), level=999)
    base = host.models / "base_tiny.safetensors"
    write_tiny_base(base)
    with pytest.raises(SettingsError, match="refining needs MS-Vid2Vid"):
        request(host, host.family.load_modelscope_unet(base.name), vae, texts, video(3))


def test_other_files_are_named(host):
    write_tiny_base(host.models / "base_tiny.safetensors")
    with pytest.raises(CheckpointError, match="base_tiny.safetensors"):
        host.enhancer.load_enhancer("base_tiny.safetensors")
    with pytest.raises(WrongCheckpointError, match="MS-Vid2Vid UNet, which Load Enhancer reads"):
        host.family.load_modelscope_unet("vid2vid_tiny.pth")


@pytest.mark.parametrize(("kind", "mantissa_bits"), [("fp8_e4m3fn", 3), ("fp8_e5m2", 2)])
def test_weights_may_be_kept_in_fp8(host, model, texts, kind, mantissa_bits):
    small = host.enhancer.load_enhancer("vid2vid_tiny.pth", kind)
    kept = small.model.diffusion_model.conv_in.weight.dtype
    assert str(kept).startswith("torch.float8")
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    sampler = host.comfy.samplers.sampler_object("euler")
    results = [
        host.comfy.sample.sample_custom(
            each, noise, 1.0, sampler, refiner_sigmas(1, 599), *texts, torch.zeros_like(noise), disable_pbar=True
        )
        for each in (model, small)
    ]
    error = (results[0] - results[1]).norm() / results[0].norm()
    # Rounding moves a weight by up to 2^-(bits + 1); a few dozen layers on top of each other triple that.
    assert 0 < error < 3 * 2 ** -(mantissa_bits + 1), error
