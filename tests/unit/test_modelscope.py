"""The networks of the StreamingModelscope family: configurations, names, and what they must and must not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import CheckpointError, SettingsError
from streaming_core.models.modelscope import detect, vid2vid, weights
from streaming_core.models.modelscope.apm import ImageProjector, join_context
from streaming_core.models.modelscope.cam import ModelscopeCam
from streaming_core.models.modelscope.config import MixerConfig, ModelscopeCamConfig, UNet3DConfig
from streaming_core.models.modelscope.shapes import official_shapes
from streaming_core.models.modelscope.unet import Merge, VideoUNet, mix_context
from streaming_core.models.modelscope.vae_names import stable_diffusion_name
from streaming_core.models.registry import (
    IncompleteCheckpointError,
    WrongCheckpointError,
    load_strict,
    shapes_of,
    take,
)
from streaming_core.models.unet3d import context_attentions
from streaming_core.schedules.modelscope import ddim_eta_step, modelscope_sigmas, published_alphas_cumprod
from tiny_models.modelscope import (
    BASE,
    TINY,
    UNET,
    base_weights,
    tiny_weights,
    vid2vid_key,
    vid2vid_names,
    vid2vid_weights,
)

SHORTCUT = "encoder.down.3.block.0.nin_shortcut.bias"
FRAMES, CONTROL, BATCH, SIDE = 6, 3, 2, 4


@st.composite
def unet_configs(draw) -> UNet3DConfig:
    levels = draw(st.integers(1, 3))
    channels = tuple(64 * draw(st.integers(1, 2)) for _ in range(levels))
    attention = (True, *(draw(st.booleans()) for _ in range(levels - 1)))
    text = draw(st.integers(2, 9))
    mixers = MixerConfig(text, text + draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 5])))
    return UNet3DConfig(
        in_channels=draw(st.sampled_from([4, 8])),
        out_channels=4,
        channels=channels,
        attention=attention,
        layers_per_block=draw(st.integers(1, 2)),
        context_width=draw(st.sampled_from([16, 48])),
        input_attention_width=64 * draw(st.sampled_from([1, 8])),
        mixers=draw(st.sampled_from([None, mixers])),
    )


def loaded_unet(config=UNET, seed=0) -> VideoUNet:
    unet = VideoUNet(config)
    load_strict(unet, {k: v.float() for k, v in unet_weights(config, seed).items()}, "the UNet")
    return unet


def unet_weights(config, seed=0):
    """Random weights with the mixers' gates open."""
    own = base_weights(seed, config)
    return {key: torch.ones_like(value) if key.endswith(".alpha") else value for key, value in own.items()}


def loaded_cam(seed=3) -> ModelscopeCam:
    cam = ModelscopeCam(TINY.cam)
    load_strict(cam, {key: value.float() for key, value in weights.cam_part(tiny_weights(seed)).items()}, "CAM")
    return cam


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=6)
@given(unet_configs())
def test_configuration_is_read_back_from_shapes(config):
    shapes = shapes_of(VideoUNet(config, device="meta").state_dict())
    assert detect.detect_unet(shapes) == config
    assert detect.detect_unet({"x." + key: shape for key, shape in shapes.items()}, "x.") == config


def test_whole_file_is_read_back_from_shapes():
    assert detect.detect_streamingmodelscope(official_shapes(TINY)) == TINY


@settings(max_examples=6)
@given(unet_configs())
def test_refiner_names_map_to_ours_and_back(config):
    config = replace(config, mixers=None)
    ours = set(VideoUNet(config, device="meta").state_dict())
    names = vid2vid_names(config)
    old = {vid2vid_key(key, names): key for key in ours}
    assert len(old) == len(ours)
    assert vid2vid.renamed_keys(set(old)) == old


def test_refiner_weights_load_and_unknown_keys_are_named():
    renamed = vid2vid.rename(vid2vid_weights())
    config = detect.detect_unet(shapes_of(renamed), padded_rows=True)
    assert config == replace(BASE, padded_rows=True)
    load_strict(VideoUNet(config), renamed, "the refiner")
    with pytest.raises(CheckpointError, match="key input_blocks.1.0.surprise.weight belongs to no part"):
        vid2vid.renamed_keys({*vid2vid_weights(), "input_blocks.1.0.surprise.weight"})
    with pytest.raises(CheckpointError, match="key surprise.weight belongs to no layer"):
        vid2vid.renamed_keys({*vid2vid_weights(), "surprise.weight"})


@torch.inference_mode()
def test_down_path_and_middle_never_see_the_merge():
    """Merging happens behind the down path: skips arrive unmerged, newest first, and the middle before them all."""
    unet = loaded_unet()
    x, timesteps = noise(BATCH * FRAMES, 4, SIDE, SIDE), torch.tensor([10.0, 500.0])
    memory = unet.project_context(noise(BATCH, 93, 64, seed=1))

    def run(skip_gain, middle_gain):
        order = []

        def skip(index, h):
            order.append((index, h.clone()))
            return h * skip_gain

        def middle(h):
            order.append(("middle", h.clone()))
            return h * middle_gain

        return unet(x, timesteps, memory, Merge(skip, middle)), order

    plain = unet(x, timesteps, memory)
    same, order = run(1, 1)
    assert torch.equal(plain, same)
    changed, again = run(0.5, 2)
    assert [name for name, _ in order] == ["middle", *reversed(range(len(UNET.skip_channels)))]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(order, again, strict=True))
    assert [h.shape[1] for _, h in reversed(order[1:])] == list(UNET.skip_channels)
    assert not torch.allclose(plain, changed)


@torch.inference_mode()
def test_videos_of_a_batch_do_not_touch_each_other():
    unet = loaded_unet()
    x, timesteps, context = noise(BATCH * FRAMES, 4, SIDE, SIDE), torch.tensor([10.0, 500.0]), noise(BATCH, 93, 64)
    together = unet(x, timesteps, unet.project_context(context))
    for row in range(BATCH):
        rows = slice(row * FRAMES, (row + 1) * FRAMES)
        alone = unet(x[rows], timesteps[row : row + 1], unet.project_context(context[row : row + 1]))
        torch.testing.assert_close(alone, together[rows], atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_projected_context_is_the_mixers_work():
    """Weight 0 leaves the text alone, whatever the image tokens; weight 1 does not; text alone suits the base UNet."""
    unet, text = loaded_unet(), noise(1, 77, 64)
    tokens = [noise(1, 16, 64, seed=seed) for seed in (1, 2)]
    off = [unet.project_context(join_context(text, each), 0.0) for each in tokens]
    on = [unet.project_context(join_context(text, each)) for each in tokens]
    assert torch.equal(*off) and not torch.allclose(*on)
    base = loaded_unet(BASE)
    plain = [attn.to_k(text) for _, attn in context_attentions(unet)]
    torch.testing.assert_close(off[0][..., : plain[0].shape[-1]], plain[0])
    assert base.project_context(text).shape == off[0].shape


@torch.inference_mode()
def test_mixer_gate_closed_means_text():
    attn = next(iter(context_attentions(loaded_unet())))[1]
    context = noise(2, 93, 64)
    attn.alpha.zero_()
    assert torch.equal(mix_context(attn, context), context[:, :77])


@torch.inference_mode()
def test_cam_features_do_not_depend_on_later_latent_frames():
    cam = loaded_cam()
    x = noise(BATCH, FRAMES, 4, SIDE, SIDE)
    memory = cam.unet.project_context(noise(BATCH, 77, 64, seed=1))
    pixels = cam.encode_pixels(noise(CONTROL, 3, 8 * SIDE, 8 * SIDE, seed=2))

    def features(latents):
        return cam.unet(latents[:, :CONTROL].flatten(0, 1), torch.tensor([9.0, 9.0]), memory, pixels)

    first = features(x)
    second = features(torch.cat([x[:, :CONTROL], noise(BATCH, FRAMES - CONTROL, 4, SIDE, SIDE, seed=5)], dim=1))
    assert torch.equal(first.middle, second.middle)
    unet = loaded_unet()
    context = unet.project_context(noise(BATCH, 93, 64))
    merge = cam.merging(first, FRAMES)
    made = unet(x.flatten(0, 1), torch.tensor([9.0, 9.0]), context, merge)
    assert made.shape == (BATCH * FRAMES, 4, SIDE, SIDE)
    assert first.middle is None and set(first.skips) == {None}, "features are freed as they are merged"


@torch.inference_mode()
def test_cam_refuses_control_frames_of_another_size():
    cam = loaded_cam()
    memory = cam.unet.project_context(noise(1, 77, 64))
    pixels = cam.encode_pixels(noise(CONTROL, 3, 16, 16))
    with pytest.raises(SettingsError, match="the latent needs 3 frames of 4 x 4"):
        cam.unet(noise(CONTROL, 4, SIDE, SIDE), torch.tensor([9.0]), memory, pixels)


def test_unet_refuses_what_does_not_fit():
    unet = loaded_unet()
    memory = unet.project_context(noise(2, 93, 64))
    with pytest.raises(SettingsError, match="7 latent frames do not divide into 2 videos"):
        unet(noise(7, 4, SIDE, SIDE), torch.zeros(2), memory)
    with pytest.raises(SettingsError, match="project it with the same network"):
        unet(noise(6, 4, SIDE, SIDE), torch.zeros(2), memory[..., :-1])


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 2), (8, 6)])
@torch.inference_mode()
def test_refiner_gives_back_the_size_it_got(height, width):
    unet = VideoUNet(replace(BASE, padded_rows=True))
    load_strict(unet, {key: value.float() for key, value in base_weights().items()}, "the refiner")
    memory = unet.project_context(noise(1, 77, 64))
    assert unet(noise(3, 4, height, width), torch.tensor([5.0]), memory).shape == (3, 4, height, width)
    with pytest.raises(SettingsError, match="does not come back to its size"):
        unet(noise(3, 4, height + 1, width), torch.tensor([5.0]), memory)


@given(
    st.integers(16, 4000),
    st.integers(16, 4000),
    st.integers(64, 2000),
    st.integers(64, 2000),
    st.sampled_from([2, 4, 8]),
)
def test_refiner_sizes_fit_the_box_and_the_network(height, width, box_height, box_width, factor):
    try:
        rows, columns = vid2vid.fit_refiner_size(height, width, box_height, box_width, factor)
    except SettingsError as error:
        assert f"multiple of {8 * factor}" in str(error)
        return
    assert rows <= box_height and columns <= box_width
    assert columns % (8 * factor) == 0 and rows // 8 % factor == 2 % factor and rows % 8 == 0


def test_official_refiner_size_fits():
    assert vid2vid.fit_refiner_size(720, 1280, 720, 1280, 8) == (720, 1280)
    assert vid2vid.fit_refiner_size(256, 256, 720, 1280, 8) == (720, 704)


def test_several_anchors_are_averaged_before_the_projector():
    projector = ImageProjector(TINY.image_projector)
    load_strict(projector, {k: v.float() for k, v in take(tiny_weights(), "resampler.").items()}, "APM")
    embeddings = noise(2, 3, 64)
    tokens = projector(embeddings)
    assert tokens.shape == (2, 16, 64)
    torch.testing.assert_close(tokens, projector(embeddings.mean(dim=1, keepdim=True)))


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("base_model.transformer_in.", "the video UNet"),
        ("unet.controlnet_cond_embedding.", "the CAM branch"),
        ("resampler.", "the APM token network"),
        ("image_encoder.model.visual.", "the CLIP image tower"),
        ("text_encoder.", "the text encoder"),
        ("vae.decoder.", "the VAE"),
    ],
)
def test_a_file_without_one_network_is_refused_by_its_name(prefix, words):
    shapes = {key: shape for key, shape in official_shapes(TINY).items() if not key.startswith(prefix)}
    with pytest.raises(WrongCheckpointError, match=words):
        detect.detect_streamingmodelscope(shapes, "some.ckpt")


def test_leftover_text_tables_are_known_and_other_keys_are_not():
    tensors = dict.fromkeys(official_shapes(TINY), 0)
    assert weights.unread_keys(tensors) == []
    with pytest.raises(IncompleteCheckpointError, match=r"2 keys unknown .*first a.b, c"):
        weights.refuse_unread({**tensors, "a.b": 0, "c": 0}, "some.ckpt")


def test_vae_names_count_the_decoder_backwards():
    assert stable_diffusion_name("decoder.up_blocks.0.resnets.2.conv1.weight", 4) == "decoder.up.3.block.2.conv1.weight"
    assert stable_diffusion_name("decoder.up_blocks.1.upsamplers.0.conv.bias", 3) == "decoder.up.1.upsample.conv.bias"
    assert (
        stable_diffusion_name("encoder.mid_block.attentions.0.to_out.0.bias", 4) == "encoder.mid.attn_1.proj_out.bias"
    )
    assert stable_diffusion_name("encoder.down_blocks.3.resnets.0.conv_shortcut.bias", 4) == SHORTCUT


def test_official_levels():
    sigmas, alphas = modelscope_sigmas(50), published_alphas_cumprod()
    assert len(sigmas) == 51 and (sigmas.diff() < 0).all() and sigmas[-1] > 0
    torch.testing.assert_close(sigmas[0].double(), ((1 - alphas[981]) / alphas[981]).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sigmas[-1].double() ** 2, (1 - alphas[0]) / alphas[0], rtol=1e-6, atol=0)


@given(st.floats(0.1, 50), st.floats(0, 1), st.floats(0, 1))
def test_ddim_keeps_the_noise_level(sigma, ratio, eta):
    """On pure noise around a known latent, the noise left behind has the level asked for."""
    sigma, after = torch.tensor(sigma, dtype=torch.float64), torch.tensor(sigma * ratio, dtype=torch.float64)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    kept = ddim_eta_step(sigma * one, zero, sigma, after, eta, zero)
    fresh = ddim_eta_step(zero, zero, sigma, after, eta, one)
    torch.testing.assert_close(kept**2 + fresh**2, after.expand(1) ** 2, atol=1e-9, rtol=1e-9)
    if eta == 0:
        assert fresh == 0


def test_cam_config_is_read_from_its_branch():
    shapes = official_shapes(replace(TINY, cam=ModelscopeCamConfig(BASE, (8, 16, 24, 32))))
    assert detect.detect_cam(shapes).pixel_channels == (8, 16, 24, 32)
