"""DropletVideo's networks: detection and refusals, what the VAE leaves behind, tiles, lengths, types, diffusers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streaming_core.errors import CheckpointError, FrameError, SettingsError
from streaming_core.models.attention import Compute, attend
from streaming_core.models.dropletvideo import blocks, causal
from streaming_core.models.dropletvideo.conditioning import (
    REFERENCE_NOISE,
    inpaint_channels,
    mask_channel,
    painted,
    place_frames,
)
from streaming_core.models.dropletvideo.config import (
    DEFAULT_SCALING_FACTOR,
    CausalVaeConfig,
    DropletConfig,
    decoded_frames,
    latent_count,
)
from streaming_core.models.dropletvideo.detect import detect, detect_vae, official_keys
from streaming_core.models.dropletvideo.network import DropletVideo
from streaming_core.models.dropletvideo.rotary import fitted_spans, positions, rotary_table
from streaming_core.models.dropletvideo.tiles import decode_in_tiles
from streaming_core.models.dropletvideo.vae import CausalVae
from streaming_core.models.dropletvideo.work import forward_flops
from streaming_core.models.registry import (
    IncompleteCheckpointError,
    WrongCheckpointError,
    load_strict,
    shapes_of,
)
from streaming_core.schedules.ddim import LEAST_SIGNAL, ddim_step
from streaming_core.schedules.dropletvideo import (
    dropletvideo_sigmas,
    official_steps,
    schedule_from,
    trailing_timesteps,
)
from tiny_models.dropletvideo import (
    TINY,
    TINY_VAE,
    transformer_settings,
    transformer_weights,
    vae_settings,
    vae_weights,
)

SMALL_VAE = replace(TINY_VAE, channels=(8, 8, 8, 16), norm_groups=4)
"""Quicker; needs its config.json."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformer(config: DropletConfig = TINY, **options) -> DropletVideo:
    net = DropletVideo(config, **options).eval().requires_grad_(False)
    load_strict(net, transformer_weights(config=config), "the network")
    return net


def vae(config: CausalVaeConfig = SMALL_VAE) -> CausalVae:
    net = CausalVae(config).eval().requires_grad_(False)
    load_strict(net, vae_weights(config=config), "the VAE")
    return net


def asked(net: DropletVideo, frames: int = 3, height: int = 8, width: int = 12, batch: int = 2, fps=(8.0,), **more):
    """One evaluation; arguments of the call can be replaced."""
    config = net.config
    arguments = {
        "latents": noise(batch, frames, config.out_channels, height, width),
        "inpaint": noise(batch, frames, config.out_channels + 1, height, width, seed=1),
        "timesteps": torch.tensor([999, 20, 500][:batch]),
        "text": noise(batch, 7, config.text_width, seed=2),
        "fps": fps if isinstance(fps, Tensor) else torch.tensor(fps),
    } | more
    return net(**arguments)


# Detection


def full_shapes() -> dict[str, tuple[int, ...]]:
    return shapes_of(DropletVideo(DropletConfig(), device="meta").state_dict())


def full_vae_shapes() -> dict[str, tuple[int, ...]]:
    return shapes_of(CausalVae(CausalVaeConfig(), device="meta").state_dict())


def test_sizes_are_read_from_shapes():
    assert detect(full_shapes()) == DropletConfig()
    assert detect(shapes_of(transformer_weights())) == TINY
    assert detect_vae(full_vae_shapes()) == CausalVaeConfig()
    assert detect_vae(shapes_of(vae_weights())) == TINY_VAE
    assert len(full_shapes()) == 1028 and len(full_vae_shapes()) == 436


def test_config_json_says_what_shapes_do_not():
    shapes = shapes_of(transformer_weights())
    settings = transformer_settings() | {"add_noise_in_inpaint_model": True, "norm_eps": 1e-6, "_class_name": "any"}
    assert detect(shapes, settings=settings) == replace(TINY, noise_on_reference=True, norm_eps=1e-6)
    other = replace(SMALL_VAE, scaling_factor=1.15258426, sample_height=64, sample_width=96)
    found = detect_vae(shapes_of(vae_weights(config=other)), settings=vae_settings(other))
    assert found == other and found.default_tile == (32, 48)
    assert detect_vae(shapes_of(vae_weights())).scaling_factor == DEFAULT_SCALING_FACTOR == 0.7
    assert CausalVaeConfig().default_tile == (240, 360)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("num_layers", 30),
        ("num_attention_heads", 30),
        ("in_channels", 16),
        ("use_rotary_positional_embeddings", False),
        ("activation_fn", "gelu"),
        ("patch_size_t", 2),
    ],
)
def test_a_config_json_of_other_weights_is_refused(entry, value):
    with pytest.raises(CheckpointError, match=entry):
        detect(shapes_of(transformer_weights()), settings=transformer_settings() | {entry: value})


@pytest.mark.parametrize(("entry", "value"), [("layers_per_block", 3), ("temporal_compression_ratio", 8)])
def test_a_config_json_of_another_vae_is_refused(entry, value):
    with pytest.raises(CheckpointError, match=entry):
        detect_vae(shapes_of(vae_weights()), settings=vae_settings() | {entry: value})


def test_groups_that_do_not_divide_the_levels_are_refused():
    with pytest.raises(CheckpointError, match="32 norm groups"):
        detect_vae(shapes_of(vae_weights(config=SMALL_VAE)))


def relative(width: int, *first: int, ofs: bool = False) -> dict[str, tuple[int, ...]]:
    """Keys of a model of the same layout, without the frame-rate condition."""
    shapes = shapes_of(DropletVideo(replace(TINY, width=width, head_width=64), device="meta").state_dict())
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("fps_embedding.")}
    shapes["patch_embed.proj.weight"] = (width, *first)
    return shapes | ({"ofs_embedding.linear_1.weight": (512, 512)} if ofs else {})


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (relative(1920, 16, 2, 2), r"CogVideoX 2B \(text"),
        (relative(3072, 16, 2, 2), r"CogVideoX 5B \(text"),
        (relative(3072, 32, 2, 2), r"CogVideoX 5B \(image"),
        (relative(3072, 33, 2, 2), "CogVideoX-Fun 5B InP"),
        (relative(1920, 33, 2, 2), "CogVideoX-Fun 2B InP"),
        (relative(3072, 256, ofs=True), r"CogVideoX 1\.5 5B"),
        (full_vae_shapes(), "CogVideoX's VAE"),
        ({"shared.weight": (32128, 4096), "encoder.block.0.layer.0.layer_norm.weight": (4096,)}, "T5"),
        ({"transformer_blocks.9.norm1.norm.weight": (3072,)}, "one part of a split checkpoint"),
        ({"blocks.0.q.weight": (1,), "time_embedding_linear_1.weight": (1,)}, "ComfyUI's own layout"),
        ({"transformer_blocks.0.attn1.to_q.lora_A.weight": (1,)}, "a LoRA"),
        ({"fps_embedding.0.weight": (1,), "down_blocks.0.resnets.0.conv1.weight": (1,)}, "I2VGen-XL"),
        ({"down_blocks.0.x": (1,), "up_blocks.0.x": (1,)}, "a UNet"),
        ({}, "among its 0 keys"),
    ],
)
def test_other_transformers_are_refused_by_name(shapes, name):
    with pytest.raises(WrongCheckpointError, match=f"a.safetensors is .*{name}"):
        detect(shapes, "a.safetensors")


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (shapes_of(transformer_weights()), "DropletVideo's transformer"),
        (relative(3072, 33, 2, 2), "a transformer"),
        ({"shared.weight": (32128, 4096), "encoder.block.0.layer.0.layer_norm.weight": (4096,)}, "T5"),
        ({"encoder.down.0.x": (1,), "decoder.up.0.x": (1,), "decoder.conv_in.weight": (1,)}, "Stable Diffusion"),
        ({"encoder.down_blocks.0.x": (1,), "decoder.up_blocks.0.x": (1,)}, "another model's VAE"),
        (
            {key: shape for key, shape in full_vae_shapes().items() if key.startswith("decoder.")},
            "a decoder without its encoder",
        ),
    ],
)
def test_other_vaes_are_refused_by_name(shapes, name):
    with pytest.raises(WrongCheckpointError, match=f"a.safetensors is .*{name}"):
        detect_vae(shapes, "a.safetensors")


@pytest.mark.parametrize("prefix", ["", "transformer_blocks.1.", "proj_out.", "time_embedding.", "norm_out.linear."])
def test_truncated_files_are_refused(prefix):
    weights = transformer_weights()
    if prefix:
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(prefix)}
        weights["transformer_blocks.2.norm1.norm.weight"] = torch.zeros(64)
    else:
        weights.pop("norm_final.bias")
    with pytest.raises(IncompleteCheckpointError, match="whole file|missing"):
        load_strict(DropletVideo(detect(shapes_of(weights))), weights, "the network")
    if prefix == "transformer_blocks.1.":
        del weights["transformer_blocks.2.norm1.norm.weight"]
        with pytest.raises(CheckpointError, match="num_layers 2"):
            detect(shapes_of(weights), settings=transformer_settings())


@pytest.mark.parametrize(
    "key", ["encoder.down_blocks.1.resnets.0.conv1.conv.weight", "decoder.norm_out.conv_b.conv.bias"]
)
def test_truncated_vaes_are_refused(key):
    weights = vae_weights()
    del weights[key]
    with pytest.raises(IncompleteCheckpointError, match="whole file|missing"):
        load_strict(CausalVae(detect_vae(shapes_of(weights))), weights, "the VAE")


def test_prefixes_of_whole_files_are_taken_off():
    shapes = shapes_of(transformer_weights())
    for prefix in ("", "model.diffusion_model.", "transformer.", "module."):
        assert official_keys({prefix + key: shape for key, shape in shapes.items()}) == shapes
    mixed = {"transformer.x": 1, "vae.y": 2}
    assert official_keys(mixed) == mixed


# Transformer


@torch.inference_mode()
def test_every_input_of_the_transformer_counts():
    net = transformer()
    want = asked(net)
    assert want.shape == (2, 3, 16, 8, 12) and torch.equal(asked(net), want)
    config = net.config
    others = {
        "fps": torch.tensor([16.0]),
        "timesteps": torch.tensor([998, 19]),
        "text": noise(2, 7, config.text_width, seed=9),
        "inpaint": noise(2, 3, 17, 8, 12, seed=9),
        "latents": noise(2, 3, 16, 8, 12, seed=9),
    }
    for name, value in others.items():
        assert (asked(net, **{name: value}) - want).abs().max() > 1e-3, name


@torch.inference_mode()
def test_one_fps_serves_all_and_each_video_may_have_its_own():
    net = transformer()
    same, own = asked(net, fps=(8.0, 8.0)), asked(net, fps=(8.0, 24.5))
    torch.testing.assert_close(asked(net), same, atol=1e-5, rtol=0)
    torch.testing.assert_close(own[:1], same[:1], atol=1e-5, rtol=0)
    assert (own[1] - same[1]).abs().max() > 1e-3
    for wrong in (torch.tensor(8.0), torch.tensor([8.0, 8.0, 8.0])):
        with pytest.raises(SettingsError, match="FPS"):
            asked(net, fps=wrong)


@torch.inference_mode()
def test_sizes_that_patches_do_not_fill_are_refused():
    with pytest.raises(FrameError, match="104x64 .* multiples of 16"):
        asked(transformer(), width=13)


@torch.inference_mode()
def test_channels_that_do_not_belong_together_are_refused():
    net = transformer()
    for inpaint in (noise(2, 3, 16, 8, 12), noise(2, 5, 17, 8, 12), noise(2, 3, 17, 8, 14), noise(1, 3, 17, 8, 12)):
        with pytest.raises(FrameError, match="known frames"):
            asked(net, inpaint=inpaint)


@torch.inference_mode()
def test_attention_is_the_callers_and_parts_change_nothing(monkeypatch):
    net, calls = transformer(), []

    def counted(q, k, v, heads):
        calls.append((q.shape, k.shape, v.shape, heads))
        return attend(q, k, v, heads)

    want = asked(net)
    got = asked(net, compute=Compute(attention=counted, feed_forward_slices=3))
    tokens = 7 + 3 * 4 * 6
    assert calls == [((2, tokens, 64),) * 3 + (2,)] * TINY.layers
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    monkeypatch.setattr(blocks, "MAX_VALUES", 999)
    torch.testing.assert_close(asked(net), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision(dtype):
    net = transformer().to(dtype)
    latents, inpaint = noise(1, 3, 16, 8, 12).to(dtype), noise(1, 3, 17, 8, 12, seed=1).to(dtype)
    got = asked(net, batch=1, latents=latents, inpaint=inpaint, text=noise(1, 7, 24, seed=2).to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), asked(transformer(), batch=1), atol=0.15, rtol=0.1)
    small = vae().to(dtype)
    video = noise(1, 3, 9, 16, 24).clamp(-1, 1)
    encoded = small.encode(video.to(dtype))
    torch.testing.assert_close(encoded.float(), vae().encode(video), atol=0.15, rtol=0.1)
    decoded = small.decode(encoded)
    assert decoded.dtype == dtype and decoded.shape == video.shape
    torch.testing.assert_close(decoded.float(), vae().decode(encoded.float()), atol=0.2, rtol=0.1)


def test_layers_are_built_by_the_callers_operations():
    built = []

    class Counted:
        def __getattr__(self, name):
            def make(*arguments, **options):
                built.append(name)
                assert options["dtype"] is torch.bfloat16 and options["device"] == "meta"
                return getattr(torch.nn, name)(*arguments, **options)

            return make

    for build, config in ((DropletVideo, TINY), (CausalVae, TINY_VAE)):
        net = build(config, Counted(), torch.bfloat16, "meta")
        with_weights = [module for module in net.modules() if any(True for _ in module.parameters(recurse=False))]
        assert len(built) == len(with_weights) and not list(net.buffers())
        built.clear()


def test_rotary_positions_are_fitted_into_the_base_grid():
    assert fitted_spans(24, 42) == ((2, 28), (0, 45))
    assert fitted_spans(30, 45) == ((0, 30), (0, 45))
    assert fitted_spans(60, 30) == ((0, 30), (15, 30)), "a tall grid keeps its aspect"
    assert positions(2, 28, 24)[-1] == pytest.approx(28 * 23 / 24)
    assert positions(0, 45, 1).tolist() == [0]
    first, again = rotary_table(22, 24, 42), rotary_table(22, 24, 42)
    assert first is again and first[0].shape == (22 * 24 * 42, 64)


def test_a_table_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        asked(transformer(), frames=2, height=4, width=6)
    net = transformer().requires_grad_(True)
    asked(net, frames=2, height=4, width=6).sum().backward()
    assert net.fps_embedding.linear_1.weight.grad.abs().max() > 0


# VAE


@pytest.mark.parametrize(("frames", "latents", "decoded"), [(1, 1, 1), (5, 2, 8), (9, 3, 9), (13, 4, 16), (17, 5, 17)])
@torch.inference_mode()
def test_lengths(frames, latents, decoded):
    net = vae()
    encoded = net.encode(noise(1, 3, frames, 16, 24).clamp(-1, 1))
    assert encoded.shape == (1, 16, latents, 2, 3) and latent_count(frames) == latents
    assert net.decode(encoded).shape == (1, 3, decoded, 16, 24) and decoded_frames(latents) == decoded


def test_lengths_of_whole_chunks():
    assert [decoded_frames(latent_count(frames)) for frames in (81, 85, 89, 49)] == [81, 88, 89, 49]


@pytest.mark.parametrize("frames", [0, 2, 3, 4, 8, 10])
def test_other_numbers_of_frames_are_refused(frames):
    with pytest.raises(FrameError, match=rf"4k \+ 1 frames, got {frames}; use "):
        vae().encode(torch.zeros(1, 3, frames, 16, 16))
    with pytest.raises(FrameError, match="multiples of 8 pixels, got 20x16"):
        vae().encode(torch.zeros(1, 3, 5, 16, 20))


@torch.inference_mode()
def test_nothing_of_one_call_reaches_the_next():
    net = vae()
    video, latents = noise(1, 3, 9, 16, 24).clamp(-1, 1), noise(1, 16, 4, 2, 3)
    encoded, decoded = net.encode(video), net.decode(latents)
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    net.encode(noise(1, 3, 1, 16, 24, seed=5))
    assert torch.equal(net.encode(video), encoded)
    next(net.decode_groups(noise(1, 16, 6, 2, 3, seed=5)))  # given up after its first group

    class Canceled(Exception):
        pass

    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Canceled

    with pytest.raises(Canceled):
        net.encode(noise(1, 3, 9, 16, 24, seed=5), cancel)
    calls.clear()
    with pytest.raises(Canceled):
        net.decode(noise(1, 16, 6, 2, 3, seed=5), check_cancel=cancel)
    # A decode of another size between two groups of this one
    parts = []
    for part in net.decode_groups(latents):
        net.decode(noise(1, 16, 2, 3, 2, seed=5))
        parts.append(part)
    assert torch.equal(torch.cat(parts, dim=2), decoded) and torch.equal(net.decode(latents), decoded)
    assert torch.equal(net.encode(video), encoded)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes


@torch.inference_mode()
def test_no_frame_sees_a_later_group():
    net = vae()
    video = noise(1, 3, 13, 16, 24).clamp(-1, 1)
    changed = video.clone()
    changed[:, :, 9:] = 0
    before, after = net.encode(video), net.encode(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3]) and not torch.equal(before, after)
    longer = net.decode(before)
    assert torch.equal(next(net.decode_groups(before)), longer[:, :, :8])


@torch.inference_mode()
def test_groups_are_decoded_when_they_are_asked_for(monkeypatch):
    net, seen = vae(), []
    forward = net.decoder.forward
    monkeypatch.setattr(net.decoder, "forward", lambda x, tails: seen.append((x.shape[2], tails)) or forward(x, tails))
    stream = net.decode_groups(noise(1, 16, 21, 1, 2))
    assert not seen
    lengths, held = [], []
    for frames in stream:
        lengths.append(frames.shape[2])
        held.append(sum(tail.numel() for tail in seen[-1][1].values()))
    assert [count for count, _ in seen] == [3] + [2] * 9 and sum(lengths) == decoded_frames(21)
    assert max(lengths) == 9 and len(set(held)) == 1, "what is carried along does not grow"


@torch.inference_mode()
def test_a_convolution_in_parts_is_the_same(monkeypatch):
    net = vae()
    video, latents = noise(1, 3, 9, 16, 24).clamp(-1, 1), noise(1, 16, 5, 2, 3)
    encoded, decoded = net.encode(video), net.decode(latents)
    monkeypatch.setattr(causal, "MAX_VALUES", 2000)
    torch.testing.assert_close(net.encode(video), encoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(net.decode(latents), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [(16, 16), (24, 40), (40, 24), (50, 63), (48, 40), (72, 16), (56, 200), (64, 79)])
@torch.inference_mode()
def test_tiles_of_any_size(tile):
    """A decoder that looks at single latents has no seams: tiles that lie or blend wrongly would show."""
    net, latents = vae(), noise(2, 16, 3, 9, 10)
    net.decoder = Flat()
    torch.testing.assert_close(net.decode(latents, tile), net.decode(latents), atol=1e-5, rtol=0)


class Flat(torch.nn.Module):
    """Repeats each latent's first channels in its 8x8 pixels and, as the VAE does, in its frames."""

    def forward(self, latents: Tensor, tails: dict) -> Tensor:
        pixels = latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)
        alone = pixels.shape[2] % 2
        return torch.cat([pixels[:, :, :alone], pixels[:, :, alone:].repeat_interleave(4, dim=2)], dim=2)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (6, 5), (7, 9), (12, 11)])
def test_tiles_pass_into_each_other_without_steps(rows, columns):
    """Tiles as unlike as can be, 0 and 1 in turns: from one to the next, pixels change by one over the overlap."""
    down, right = rows * 5 // 6, columns * 4 // 5
    for axis, size, overlap in ((-2, (25, right), rows - down), (-1, (down, 31), columns - right)):
        made = itertools.count()

        def decode(latents: Tensor, made: Iterator[int] = made) -> Tensor:
            return torch.full((1, 3, 1, 8 * latents.shape[-2], 8 * latents.shape[-1]), next(made) % 2.0)

        frames = decode_in_tiles(decode, torch.zeros(1, 16, 1, *size), rows, columns)
        assert frames.shape[-2:] == (8 * size[0], 8 * size[1])
        assert next(made) > 2 and frames.min() == 0 and frames.max() == 1
        assert frames.diff(dim=axis).abs().max() <= 1 / (8 * overlap) + 1e-6


@pytest.mark.parametrize("tile", [(96, 80), (64, 75)])
@torch.inference_mode()
def test_tiles_are_near_the_whole(tile):
    """They see other statistics and other borders, so they are not equal."""
    net, latents = vae(), noise(1, 16, 1, 14, 14)
    whole, tiled = net.decode(latents), net.decode(latents, tile)
    assert (tiled - whole).abs().mean() < 0.25 * (whole - whole.mean()).abs().mean()


@torch.inference_mode()
def test_tiles_that_hold_everything_change_nothing_and_tiny_ones_are_refused():
    net, latents = vae(), noise(1, 16, 2, 4, 6)
    assert torch.equal(net.decode(latents, (32, 48)), net.decode(latents))
    with pytest.raises(SettingsError, match="16 pixels or more, got 40x8"):
        net.decode(latents, (8, 40))


# Conditioning


def test_known_frames_and_their_mask():
    """What the mask channel shows of m first frames and of one last frame (reference: dropletvideo, sections 7, 10)."""
    seen = {}
    for count in (1, 2, 3, 4, 5, 8, 9, 13):
        known = place_frames(17, 16, 24, torch.rand(count, 3, 16, 24))
        seen[count] = mask_channel(known.missing, 5, 2, 3)[0, 0, :, 0, 0].tolist()
    assert seen[1] == seen[2] == [1, 0, 0, 0, 0] and seen[3] == [1, 0.5, 0, 0, 0]
    assert seen[4] == seen[5] == [1, 1, 0, 0, 0] and seen[8] == seen[9] == [1, 1, 1, 0, 0]
    assert seen[13] == [1, 1, 1, 1, 0]
    end = place_frames(17, 16, 24, None, torch.rand(1, 3, 16, 24))
    assert not mask_channel(end.missing, 5, 2, 3).any() and not end.missing[:, :, -1].any()
    assert mask_channel(place_frames(1, 16, 24, torch.rand(1, 3, 16, 24)).missing, 1, 2, 3).all()


def test_unknown_frames_are_black_and_inputs_stay():
    start, end = torch.rand(2, 3, 16, 24), torch.rand(3, 3, 16, 24)
    kept = start.clone(), end.clone()
    known = place_frames(9, 16, 24, start, end)
    video = painted(known)
    assert torch.equal(video[0, :, :2].movedim(0, 1), start * 2 - 1)
    assert torch.equal(video[0, :, -3:].movedim(0, 1), end * 2 - 1)
    assert (video[:, :, 2:-3] == -1).all()
    assert torch.equal(start, kept[0]) and torch.equal(end, kept[1])


def test_known_frames_that_do_not_fit_are_refused():
    frame = torch.rand(1, 3, 16, 24)
    with pytest.raises(FrameError, match=r"4k \+ 1 frames, not 84; use 81 or 85"):
        place_frames(84, 16, 24, frame)
    with pytest.raises(FrameError, match="24x32"):
        place_frames(5, 32, 24, frame)
    with pytest.raises(SettingsError, match="6 known frames"):
        place_frames(5, 16, 24, frame.expand(5, -1, -1, -1), frame)


@torch.inference_mode()
def test_nothing_known_is_all_zero_and_not_an_encoded_black_video():
    def encode(video: Tensor) -> Tensor:
        raise AssertionError("nothing to encode")

    channels = inpaint_channels(place_frames(9, 16, 24), encode, 0.7)
    assert channels.shape == (1, 3, 17, 2, 3) and not channels.any()


@torch.inference_mode()
def test_mask_and_latents_are_scaled():
    net, known = vae(), place_frames(9, 16, 24, torch.rand(5, 3, 16, 24))
    channels = inpaint_channels(known, net.encode, 0.7)
    assert channels.shape == (1, 3, 17, 2, 3)
    assert channels[0, :, 0, 0, 0].tolist() == pytest.approx([0.7, 0.7, 0])
    torch.testing.assert_close(channels[:, :, 1:].transpose(1, 2), 0.7 * net.encode(painted(known)))
    half = inpaint_channels(known, lambda video: net.encode(video).half(), 0.7)
    assert half.dtype == torch.float16


@torch.inference_mode()
def test_noise_on_known_frames_comes_from_the_generator():
    seen: list[Tensor] = []

    def encode(video: Tensor) -> Tensor:
        seen.append(video)
        return torch.zeros(1, 16, 3, 2, 3)

    known = place_frames(9, 16, 24, 0.1 + 0.8 * torch.rand(5, 3, 16, 24))
    for seed in (1, 1, 2):
        inpaint_channels(known, encode, 0.7, 16, REFERENCE_NOISE, torch.Generator().manual_seed(seed))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    added = seen[0] - painted(known)
    assert not added[:, :, 5:].any() and 0.9 < added[:, :, :5].std() / REFERENCE_NOISE < 1.1
    with pytest.raises(SettingsError, match="generator"):
        inpaint_channels(known, encode, 0.7, 16, REFERENCE_NOISE)


# Schedule


def test_steps_are_the_official_ones():
    assert trailing_timesteps(50).tolist() == list(range(999, 0, -20))
    three = official_steps(3)
    assert [step.timestep for step in three] == [999, 666, 332]
    alphas = schedule_from({}).alphas_cumprod()
    assert three[0].alpha == 0 and three[1].alpha_next == alphas[333] and three[-1].alpha_next == 1
    fifty = official_steps(50)
    assert all(a.alpha_next == b.alpha for a, b in zip(fifty, fifty[1:], strict=False))
    assert fifty[-1].alpha_next == 1
    for wrong in (0, -1, 1001):
        for call in (official_steps, trailing_timesteps, dropletvideo_sigmas):
            with pytest.raises(SettingsError, match="1 to 1000 steps"):
                call(wrong)


def test_the_first_step_is_exact():
    """At no signal at all v says the video itself, negated: nothing of the noise may be divided by zero."""
    first = official_steps(50)[0]
    x, v = noise(4), noise(4, seed=1)
    want = -first.alpha_next.sqrt() * v + (1 - first.alpha_next).sqrt() * x
    torch.testing.assert_close(ddim_step(x, v, first.alpha, first.alpha_next), want)


def test_sigmas_fall_from_the_least_signal_to_0():
    sigmas = dropletvideo_sigmas(50)
    assert len(sigmas) == 51 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(((1 - LEAST_SIGNAL) / LEAST_SIGNAL) ** 0.5, rel=1e-4)


def test_a_scheduler_config_is_read_and_others_are_refused():
    published = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 3.0,
        "_class_name": "any",
    }
    assert schedule_from(published) == schedule_from({})
    assert schedule_from({"beta_end": 0.02}).beta_end == 0.02
    for entry, value in (("prediction_type", "epsilon"), ("timestep_spacing", "leading")):
        with pytest.raises(CheckpointError, match=entry):
            schedule_from(published | {entry: value})


# Against the public classes of diffusers


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 8, 12), (4, 6, 4), (1, 10, 2)])
@torch.inference_mode()
def test_diffusers_transformer(frames, height, width):
    diffusers = pytest.importorskip("diffusers")
    net = transformer()
    public = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=TINY.heads,
        attention_head_dim=TINY.head_width,
        in_channels=33,
        out_channels=16,
        time_embed_dim=TINY.embedding_width,
        text_embed_dim=TINY.text_width,
        num_layers=TINY.layers,
        use_rotary_positional_embeddings=True,
    ).eval()
    weights = transformer_weights()
    fps_embedding = {key for key in weights if key.startswith("fps_embedding.")}
    public.load_state_dict({key: weights[key] for key in weights.keys() - fps_embedding}, strict=True)
    fps = torch.tensor([12.0])
    # Their class lacks the frame rate, which is added to the embedded timestep.
    public.time_embedding.register_forward_hook(lambda *call: call[-1] + extra)
    from streaming_core.models.layers import sinusoid

    extra = net.fps_embedding(sinusoid(fps, TINY.width))
    x = noise(2, frames, 16, height, width), noise(2, frames, 17, height, width, seed=1)
    text, timesteps = noise(2, 7, TINY.text_width, seed=2), torch.tensor([999, 20])
    table = rotary_table(frames, height // 2, width // 2, TINY.head_width)
    want = public(torch.cat(x, dim=2), text, timesteps, image_rotary_emb=table).sample
    assert relative_error(net(*x, timesteps, text, fps), want) < 1e-5


@torch.inference_mode()
def test_diffusers_vae():
    diffusers = pytest.importorskip("diffusers")
    config = replace(SMALL_VAE, channels=(8, 12, 16, 24), sample_height=96, sample_width=80)
    net = vae(config)
    levels = len(config.channels)
    public = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        **vae_settings(config),
    ).eval()
    public.load_state_dict(vae_weights(config=config), strict=True)
    public.num_sample_frames_batch_size = 4
    for frames in (1, 9):
        video = noise(1, 3, frames, 16, 24).clamp(-1, 1)
        want = public.encode(video).latent_dist
        mean, log_variance = net.moments(video)
        assert relative_error(mean, want.mean) < 1e-5 and relative_error(log_variance, want.logvar) < 1e-5
    for count in (1, 4, 5):
        latents = noise(1, 16, count, 2, 3)
        assert relative_error(net.decode(latents), public.decode(latents).sample) < 1e-5
    public.enable_tiling()  # tiles of 48x40 pixels, as `default_tile`
    latents = noise(1, 16, 2, 7, 9)
    assert relative_error(net.decode(latents, config.default_tile), public.decode(latents).sample) < 1e-5


@pytest.mark.parametrize("steps", [1, 3, 7, 50])
def test_diffusers_ddim(steps):
    diffusers = pytest.importorskip("diffusers")
    public = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    public.set_timesteps(steps)
    updates = official_steps(steps)
    assert [update.timestep for update in updates] == public.timesteps.tolist()
    x = want = noise(4, 8)
    for index, update in enumerate(updates):
        velocity = noise(4, 8, seed=index + 1)
        x = ddim_step(x, velocity, update.alpha, update.alpha_next)
        want = public.step(velocity, update.timestep, want, eta=0.0).prev_sample
    assert relative_error(x, want) < 1e-4


# What a call computes


@pytest.mark.parametrize(
    ("size", "latents", "flops"), [((384, 672), 22, 0.5e15), ((640, 1120), 22, 2.7e15)], ids=["672x384", "1120x640"]
)
def test_a_call_of_the_published_model_computes_what_the_reference_says(size, latents, flops):
    """It counts the modulations for every token, 3 to 7 percent more (reference: dropletvideo, section 8)."""
    got = forward_flops(DropletConfig(), latents, *(side // 8 for side in size), 400)
    assert abs(got / flops - 1) < 0.05


@pytest.mark.parametrize(("latents", "height", "width", "words"), [(3, 4, 6, 7), (1, 2, 2, 1), (4, 8, 4, 30)])
@torch.inference_mode()
def test_what_a_call_computes_is_what_torch_counts(latents, height, width, words):
    # The kernel for attention on a CPU is not counted; products of matrices are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer()(
            noise(1, latents, 16, height, width),
            noise(1, latents, 17, height, width),
            torch.tensor([20]),
            noise(1, words, TINY.text_width),
            torch.tensor([8.0]),
        )
    assert forward_flops(TINY, latents, height, width, words) == counter.get_total_flops()
