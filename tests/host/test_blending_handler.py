"""Randomized blending on the host's own video models, samplers and conditioning."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.windows.handovers import RecordedHandovers, SeededHandovers
from streaming_core.windows.plan import plan_windows
from tests.windows_oracle import ownership

import_host()
import_pack()

import comfy.context_windows as host_windows  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.samplers  # noqa: E402
from comfyui_streamingt2v.nodes.host.compat import supported  # noqa: E402
from comfyui_streamingt2v.nodes.host.windows import blending  # noqa: E402
from comfyui_streamingt2v.nodes.host.windows.conditions import with_window_conditions  # noqa: E402

from tiny_models import native as tiny  # noqa: E402

FRAMES, WINDOW, OVERLAP = 11, 5, 2
SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "uni_pc", "ddim")
every_model = pytest.mark.parametrize("kind", tiny.ALL, ids=lambda kind: kind.name)
both_ranks = pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN], ids=lambda kind: kind.name)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models() -> Callable[[tiny.Tiny], object]:
    return cache(lambda kind: kind.make())


def video(model, kind: tiny.Tiny, frames: int = FRAMES, **options) -> Tensor:
    return tiny.sample(model, kind.latent(frames), kind.conditioning(1), kind.conditioning(2), **options)


def blended(model, seed: int = 1, window: int = WINDOW, overlap: int = OVERLAP):
    return blending.with_blending(model, window, overlap, SeededHandovers(seed))


def watch(model, record: Callable[[dict], None]):
    """A clone that shows `record` the input of every model call: input, timestep, c, cond_or_uncond."""

    def wrapper(apply_model, call):
        record(call)
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


@every_model
def test_a_video_within_one_window_is_untouched(models, kind):
    model = models(kind)
    plain = video(model, kind)
    for window in (FRAMES, FRAMES + 5):
        assert torch.equal(video(blended(model, window=window), kind), plain)


@every_model
def test_same_seed_same_video_and_the_first_step_differs_in_overlaps_only(models, kind):
    model = models(kind)
    one, again, other = (video(blended(model, seed), kind) for seed in (1, 1, 2))
    assert one.isfinite().all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)[:2]
    windows = plan_windows(FRAMES, WINDOW, OVERLAP)
    owned = [ownership(windows, SeededHandovers(seed).offsets(windows, 0)) for seed in (1, 2)]
    assert owned[0] != owned[1]
    first, second = (video(blended(model, seed), kind, sigmas=sigmas).movedim(kind.axis, 0) for seed in (1, 2))
    owners = [[k for k, own in enumerate(each) for _ in range(len(own))] for each in owned]
    for frame in range(FRAMES):
        same_owner = owners[0][frame] == owners[1][frame]
        assert torch.equal(first[frame], second[frame]) == same_owner, frame


@pytest.mark.parametrize("sampler", SAMPLERS)
@both_ranks
def test_every_sampler_works_in_windows(models, kind, sampler):
    shapes, owned = [], []

    def record(call):
        shapes.append(call["input"].shape)
        owned.append(call["c"]["transformer_options"]["context_window"].index_list)

    model = watch(blended(models(kind)), record)
    result = video(model, kind, sampler=sampler)
    assert result.shape == kind.latent(FRAMES).shape and result.isfinite().all()
    # Both guidance rows of a window may come in one call, as a batch of two.
    assert {shape[kind.axis] for shape in shapes} <= ({WINDOW, 2 * WINDOW} if kind.frame_batch else {WINDOW})
    windows = [list(range(w.start, w.stop)) for w in plan_windows(FRAMES, WINDOW, OVERLAP)]
    assert owned == windows * (len(owned) // len(windows))
    assert torch.equal(video(blended(models(kind)), kind, sampler=sampler), result)


@both_ranks
def test_samplers_that_evaluate_between_levels_keep_to_the_nearest_step(models, kind):
    """heun asks twice at every inner level: both times the same frames must belong to the same windows."""
    model = models(kind)
    handler = blended(model).model_options["context_handler"]
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    options = {"transformer_options": {"sample_sigmas": sigmas}}
    conds, x = [[{"model_conds": {}}]], kind.latent(FRAMES)

    def owners(sigma: float) -> Tensor:
        def number_of_window(_model, conds, x, _timestep, model_options):
            start = model_options["transformer_options"]["context_window"].index_list[0]
            return [torch.full_like(x, start) for _ in conds]

        timestep = torch.full((FRAMES if kind.frame_batch else 1,), sigma)
        return handler.execute(number_of_window, model.model, conds, x, timestep, options)[0]

    for near, step in ((4.0, 4.0), (3.3, 4.0), (2.2, 2.0), (2.0, 2.0), (1.0, 1.0), (0.9, 1.0), (0.001, 0.0)):
        assert torch.equal(owners(near), owners(step))
    assert not torch.equal(owners(4.0), owners(2.0))


@pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN_I2V], ids=lambda kind: kind.name)
def test_each_window_gets_the_conditions_of_its_own_frames(models, kind):
    """Frame f of the condition holds the number f + 1; on every host each window must see its own numbers."""
    numbers = torch.arange(1.0, FRAMES + 1)
    shape = [1] * kind.latent(FRAMES).ndim
    shape[kind.axis] = FRAMES
    numbered = numbers.view(shape).expand(kind.latent(FRAMES).shape)
    seen = []

    def record(call):
        window = call["c"]["transformer_options"]["context_window"]
        image = call["c"]["c_concat"][:, -kind.channels :].movedim(kind.axis, 0)
        assert image.shape[0] == WINDOW, image.shape
        seen.append((window.index_list, image))

    model = watch(blended(models(kind)), record)
    expected = numbered
    if kind is tiny.WAN_I2V:
        expected = model.model.process_latent_in(numbered)
    positive = kind.conditioning(1, concat_latent_image=numbered.clone())
    tiny.sample(model, kind.latent(FRAMES), positive, positive, cfg=1.0, steps=2)
    assert len(seen) == 2 * len(plan_windows(FRAMES, WINDOW, OVERLAP))
    for frames, image in seen:
        assert torch.equal(image, expected.movedim(kind.axis, 0)[frames])


def test_other_frame_wise_conditions_are_cut_and_the_rest_is_left_whole(models):
    class Held:
        def __init__(self, cond):
            self.cond = cond

        def _copy_with(self, cond):
            return Held(cond)

    def cut(conds: dict, dim: int, **entry) -> dict:
        x = torch.zeros(FRAMES, 4, 8, 8) if dim == 0 else torch.zeros(1, 16, FRAMES, 4, 4)
        got = []

        def look(_model, conds, x, _timestep, _options):
            got.append(conds[0][0])
            return [torch.zeros_like(x) for _ in conds]

        handler = blending.RandomizedBlending(WINDOW, OVERLAP, SeededHandovers(0))
        options = {"transformer_options": {"sample_sigmas": torch.tensor([1.0, 0.0])}}
        entries = [[{"model_conds": {name: Held(value) for name, value in conds.items()}, **entry}]]
        model = models(tiny.SVD if dim == 0 else tiny.WAN).model
        handler.execute(look, model, entries, x, torch.ones(FRAMES if dim == 0 else 1), options)
        return got[1]

    per_frame = torch.arange(FRAMES)
    batch = cut(
        {
            "y": per_frame.view(-1, 1).expand(-1, 3).clone(),
            "c_crossattn": torch.zeros(1, FRAMES, 16),
            "num_video_frames": FRAMES,
        },
        0,
        mask=per_frame.view(-1, 1, 1).expand(-1, 8, 8),
        strength=0.5,
    )
    assert batch["model_conds"]["y"].cond[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert batch["model_conds"]["c_crossattn"].cond.shape == (1, FRAMES, 16)
    assert batch["model_conds"]["num_video_frames"].cond == WINDOW
    assert batch["mask"][:, 0, 0].tolist() == [3, 4, 5, 6, 7] and batch["strength"] == 0.5

    video = cut(
        {
            "c_concat": per_frame.view(1, 1, -1, 1, 1).expand(1, 20, -1, 4, 4),
            "times": per_frame,
            "c_crossattn": torch.zeros(1, 7, FRAMES),
            "audio_embed": per_frame.view(1, -1, 1),
        },
        2,
        mask=per_frame.view(1, -1, 1, 1).expand(1, -1, 4, 4),
    )
    assert video["model_conds"]["c_concat"].cond[0, 0, :, 0, 0].tolist() == [3, 4, 5, 6, 7]
    assert video["model_conds"]["times"].cond.tolist() == [3, 4, 5, 6, 7]
    assert video["model_conds"]["audio_embed"].cond.flatten().tolist() == [3, 4, 5, 6, 7]
    # As many numbers as frames by accident, in a tensor of another rank: text, not frames.
    assert video["model_conds"]["c_crossattn"].cond.shape == (1, 7, FRAMES)
    assert video["mask"][0, :, 0, 0].tolist() == [3, 4, 5, 6, 7]


@both_ranks
def test_windows_can_have_prompts_of_their_own(models, kind):
    windows = plan_windows(FRAMES, WINDOW, OVERLAP)
    prompts = [kind.conditioning(10 + k) for k in range(len(windows))]
    seen = {}

    def record(call):
        seen[call["c"]["transformer_options"]["context_window"].index_list[0]] = call["c"]["c_crossattn"][:1]

    positive = with_window_conditions(kind.conditioning(1), prompts)
    model = watch(blended(models(kind)), record)
    tiny.sample(model, kind.latent(FRAMES), positive, positive, cfg=1.0, steps=1)
    for window, prompt in zip(windows, prompts, strict=True):
        assert torch.equal(seen[window.start], prompt[0][0])

    # Two prompts for four windows: each serves two in a row. More prompts than windows: refused.
    seen.clear()
    positive = with_window_conditions(kind.conditioning(1), prompts[:2])
    tiny.sample(model, kind.latent(FRAMES), positive, positive, cfg=1.0, steps=1)
    for k, window in enumerate(windows):
        assert torch.equal(seen[window.start], prompts[k * 2 // len(windows)][0][0])
    positive = with_window_conditions(kind.conditioning(1), prompts * 2)
    with pytest.raises(SettingsError, match=rf"{2 * len(windows)} windows.* {len(windows)}:"):
        tiny.sample(model, kind.latent(FRAMES), positive, positive, cfg=1.0, steps=1)


@pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN_I2V], ids=lambda kind: kind.name)
def test_a_window_s_image_stands_at_its_first_frame_as_in_a_clip_of_its_own(models, kind):
    windows = plan_windows(FRAMES, WINDOW, OVERLAP)
    model = models(kind)

    def options(number: int) -> dict:
        image = torch.full_like(kind.latent(1), float(number))
        if kind.frame_batch:
            return {"concat_latent_image": image}
        image = torch.cat([image, torch.zeros_like(kind.latent(WINDOW - 1))], kind.axis)
        mask = torch.ones(1, 1, WINDOW, kind.side, kind.side)
        mask[:, :, :1] = 0
        return {"concat_latent_image": image, "concat_mask": mask}

    alone, in_video = {}, {}
    for k, window in enumerate(windows):
        watched = watch(model, lambda call, start=window.start: alone.__setitem__(start, call["c"]["c_concat"]))
        clip = kind.conditioning(1, **options(k))
        tiny.sample(watched, kind.latent(WINDOW), clip, clip, cfg=1.0, steps=1)

    def record(call):
        in_video[call["c"]["transformer_options"]["context_window"].index_list[0]] = call["c"]["c_concat"]

    video_cond = with_window_conditions(
        kind.conditioning(1), [kind.conditioning(1, **options(k)) for k in range(len(windows))]
    )
    tiny.sample(watch(blended(model), record), kind.latent(FRAMES), video_cond, video_cond, cfg=1.0, steps=1)
    assert alone.keys() == in_video.keys()
    for start, condition in alone.items():
        assert torch.equal(in_video[start], condition)
    assert not torch.equal(in_video[windows[0].start], in_video[windows[1].start])


def test_window_conditions_that_belong_to_the_video_are_refused():
    whole = tiny.WAN.conditioning(1)
    with pytest.raises(SettingsError, match="window 1 has 2 parts"):
        with_window_conditions(whole, [whole, whole * 2])
    with pytest.raises(SettingsError, match="window 0 brings its own area"):
        with_window_conditions(whole, [tiny.WAN.conditioning(1, area=(1, 1, 0, 0))])
    with pytest.raises(SettingsError, match="at least one"):
        with_window_conditions(whole, [])


@both_ranks
def test_each_window_tells_the_model_its_place_in_the_video(models, kind):
    told = []
    model = watch(blended(models(kind)), lambda call: told.append(call["c"]["transformer_options"]["context_window"]))
    video(model, kind, steps=1)
    for place, window in zip(told, plan_windows(FRAMES, WINDOW, OVERLAP), strict=False):
        assert place.index_list == list(range(window.start, window.stop))
        assert (place.dim, place.total_frames) == (kind.axis, FRAMES)
        assert place.center_ratio == pytest.approx((window.start + window.stop - 1) / 2 / FRAMES)


@both_ranks
def test_memory_is_planned_for_one_window(models, kind, monkeypatch):
    planned = []
    estimate = comfy.sampler_helpers.estimate_memory

    def spy(model, noise_shape, *args, **kwargs):
        planned.append(list(noise_shape))
        return estimate(model, noise_shape, *args, **kwargs)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", spy)
    model = models(kind)
    video(model, kind, steps=1)
    video(blended(model), kind, steps=1)
    video(blended(model, window=100), kind, steps=1)
    assert [shape[kind.axis] for shape in planned] == [FRAMES, WINDOW, FRAMES]


@both_ranks
def test_clones_and_second_runs_share_nothing_that_changes(models, kind):
    model = blended(models(kind))
    before = repr(model.model_options["context_handler"])
    first = video(model, kind)
    second_branch = blending.with_blending(model, 6, 3, SeededHandovers(9))
    video(second_branch, kind)
    assert torch.equal(video(model.clone(), kind), first)
    assert torch.equal(video(model, kind), first)
    assert repr(model.model_options["context_handler"]) == before
    handler = model.model_options["context_handler"]
    with pytest.raises(AttributeError):
        handler.window_frames = 7


@both_ranks
def test_takes_the_place_of_the_host_s_own_windows(models, kind):
    model = models(kind).clone()
    method = host_windows.get_matching_fuse_method("pyramid")
    schedule = host_windows.get_matching_context_schedule("standard_static")
    stock = host_windows.IndexListContextHandler(
        schedule,
        method,
        context_length=4,
        context_overlap=1,
        dim=kind.axis,
        **supported(host_windows.IndexListContextHandler.__init__, freenoise=True),
    )
    model.model_options["context_handler"] = stock
    host_windows.create_prepare_sampling_wrapper(model)
    if hasattr(host_windows, "create_sampler_sample_wrapper"):
        host_windows.create_sampler_sample_wrapper(model)
    assert torch.equal(video(blended(model), kind), video(blended(models(kind)), kind))
    assert model.model_options["context_handler"] is stock


def test_several_videos_at_once(models):
    model = blended(models(tiny.WAN))
    pair = tiny.WAN.latent(FRAMES).repeat(2, 1, 1, 1, 1)
    result = tiny.sample(model, pair, tiny.WAN.conditioning(1), tiny.WAN.conditioning(2), steps=2)
    assert result.shape == pair.shape and result.isfinite().all()


@pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN, tiny.LTX], ids=lambda kind: kind.name)
def test_lengths_are_given_in_frames_of_the_video(models, kind):
    compression = {"svd": 1, "wan": 4, "ltx": 8}[kind.name]
    model = blending.with_randomized_blending(models(kind), 81, 24, 3)
    handler = model.model_options["context_handler"]
    assert handler.window_frames == 80 // compression + 1
    assert handler.overlap_frames == 24 // compression
    assert handler.handovers == SeededHandovers(3)


def test_what_this_pack_knows_of_latent_formats_is_what_newer_hosts_say():
    known = [(frames, form) for frames, forms in blending.UNSTATED_COMPRESSION.items() for form in forms]
    assert len(known) == 6
    for frames, form in known:
        assert getattr(form, "temporal_downscale_ratio", frames) == frames == blending.frames_per_latent(form())


@pytest.mark.parametrize("compression", [1, 4, 6, 8])
def test_every_overlap_below_the_window_fits_in_latent_frames_too(compression):
    for window in range(1, 90):
        for overlap in range(window):
            frames, shared = blending.latent_lengths(window, overlap, compression)
            assert 0 <= shared < frames
            assert 1 + (frames - 1) * compression >= window and shared * compression >= overlap


@pytest.mark.parametrize(
    ("window", "overlap", "words"),
    [(16, 16, ["16", "15"]), (0, 0, ["1 frame", "0"]), (16, -3, ["-3"]), (9, 20, ["9", "20", "8"])],
)
@both_ranks
def test_settings_that_cannot_work_are_refused_in_one_sentence(models, kind, window, overlap, words):
    with pytest.raises(SettingsError) as refused:
        blending.with_randomized_blending(models(kind), window, overlap, 0)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_latent_that_is_no_video_is_refused(models):
    handler = blended(models(tiny.WAN)).model_options["context_handler"]
    with pytest.raises(SettingsError, match=r"rank 3: \[1, 64, 1000\]"):
        handler.should_use_context(models(tiny.WAN).model, [], torch.zeros(1, 64, 1000), torch.ones(1), {})


def test_handovers_outside_their_overlap_are_refused_while_sampling(models):
    """Frames in between would keep what the host laid out: silently gray."""
    windows = plan_windows(FRAMES, WINDOW, OVERLAP)
    wrong = RecordedHandovers(((OVERLAP + 1, *(0 for _ in windows[2:])),) * 4)
    model = blending.with_blending(models(tiny.SVD), WINDOW, OVERLAP, wrong)
    with pytest.raises(SettingsError, match="handover 3 at boundary 0 lies outside its overlap of 2"):
        video(model, tiny.SVD)
