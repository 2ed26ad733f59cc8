"""I2VGen-XL as a host MODEL: the host's layers, partial loading, fp8, attention, wrong files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import CheckpointError, SettingsError
from streaming_core.models.i2vgenxl import network as core
from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig, detect
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError, load_strict, shapes_of
from streaming_core.models.unet3d_layers import Skips
from streaming_core.schedules.ddim import enhancer_sigmas, kept_timesteps
from tiny_models.enhancer import TINY, tiny_weights

import_host()
import_pack()

import comfy.model_management as mm  # noqa: E402
import comfy.ops  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance import i2vgenxl  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance.load import load_enhancer  # noqa: E402

from tiny_models.native import sample  # noqa: E402

WIDTH, FRAMES, SIDE = TINY.cross_attention_dim, 5, 12


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return tiny_weights(dtype=torch.float32)


@pytest.fixture(scope="module")
def model(weights):
    return i2vgenxl.build_i2vgenxl(weights, "tiny")


def noise_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def clip_inputs(frames: int = FRAMES) -> dict[str, Tensor]:
    return {
        "sample": noise_like(2, 4, frames, SIDE, SIDE + 4, seed=1),
        "timestep": torch.tensor([925, 925]),
        "context": noise_like(2, 7, WIDTH, seed=2),
        "image_latents": core.position_ramp(noise_like(2, 4, SIDE, SIDE + 4, seed=3), frames),
        "image_embeddings": noise_like(2, 1, WIDTH, seed=4),
        "fps": torch.tensor([38, 38]),
    }


def conditioning(seed: int, embedding: bool = True) -> list:
    options = {"concat_latent_image": noise_like(1, 4, SIDE, SIDE, seed=9)}
    if embedding:
        options[i2vgenxl.IMAGE_EMBEDDING] = noise_like(1, 1, WIDTH, seed=seed + 1)
    return [[noise_like(1, 7, WIDTH, seed=seed), options]]


def clip_of(model, **options) -> Tensor:
    latent = torch.zeros(FRAMES, 4, SIDE, SIDE)
    sigmas = enhancer_sigmas(4, 0.8)
    return sample(model, latent, conditioning(20), conditioning(30, embedding=False), sigmas=sigmas, cfg=9.0, **options)


def test_every_official_timestep_is_met_exactly(model):
    sampling = model.get_model_object("model_sampling")
    for steps, strength in ((30, 0.97), (50, 0.6), (10, 1.0), (500, 1.0), (999, 1.0)):
        sigmas = enhancer_sigmas(steps, strength)
        assert sigmas.isfinite().all() and sigmas[-1] == 0 and len(sigmas) == int(steps * strength) + 1
        expected = kept_timesteps(steps, strength)
        assert torch.equal(sampling.timestep(sigmas[:-1]), expected)


@pytest.mark.parametrize("operations", ["disable_weight_init", "manual_cast"])
def test_the_host_s_layers_change_nothing(weights, operations):
    plain, adopted = core.build(TINY), core.build(TINY, operations=getattr(comfy.ops, operations))
    for network in (plain, adopted):
        load_strict(network, weights, "tiny")
    layers = [m for m in adopted.modules() if hasattr(m, "comfy_cast_weights")]
    assert sum(p.numel() for m in layers for p in m.parameters(recurse=False)) == sum(
        p.numel() for p in adopted.parameters()
    )
    assert torch.equal(plain.denoise(**clip_inputs()), adopted.denoise(**clip_inputs()))


def one_call(model) -> Tensor:
    """v-prediction of one clip by the MODEL's network, called as the host calls it."""
    inputs = clip_inputs()
    return model.model.diffusion_model(
        inputs["sample"].movedim(2, 1).flatten(0, 1),
        inputs["timestep"].repeat_interleave(FRAMES),
        inputs["context"],
        image_latents=inputs["image_latents"][:, :, 0],
        image_embeddings=inputs["image_embeddings"],
        fps=inputs["fps"],
    )


def test_partially_loaded_below_its_size_gives_the_same(weights):
    model = i2vgenxl.build_i2vgenxl(weights, "tiny")
    whole, clip = one_call(model), clip_of(model)
    model.detach()
    model.load(torch.device("cpu"), lowvram_model_memory=model.model_size() // 3)
    assert model.model.model_lowvram
    kept_out = [m for m in model.model.modules() if hasattr(m, "prev_comfy_cast_weights")]
    assert sum(mm.module_size(module) for module in kept_out) > model.model_size() / 2
    assert torch.equal(one_call(model), whole)
    model.detach()
    assert torch.equal(clip_of(model), clip)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3fn", "e5m2"])
def test_fp8_storage_rounds_weights_and_nothing_else(model, weights, dtype, record_property):
    stored = i2vgenxl.build_i2vgenxl(weights, "tiny", keep_in=dtype)
    network = stored.model.diffusion_model
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert stored.model_dtype() == dtype
    assert network.dtype == dtype and stored.model.manual_cast_dtype not in mm.FLOAT8_TYPES
    assert stored.model_size() < model.model_size() / 3.5
    rounded = i2vgenxl.build_i2vgenxl({key: value.to(dtype).float() for key, value in weights.items()}, "tiny")
    exact, coarse, expected = (one_call(each) for each in (model, stored, rounded))
    assert (coarse - expected).abs().max() <= 1e-5 * expected.abs().max()
    error = float((coarse - exact).norm() / exact.norm())
    record_property("relative_error", error)
    print(f"relative error of one call with weights in {dtype}: {error:.4f}")
    assert 0 < error < 0.5
    assert clip_of(stored).isfinite().all()


def test_low_memory_is_the_same_and_keeps_skips_away(model, weights):
    once = clip_of(model)
    frugal = i2vgenxl.frugal(model)
    assert not model.model_options.get("transformer_options", {}).get(i2vgenxl.FRUGAL)
    assert torch.allclose(clip_of(frugal), once, rtol=1e-5, atol=1e-5 * float(once.abs().max()))

    network = core.build(TINY)
    load_strict(network, weights, "tiny")
    inputs, stored, fetched = clip_inputs(), [], []

    def away(skip: Tensor) -> Tensor:
        stored.append(skip.shape)
        return skip.double()

    def back(index: int, skip: Tensor) -> Tensor:
        fetched.append((index, skip.dtype))
        return skip.float()

    plain = network.denoise(**inputs)
    assert torch.equal(network.denoise(**inputs, skips_of=lambda _: Skips(away, back)), plain)
    assert len(stored) == len(network.config.sizes.channels) * 2
    assert fetched == [(index, torch.float64) for index in reversed(range(len(stored)))]


def test_guidance_rows_together_or_apart_are_the_same(model, monkeypatch):
    rows = []

    def count(executor, x, timesteps, context, *args, **kwargs):
        rows.append(context.shape[0])
        return executor(x, timesteps, context, *args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    together = clip_of(watched)
    assert set(rows) == {2}
    rows.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda self, *args, **kwargs: 1e18)
    apart = clip_of(watched)
    assert set(rows) == {1}
    assert torch.allclose(apart, together, rtol=1e-5, atol=1e-5 * float(together.abs().max()))


def test_attention_goes_through_the_host(model):
    calls = []

    def override(attention, q, k, v, heads, *args, **kwargs):
        calls.append((q.shape, heads))
        return attention(q, k, v, heads, *args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(clip_of(watched), clip_of(model))
    layers = [m for m in model.model.diffusion_model.modules() if hasattr(m, "to_q")]
    # One attention, over the four channels of the image latents, is told no kernel and uses torch's.
    assert len(calls) == 3 * (len(layers) - 1)
    assert all(shape[-1] == heads * TINY.head_width for shape, heads in calls)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cond: cond[0][1].pop("concat_latent_image"), ["image", "Enhancer Conditioning"]),
        (lambda cond: cond[0].__setitem__(0, torch.zeros(1, 7, WIDTH + 1)), [str(WIDTH), str(WIDTH + 1)]),
        (lambda cond: cond[0].__setitem__(0, torch.zeros(2, 7, WIDTH)), ["one prompt", "[2, 7"]),
        (lambda cond: cond[0][1].__setitem__(i2vgenxl.IMAGE_EMBEDDING, torch.zeros(1, 1, 3)), [str(WIDTH), "3"]),
    ],
)
def test_conditions_that_do_not_fit_are_refused(model, change, words):
    positive = conditioning(20)
    change(positive)
    with pytest.raises(SettingsError) as refused:
        sample(model, torch.zeros(FRAMES, 4, SIDE, SIDE), positive, conditioning(30), steps=1)
    assert all(word in str(refused.value) for word in words)


def test_the_released_sizes_are_read_from_shapes():
    released = I2VGenXLConfig()
    assert detect(shapes_of(core.build(released, device="meta").state_dict())) == released
    assert detect(shapes_of(core.build(TINY, device="meta").state_dict())) == TINY


def as_keys(*keys: str) -> dict[str, Tensor]:
    return {key: torch.zeros(1) for key in keys}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (as_keys("down_blocks.0.x", "up_blocks.0.x", "transformer_in.x"), ["fps_embedding", "text-to-video"]),
        (as_keys("down_blocks.0.x", "up_blocks.0.x"), ["still images"]),
        (as_keys("model.diffusion_model.x", "controlnet.x"), ["StreamingSVD"]),
        (as_keys("model.diffusion_model.x"), ["complete checkpoint"]),
        (as_keys("input_blocks.0.0.x", "output_blocks.0.x"), ["original layout"]),
        (as_keys("encoder.x", "decoder.x"), ["VAE"]),
        (as_keys("something.else"), ["no image_latents_temporal_encoder", "1 keys"]),
    ],
)
def test_another_network_s_file_is_named(tensors, words, tmp_path, monkeypatch):
    import folder_paths

    save_file(tensors, tmp_path / "file.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    with pytest.raises(WrongCheckpointError) as refused:
        load_enhancer("file.safetensors")
    message = str(refused.value)
    assert message.startswith("file.safetensors is not a") and "\n" not in message
    assert all(word in message for word in words), message


def test_incomplete_and_altered_files_are_refused(weights):
    key = "up_blocks.0.resnets.0.conv1.weight"
    with pytest.raises(IncompleteCheckpointError, match=rf"1 missing \(first {key}"):
        i2vgenxl.build_i2vgenxl({k: v for k, v in weights.items() if k != key}, "tiny")
    with pytest.raises(IncompleteCheckpointError, match="1 unexpected .first extra"):
        i2vgenxl.build_i2vgenxl({**weights, "extra": torch.zeros(1)}, "tiny")
    with pytest.raises(IncompleteCheckpointError, match="1 of another shape"):
        i2vgenxl.build_i2vgenxl({**weights, key: weights[key][:1]}, "tiny")
    gone = "context_embedding.0.weight"
    with pytest.raises(CheckpointError, match=f"lacks '{gone}'"):
        i2vgenxl.build_i2vgenxl({k: v for k, v in weights.items() if k != gone}, "tiny")
