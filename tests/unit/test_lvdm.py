"""LVDM's networks: detection, refusals, parts of a file, positions in time, the autoencoder, levels of its samplers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streaming_core.errors import CheckpointError, FrameError, SettingsError
from streaming_core.models.lvdm.attention import RelativePositions, attend_over_time
from streaming_core.models.lvdm.autoencoder import VideoAutoencoder
from streaming_core.models.lvdm.conditioning import (
    known_places,
    mask_channel,
    nearest_level,
    perturbed,
)
from streaming_core.models.lvdm.config import LATENT_SCALES, LatentScale, LvdmConfig, VideoAutoencoderConfig
from streaming_core.models.lvdm.detect import detect, detect_autoencoder
from streaming_core.models.lvdm.gaps import base_latents, gap_frames, gap_latents, latents_of_bases, standing_still
from streaming_core.models.lvdm.layout import checkpoint_shapes, unet_shapes, video_autoencoder_shapes
from streaming_core.models.lvdm.unet import LvdmUNet
from streaming_core.models.lvdm.weights import averaged, check_autoencoder, check_unet, parts_of
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError, load_strict, shapes_of
from streaming_core.schedules.lvdm import TEXT_SCHEDULE, VIDEO_SCHEDULE, ddim_sigmas, ddim_timesteps, ddpm_sigmas
from streaming_core.schedules.modelscope import modelscope_sigmas
from tests.lvdm_oracle import guided, overwritten
from tiny_models.lvdm import (
    TINY,
    TINY_AUTOENCODER,
    TINY_INTERPOLATION,
    TINY_PREDICTION,
    TINY_TEXT,
    autoencoder_weights,
    lvdm_weights,
)

KINDS = {"unconditional": TINY, "prediction": TINY_PREDICTION, "interpolation": TINY_INTERPOLATION, "text": TINY_TEXT}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(config: LvdmConfig = TINY) -> LvdmUNet:
    net = LvdmUNet(config).eval().requires_grad_(False)
    load_strict(net, parts_of(lvdm_weights(config)).unet, "the UNet")
    return net


def autoencoder() -> VideoAutoencoder:
    net = VideoAutoencoder(TINY_AUTOENCODER).eval().requires_grad_(False)
    load_strict(net, parts_of(autoencoder_weights()).first_stage, "the autoencoder")
    return net


# Detection


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_sizes_are_read_from_shapes(config):
    assert detect(shapes_of(parts_of(lvdm_weights(config)).unet)) == config


def test_kinds_are_told_apart():
    kinds = [config.kind for config in KINDS.values()]
    assert kinds == ["unconditional", "conditional", "conditional", "text"]


@pytest.mark.parametrize(
    "config",
    [
        LvdmConfig(),
        LvdmConfig(
            width=320,
            multipliers=(1, 2, 4, 4),
            blocks_per_level=2,
            attention=(True,) * 4,
            heads=8,
            temporal_length=16,
            scale_shift=False,
            context_width=768,
        ),
        replace(TINY, temporal_length=None),
        replace(TINY, scale_shift=False, blocks_per_level=2),
        replace(TINY, attention=(False, False)),
        replace(TINY, multipliers=(1, 1, 3), attention=(True, False, True)),
        replace(TINY_TEXT, depth=2, temporal_length=3),
        replace(TINY_PREDICTION, labels=None),
        replace(TINY, out_channels=8, in_channels=8),
    ],
)
def test_other_sizes_are_detected_too(config):
    assert detect(unet_shapes(config), heads=config.heads) == config


def test_the_autoencoder_is_detected():
    assert detect_autoencoder(shapes_of(parts_of(autoencoder_weights()).first_stage)) == TINY_AUTOENCODER
    for scales in ((2, 2, 2), (2, 4, 4), (4, 8, 8)):
        config = VideoAutoencoderConfig(scales=scales)
        shapes = parts_of(video_autoencoder_shapes(config)).first_stage
        assert detect_autoencoder(shapes) == config
    with pytest.raises(CheckpointError, match="3 levels"):
        detect_autoencoder(shapes_of(parts_of(autoencoder_weights()).first_stage), "ae.ckpt", (4, 4, 4))


# Files


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_whole_checkpoint_is_taken_apart(config):
    weights = lvdm_weights(config)
    file = parts_of(weights)
    file.check_known("it")
    load_strict(LvdmUNet(config), file.unet, "the UNet")
    assert bool(file.average) == (config.kind != "text") and bool(file.text) == (config.kind == "text")
    assert [len(keys) for keys in file.ignored.values()] == [12], "the buffers of the noise schedule"
    if config.kind != "text":
        load_strict(VideoAutoencoder(TINY_AUTOENCODER), file.first_stage, "the autoencoder")


def test_networks_alone_are_read_with_and_without_prefix():
    weights = lvdm_weights(TINY, average=False)
    inner = parts_of(weights)
    for prefix in ("", "model.diffusion_model.", "module."):
        assert parts_of({prefix + key: value for key, value in inner.unet.items()}).unet.keys() == inner.unet.keys()
    for prefix in ("", "first_stage_model."):
        file = parts_of({prefix + key: value for key, value in autoencoder_weights().items()})
        assert file.first_stage.keys() == inner.first_stage.keys() and not file.unet and not file.unknown


def test_either_name_of_a_convolution_is_enough():
    """A program that saves shared tensors once may keep `X.weight`."""
    weights = autoencoder_weights()
    want = parts_of(weights).first_stage
    for dropped in (".conv.weight", None):
        kept = {
            key: value
            for key, value in weights.items()
            if not (key.endswith(dropped) if dropped else f"{key.removesuffix('.weight')}.conv.weight" in weights)
        }
        got = parts_of(kept).first_stage
        assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


def test_a_moving_average_comes_under_the_names_of_the_unet():
    file = parts_of(lvdm_weights())
    named = averaged(file.average, file.unet, "it")
    assert shapes_of(named) == shapes_of(file.unet)
    key = "input_blocks.1.0.emb_layers.1.weight"
    assert torch.equal(named[key], file.average["diffusion_modelinput_blocks10emb_layers1weight"])
    assert not torch.equal(named[key], file.unet[key])
    with pytest.raises(IncompleteCheckpointError, match="1 missing.*1 unexpected"):
        wrong = dict(file.average)
        wrong["diffusion_modelelsewhere"] = wrong.pop("diffusion_modelout2bias")
        averaged(wrong, file.unet, "it")
    with pytest.raises(CheckpointError, match="no moving average"):
        averaged({}, file.unet, "it")


def test_keys_that_nobody_knows_are_refused():
    with pytest.raises(IncompleteCheckpointError, match=r"2 keys unknown to LVDM \(first adapter.a, adapter.b\)"):
        parts_of(lvdm_weights() | dict.fromkeys(("adapter.a", "adapter.b"), torch.zeros(1))).check_known("it")


def test_a_file_may_say_how_latents_are_scaled():
    weights = lvdm_weights()
    assert parts_of(weights).latents is None
    told = weights | {"scale_factor": torch.tensor(0.5), "shift_factor": torch.tensor(2.0)}
    assert parts_of(told).latents == LatentScale(0.5, 2.0)
    parts_of(told).check_known("it")
    assert parts_of(weights | {"scale_factor": torch.tensor(0.5)}).latents == LatentScale(0.5, 0.0)


SD15 = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.middle_block.0.x": (1,),
    "model.diffusion_model.output_blocks.0.x": (1,),
    "model.diffusion_model.time_embed.0.weight": (1280, 320),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.0.x": (1,),
    "first_stage_model.decoder.up.0.x": (1,),
}


def refuse(shapes: dict, what: str) -> str:
    file = parts_of(shapes)
    with pytest.raises(WrongCheckpointError) as caught:
        if what == "autoencoder":
            check_autoencoder(file, shapes, "the.ckpt")
        else:
            check_unet(file, shapes, "the.ckpt")
            detect(file.unet, "the.ckpt")
    return str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "what", "words"),
    [
        (SD15, "unet", "a UNet for images"),
        (SD15, "autoencoder", "a VAE in the layout of Stable Diffusion"),
        (
            {
                **SD15,
                "model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3),
                "model.diffusion_model.input_blocks.1.0.time_stack.0.x": (1,),
            },
            "unet",
            "Stable Video Diffusion",
        ),
        ({"transformer_in.x": (1,), "down_blocks.x": (1,), "up_blocks.x": (1,)}, "unet", "ModelScope text-to-video"),
        ({**SD15, "model.diffusion_model.input_blocks.1.0.temopral_conv.x": (1,)}, "unet", "ModelScope's UNet"),
        ({"encoder.conv_blocks.0.x": (1,), "decoder.conv_blocks.0.x": (1,)}, "unet", "LVDM's autoencoder"),
        ({key: (1,) for key in unet_shapes(TINY)}, "autoencoder", "a UNet without an autoencoder"),
        ({"first_stage_model.decoder.conv_blocks.0.x": (1,)}, "autoencoder", "a decoder without its encoder"),
    ],
)
def test_other_files_are_refused_by_name(shapes, what, words):
    message = refuse(shapes, what)
    assert message.startswith("the.ckpt is not an LVDM") and words in message


def test_a_damaged_unet_is_refused():
    shapes = shapes_of(parts_of(lvdm_weights()).unet)
    with pytest.raises(CheckpointError, match="lacks|missing"):
        detect({key: shape for key, shape in shapes.items() if key != "input_blocks.1.0.emb_layers.1.weight"}, "it")
    with pytest.raises(CheckpointError, match="which 5 does not divide"):
        detect(shapes | {"middle_block.1.relative_position_k.embeddings_table": (9, 5)}, "it")
    with pytest.raises(CheckpointError, match="2, 4 heads"):
        detect(shapes | {"middle_block.1.relative_position_k.embeddings_table": (9, 16)}, "it")
    config = detect({key: shape for key, shape in shapes.items() if not key.startswith("output_blocks.1.")}, "it")
    with pytest.raises(IncompleteCheckpointError, match="missing"):
        load_strict(LvdmUNet(config), {k: v for k, v in lvdm_weights().items() if k in ()}, "the UNet")


# The UNet


def test_time_is_mixed_by_attention_only_and_any_length_works():
    net = unet()
    x = noise(1, 4, 3, 4, 4)
    still = unet(replace(TINY, attention=(False, False)))
    for name in ("proj_out_t.weight", "proj_out_t.bias"):
        still.get_parameter(f"middle_block.1.{name}").zero_()
    # Norms of residual blocks see the whole video, so frames are compared with those of a video of equal frames.
    same = x[:, :, :1].expand(-1, -1, 3, -1, -1)
    out = still(same, torch.tensor([5]))
    assert torch.allclose(out[:, :, :1].expand_as(out), out, atol=1e-5)
    assert net(x, torch.tensor([5])).shape == x.shape
    assert net(noise(1, 4, 11, 4, 4), torch.tensor([5])).isfinite().all()


def test_the_order_of_latents_counts():
    net, x = unet(), noise(1, 4, 4, 4, 4)
    forward, back = net(x, torch.tensor([500])), net(x.flip(2), torch.tensor([500])).flip(2)
    assert (forward - back).abs().max() > 1e-3


def test_what_a_unet_cannot_do_is_refused():
    net, time = unet(), torch.tensor([5])
    with pytest.raises(FrameError, match="multiples of 16 pixels"):
        net(noise(1, 4, 3, 4, 5), time)
    with pytest.raises(FrameError, match="reads 4 channels, got 5"):
        net(noise(1, 5, 3, 4, 4), time)
    with pytest.raises(SettingsError, match="takes no text"):
        net(noise(1, 4, 3, 4, 4), time, noise(1, 7, 16))
    with pytest.raises(SettingsError, match="needs an encoded text"):
        unet(TINY_TEXT)(noise(1, 4, 3, 4, 4), time)
    with pytest.raises(SettingsError, match="noise level of known latents"):
        net(noise(1, 4, 3, 4, 4), time, labels=torch.tensor([3]))


def test_the_mask_and_the_level_of_known_latents_count():
    net, x, time = unet(TINY_PREDICTION), noise(1, 4, 4, 4, 4), torch.tensor([500])
    outputs = []
    for places, label in ((known_places(4, 0), None), (known_places(4, 1), 100), (known_places(4, 1), 7)):
        labels = None if label is None else torch.tensor([label])
        outputs.append(net(torch.cat([x, mask_channel(places, x)], dim=1), time, labels=labels))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(outputs, outputs[1:], strict=False))


@pytest.mark.parametrize("swapped", [True, False])
def test_relative_positions_are_those_of_the_formula(swapped):
    """Written out, query by query; positions further apart than the table knows count as its last."""
    length, count, width = 2, 5, 4
    keys, values = RelativePositions(width, length), RelativePositions(width, length)
    for seed, table in enumerate((keys, values)):
        table.embeddings_table.data = noise(2 * length + 1, width, seed=seed)
    q, k, v = (noise(1, count, width, seed=seed) for seed in (2, 3, 4))
    want = torch.zeros(count, width)

    def at(table: RelativePositions, distance: int) -> Tensor:
        return table.embeddings_table[max(-length, min(length, distance)) + length]

    for i in range(count):
        scores = []
        for j in range(count):
            score = q[0, i] @ k[0, j] / width**0.5
            if swapped:
                score = score + q[0, j] @ at(keys, i - j) / width**0.25
            else:
                score = score + q[0, i] @ at(keys, j - i) / width**0.5
            scores.append(score)
        shares = torch.stack(scores).softmax(0)
        want[i] = sum(shares[j] * (v[0, j] + at(values, j - i)) for j in range(count))
    got = attend_over_time(q, k, v, 1, keys, values, swapped)
    assert torch.allclose(got[0], want, atol=1e-5)


# Known latents


def test_known_latents():
    assert known_places(5, 1, 1).tolist() == [True, False, False, False, True]
    x, known = torch.zeros(1, 4, 5, 2, 2), noise(1, 4, 2, 2, 2)
    out = overwritten(x, known, known_places(5, 1, 1))
    assert torch.equal(out[:, :, [0, 4]], known) and not out[:, :, 1:4].any() and not x.any()
    assert mask_channel(known_places(3, 1), x[:, :, :3]).flatten(2)[0, 0].tolist() == [1.0] * 4 + [0.0] * 8
    alpha = VIDEO_SCHEDULE.alphas_cumprod()[100]
    got = perturbed(known, torch.ones_like(known), 100)
    assert torch.allclose(got, known * alpha.sqrt() + (1 - alpha).sqrt(), atol=1e-6)
    assert perturbed(known, torch.ones_like(known), None) is known
    assert abs(alpha - 0.829) < 5e-4
    assert [nearest_level(amount, 250) for amount in (0.0, 0.205, 0.455, 0.76, 3.0)] == [0, 25, 100, 200, 250]
    with pytest.raises(SettingsError, match="0 to 999"):
        perturbed(known, known, 1000)
    assert torch.equal(guided(known, known + 1, 0.0), known)
    assert torch.allclose(guided(known, known + 1, 0.1), known - 0.1)


@given(st.integers(2, 80), st.sampled_from([1, 2, 4, 8]), st.integers(3, 6))
def test_gaps_of_any_length_are_even_and_move(num_frames, unit, trained):
    latents = gap_latents(num_frames, trained, unit)
    assert latents >= trained and unit * (latents - 1) + 1 >= num_frames
    assert latents == trained or unit * (latents - 2) + 1 < num_frames
    frames = gap_frames(num_frames, latents, unit)
    assert len(frames) == num_frames and 0 <= frames[0] < unit and unit * (latents - 1) <= frames[-1] < unit * latents
    assert all(a < b for a, b in pairwise(frames))
    step = unit * (latents - 1) / (num_frames - 1)
    assert all(abs(b - a - step) <= max(1, unit / 2) for a, b in pairwise(frames))


def test_a_gap_shows_frames_that_move_where_there_are_enough():
    assert gap_frames(5, 5, 4) == [2, 6, 10, 14, 18]
    assert gap_frames(9, 5, 4) == [2, 4, 6, 8, 10, 12, 14, 15, 18]
    assert gap_frames(17, 5, 4) == list(range(2, 19))
    assert standing_still(noise(1, 3, 2, 2), 4).shape == (4, 3, 2, 2)


@given(st.integers(1, 20), st.sampled_from([1, 4]))
def test_bases_and_rows_belong_together(bases, stride):
    assert base_latents(latents_of_bases(bases, stride), stride) == bases
    assert latents_of_bases(4, 4) == 13


# The autoencoder


def test_lengths_and_sizes_come_back():
    net = autoencoder()
    video = noise(1, 3, 8, 16, 24).clamp(-1, 1)
    latents = net.encode(video)
    assert latents.shape == (1, 4, 2, 2, 3) and net.decode(latents).shape == video.shape
    with pytest.raises(FrameError, match="groups of 4, got 6"):
        net.encode(video[:, :, :6])
    with pytest.raises(FrameError, match="multiples of 8 x 8"):
        net.encode(video[..., :20])


def test_a_variance_is_bounded():
    net = autoencoder()
    net.quant_conv.conv.bias[4:] = 1e3
    assert net.moments(noise(1, 3, 4, 8, 8))[1].max() == 20


def test_latents_are_shifted_before_they_are_scaled():
    sky = LATENT_SCALES["sky"]
    latents = noise(1, 4, 2, 3, 3)
    assert torch.allclose(sky.to_model(latents), 0.33422927 * (latents + 1.4606637))
    assert torch.allclose(sky.to_autoencoder(sky.to_model(latents)), latents, atol=1e-6)
    assert LATENT_SCALES["text"].shift == 0


def test_every_official_key_is_in_the_layout():
    assert len(checkpoint_shapes(LvdmConfig(), VideoAutoencoderConfig())) == 1472
    assert len(video_autoencoder_shapes(VideoAutoencoderConfig())) == 122


# Levels


def test_official_ddim_has_its_own_number_of_steps():
    assert ddim_timesteps(50).tolist() == list(range(1, 1000, 20))
    assert len(ddim_timesteps(30)) == 31 and len(ddim_timesteps(4)) == 4
    for steps in (3, 9, 27, 1000, 300):
        with pytest.raises(SettingsError, match="use "):
            ddim_timesteps(steps)
    with pytest.raises(SettingsError, match="use 2 or 4 steps"):
        ddim_timesteps(3)
    for steps in (0, 1001):
        with pytest.raises(SettingsError, match="1 to 1000"):
            ddim_timesteps(steps)


def test_ddim_ends_at_the_lowest_level_and_ddpm_at_none():
    sigmas = ddim_sigmas(50)
    assert len(sigmas) == 51 and (sigmas[1:] < sigmas[:-1]).all()
    assert torch.isclose(1 / (1 + sigmas[-1] ** 2), torch.tensor(0.9985), atol=1e-6)
    all_levels = ddpm_sigmas()
    assert len(all_levels) == 1001 and all_levels[-1] == 0 and (all_levels[1:] < all_levels[:-1]).all()
    assert all_levels[-2] == sigmas[-1]


def test_text_to_video_has_the_levels_of_modelscope():
    assert torch.equal(ddim_sigmas(50, TEXT_SCHEDULE), modelscope_sigmas(50))
