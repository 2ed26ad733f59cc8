"""EMA-VFI: sizes, times, shared work and weight files, on small random networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import FrameError, SettingsError
from streaming_core.models.ema_vfi.config import standard_config
from streaming_core.models.ema_vfi.detect import detect, detect_tensors
from streaming_core.models.ema_vfi.interpolator import PAIR_KEY, EmaVfiInterpolator, EmaVfiSettings, build
from streaming_core.models.ema_vfi.network import EmaVfi
from streaming_core.models.ema_vfi.windows import window_layout
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError, shapes_of
from tiny_models.ema_vfi import official_tensors_of, random_network

CONFIG = standard_config(4, (1, 2, 1, 2, 4))


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


NETWORK = random_network(config=CONFIG)


def frames(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = 0.1 * torch.rand(2, 3, height, width, generator=generator)
    first, second = (smooth * 0.9 + noise).split(1)
    return first, second


def model(network: EmaVfi = NETWORK, **options) -> EmaVfiInterpolator:
    return EmaVfiInterpolator(network, EmaVfiSettings(**{"any_time": True, **options}))


def test_landscape_and_portrait_do_not_disturb_each_other():
    shapes = {"landscape": frames(64, 96), "portrait": frames(96, 64)}
    alone = {}
    for name, pair in shapes.items():
        window_layout.cache_clear()
        alone[name] = model()(*pair)
    for order in (("landscape", "portrait", "landscape"), ("portrait", "landscape", "portrait")):
        window_layout.cache_clear()
        for name in order:
            assert torch.equal(model()(*shapes[name]), alone[name])


@settings(max_examples=12)
@given(st.integers(1, 70), st.integers(1, 70))
def test_every_size_works(height, width):
    first, second = frames(height, width)
    between = model()(first, second)
    assert between.shape == first.shape
    assert between.isfinite().all()
    assert 0 <= between.min() and between.max() <= 1


@pytest.mark.parametrize("tta", ["off", "fast", "full"])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25])
def test_padding_is_that_of_the_padded_image(tta, scale):
    first, second = frames(50, 61)
    chosen = model(tta=tta, flow_scale=scale)
    multiple = chosen.settings.multiple_px
    down, across = (-50) % multiple, (-61) % multiple
    pad = (across // 2, across - across // 2, down // 2, down - down // 2)
    padded = [torch.nn.functional.pad(frame, pad, mode="replicate") for frame in (first, second)]
    whole = chosen(*padded)
    assert whole.shape[-2] % multiple == whole.shape[-1] % multiple == 0
    part = whole[:, :, pad[2] : pad[2] + 50, pad[0] : pad[0] + 61]
    assert torch.equal(chosen(first, second), part)


def test_time_matters_and_is_respected():
    first, second = frames(32, 48)
    early, middle, late = model().forward_multi_timestep(first, second, [0.1, 0.5, 0.9])
    assert (early - middle).abs().max() > 1e-3
    assert (middle - late).abs().max() > 1e-3
    torch.testing.assert_close(model()(first, second, 0.9), late[None], atol=1e-5, rtol=0)


def test_one_pair_at_several_times_is_each_time_alone():
    first, second = frames(48, 32)
    times = [0.2, 0.5, 0.75]
    together = model(tta="fast").forward_multi_timestep(first, second, times)
    for time, frame in zip(times, together, strict=True):
        torch.testing.assert_close(model(tta="fast")(first, second, time)[0], frame, atol=1e-5, rtol=0)


def test_features_of_a_frame_serve_both_pairs():
    video = [*frames(48, 64, 1), *frames(48, 64, 2)]
    shared = model(tta="fast")
    features = [shared.extract_features(frame) for frame in video]
    cache: dict = {}
    for index in range(3):
        cache |= {"img0": features[index], "img1": features[index + 1]}
        timestep = torch.full((1, 1, 48, 64), 0.5)
        made = shared(video[index], video[index + 1], timestep=timestep, cache=cache)
        assert torch.equal(made, shared(video[index], video[index + 1], 0.5))


def test_features_of_a_pair_serve_all_its_times():
    first, second = frames(32, 32)
    chosen = model()
    cache = {"img0": chosen.extract_features(first), "img1": chosen.extract_features(second)}
    early = chosen.forward_multi_timestep(first, second, [0.25], cache)
    known = cache[PAIR_KEY]
    both = chosen.forward_multi_timestep(first, second, [0.25, 0.75], cache)
    assert cache[PAIR_KEY] is known
    torch.testing.assert_close(both[:1], early, atol=1e-5, rtol=0)
    cache["img1"] = chosen.extract_features(first)
    chosen.forward_multi_timestep(first, first, [0.25], cache)
    assert cache[PAIR_KEY] is not known


def test_batch_of_pairs_without_cache_is_each_pair_alone():
    (a, b), (c, d) = frames(32, 32, 1), frames(32, 32, 2)
    timestep = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
    made = model()(torch.cat((a, c)), torch.cat((b, d)), timestep=timestep)
    torch.testing.assert_close(made, torch.cat((model()(a, b, 0.25), model()(c, d, 0.75))), atol=1e-6, rtol=0)


def test_both_kinds_of_augmentation_agree_and_are_the_mean():
    first, second = frames(48, 64)
    fast, full = (model(tta=tta)(first, second) for tta in ("fast", "full"))
    assert torch.equal(fast, full)
    turned = model()(first.flip(2, 3), second.flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(fast, (model()(first, second) + turned) / 2, atol=1e-6, rtol=0)


def test_two_views_in_one_batch_are_the_two_views_alone():
    """What accelerators do for fast augmentation, checked on the CPU by putting both views into one batch."""
    first, second = frames(48, 64)
    chosen = model(tta="fast")
    frames_ = [chosen.extract_features(frame) for frame in (first, second)]
    views = []
    for image in (first, second):
        upright = image.flip(1)
        views.append(chosen._view(torch.cat((upright, upright.flip(2, 3)))))
    pair = chosen._pair_view(*views)
    batched = chosen._looks(pair, [0.25, 0.5])
    alone = [chosen._looks(one, [0.25, 0.5])[0] for one in chosen._pair(*frames_, {})]
    for got, want in zip(batched, alone, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_several_times_in_one_batch_are_each_time_alone():
    """What accelerators do for several times, checked on the CPU."""
    first, second = frames(48, 64)
    for scale in (1.0, 0.5):
        chosen = model(flow_scale=scale)
        (pair,) = chosen._pair(chosen.extract_features(first), chosen.extract_features(second), {})
        together = chosen._images(pair, [0.2, 0.5, 0.9])
        alone = torch.cat([chosen._images(pair, [time]) for time in (0.2, 0.5, 0.9)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_weights_for_the_middle_reach_other_times_by_halving():
    first, second = frames(32, 48)
    middle_only = model(any_time=False)
    half = middle_only(first, second)
    assert torch.equal(half, model()(first, second, 0.5))
    quarters = middle_only.forward_multi_timestep(first, second, [0.75, 0.25, 0.5, 0.0, 1.0])
    assert torch.equal(quarters[1:2], model()(first, half))
    assert torch.equal(quarters[:1], model()(half, second))
    assert torch.equal(quarters[2:3], half)
    assert torch.equal(quarters[3:], torch.cat((first, second)))


def test_frames_made_by_halving_are_looked_at_only_to_halve_on(monkeypatch):
    first, second = frames(32, 32)
    middle_only, looked = model(any_time=False), []
    look = EmaVfiInterpolator.extract_features
    monkeypatch.setattr(EmaVfiInterpolator, "extract_features", lambda self, img: looked.append(1) or look(self, img))
    for times, count in (([0.5], 2), ([0.25, 0.5], 3), ([0.25, 0.5, 0.75], 3), ([0.125], 4), ([0.0, 1.0], 2)):
        looked.clear()
        middle_only.forward_multi_timestep(first, second, times)
        assert len(looked) == count


def test_half_precision_stays_close():
    first, second = frames(64, 96)
    exact = model()(first, second)
    halved = model(random_network(config=CONFIG).half())
    made = halved(first.half(), second.half())
    assert made.dtype == torch.float32
    assert halved.get_dtype() == torch.float16
    assert (made - exact).abs().mean() < 2e-3


def test_memory_is_promised_for_one_pair_whatever_the_length():
    chosen = model()
    one = chosen.memory_used_forward((2, 720, 1280, 3), torch.float32)
    assert chosen.memory_used_forward((500, 720, 1280, 3), torch.float32) == one
    assert chosen.memory_used_forward((2, 720, 1280, 3), torch.float16) == one // 2
    assert model(tta="full").memory_used_forward((2, 720, 1280, 3), torch.float32) > one
    twice = model(tta="fast").memory_used_forward((2, 720, 1280, 3), torch.float32)
    assert twice == 2 * one
    assert chosen.memory_used_forward((2, 713, 1265, 3), torch.float32) == one  # the same after padding


def test_frames_of_a_wrong_shape_are_refused():
    with pytest.raises(FrameError, match=r"\(2, 3, 32, 32\)"):
        model().extract_features(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("options", [{"tta": "slow"}, {"flow_scale": 0.3}, {"pad_multiple": 24}, {"pad_multiple": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(SettingsError):
        EmaVfiSettings(**options)


# -- weight files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, depths", [(4, (2, 2, 2, 2, 2)), (8, (2, 2, 2, 4, 4)), (4, (1, 2, 3, 4, 1))])
def test_sizes_are_read_off_the_weights(width, depths):
    config = standard_config(width, depths)
    network = EmaVfi(config, device="meta")
    assert detect_tensors({f"module.{key}": value for key, value in network.state_dict().items()})[0] == config


def test_file_with_and_without_prefix_give_the_same_frames():
    first, second = frames(32, 32)
    want = model()(first, second)
    plain = {key.removeprefix("module."): value for key, value in official_tensors_of(NETWORK).items()}
    for tensors in (official_tensors_of(NETWORK), plain):
        built = build(tensors, EmaVfiSettings(any_time=True))
        assert torch.equal(built(first, second), want)
        assert not any(parameter.requires_grad for parameter in built.parameters())


def test_incomplete_file_names_what_is_missing():
    tensors = official_tensors_of(NETWORK)
    del tensors["module.unet.down1.conv1.0.bias"]
    with pytest.raises(IncompleteCheckpointError, match=r"1 missing \(first unet.down1.conv1.0.bias\)"):
        build(tensors)
    del tensors["module.unet.conv.weight"]
    with pytest.raises(IncompleteCheckpointError, match="lacks unet.conv.weight"):
        build(tensors)


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_a_file_without_a_whole_stage_is_no_smaller_variant(stage):
    part = f"module.feature_bone.block{stage}." + ("conv." if stage < 4 else "")
    tensors = {key: value for key, value in official_tensors_of(NETWORK).items() if not key.startswith(part)}
    with pytest.raises((IncompleteCheckpointError, WrongCheckpointError), match="stage|lacks|no feature_bone"):
        build(tensors)


def test_weights_that_contradict_each_other_are_refused():
    tensors = official_tensors_of(NETWORK)
    key = "module.feature_bone.block5.0.attn.cor_embed.weight"
    tensors[key] = torch.rand(tensors[key].shape[0] + 1, *tensors[key].shape[1:])
    with pytest.raises(IncompleteCheckpointError, match="contradict"):
        build(tensors)


def test_other_interpolators_are_told_apart():
    with pytest.raises(WrongCheckpointError, match="RIFE"):
        build({"module.block0.conv0.weight": torch.zeros(1), "module.block1.conv0.weight": torch.zeros(1)})
    with pytest.raises(WrongCheckpointError, match="FILM"):
        build({"extract.extract_sublevels.convs.0.0.conv.weight": torch.zeros(1)})
    with pytest.raises(WrongCheckpointError, match="not a EMA-VFI|not an EMA-VFI"):
        build({"some.weight": torch.zeros(1)})


def test_head_counts_that_do_not_divide_are_refused():
    shapes = shapes_of(NETWORK.state_dict())
    with pytest.raises(SettingsError, match="5 heads"):
        detect(shapes, num_heads=(5, 2))


def test_full_size_networks_have_the_published_number_of_parameters():
    for width, depths, count in ((32, (2, 2, 2, 4, 4), 65_662_359), (16, (2, 2, 2, 2, 2), 14_489_815)):
        network = EmaVfi(standard_config(width, depths), device="meta")
        assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_every_layer_comes_from_the_given_operations():
    made = []

    class Operations:
        def __getattr__(self, name):
            def make(*args, **kwargs):
                made.append(getattr(torch.nn, name)(*args, **kwargs))
                return made[-1]

            return make

    network = EmaVfi(CONFIG, operations=Operations(), dtype=torch.float16)
    layers = [module for module in network.modules() if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm))]
    layers += [module for module in network.modules() if isinstance(module, torch.nn.modules.conv._ConvNd)]
    assert {id(layer) for layer in layers} == {id(layer) for layer in made}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}
