"""Perturb Tail and Previous Chunk Guidance on every family of the chunk loop: off, growth, steps, the formula, runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.color.anchor import ColorAnchor
from streaming_core.errors import SettingsError
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.remedies import MOST, Perturbation, PreviousGuidance, perturbed_frames
from streaming_core.loop.sampler import ChunkSampler, PerturbedTail
from streaming_core.loop.state import VideoState
from streaming_core.loop.steps import start_video, video_chunks

import_host()
import_pack()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes.drift import PerturbTail, PreviousChunkGuidance  # noqa: E402
from comfyui_streamingt2v.nodes.host import cam as shared_cam  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo import sampler as droplet  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope import load as modelscope_load  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope  # noqa: E402
from comfyui_streamingt2v.nodes.host.native import sampler as native  # noqa: E402
from comfyui_streamingt2v.nodes.host.pixels import core_to_images  # noqa: E402
from comfyui_streamingt2v.nodes.host.remedies.steps import SigmaRange  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import preflight, videos  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd import load as svd_load  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd import sampler as svd  # noqa: E402

from streaming_core.models.streamingsvd.shapes import official_shapes  # noqa: E402
from streaming_core.schedules.dropletvideo import dropletvideo_sigmas  # noqa: E402
from streaming_core.schedules.modelscope import modelscope_sigmas  # noqa: E402
from tests.host.test_chunk_sampler import Bare  # noqa: E402
from tests.host.test_dropletvideo_inprocess import loaded_from, text  # noqa: E402
from tests.host.test_native_inprocess import counted, sampler_of, size_of  # noqa: E402
from tiny_models import native as tiny  # noqa: E402
from tiny_models.dropletvideo import write_tiny_dropletvideo  # noqa: E402
from tiny_models.modelscope import tiny_weights  # noqa: E402
from tiny_models.streamingsvd import TINY, random_weights, write  # noqa: E402

FRAMES_FAMILIES, LATENT_FAMILIES = ("svd", "modelscope", "droplet"), ("wan", "ltx", "svd without CAM")
pytestmark = pytest.mark.slow
NAMES = FRAMES_FAMILIES + LATENT_FAMILIES
NATIVE = {"wan": tiny.WAN, "wan from an image": tiny.WAN_I2V, "ltx": tiny.LTX, "svd without CAM": tiny.SVD}
every_family = pytest.mark.parametrize("family", NAMES, indirect=True)
frame_families = pytest.mark.parametrize("family", FRAMES_FAMILIES, indirect=True)
latent_families = pytest.mark.parametrize(
    "family", [name for name in NAMES if name not in FRAMES_FAMILIES], indirect=True
)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def euler():
    return comfy.samplers.sampler_object("euler")


@dataclass(frozen=True)
class Family:
    """A family on tiny weights: `make(sigmas, cfg)` is its chunk sampler, `plan` a video of three chunks."""

    make: Callable[..., ChunkSampler]
    wanted: VideoPlan
    sigmas: torch.Tensor

    @cached_property
    def plan(self) -> VideoPlan:
        """In lengths of the model, from an image where it starts from one."""
        sampler, plan = self.sampler(), self.wanted
        if "image" in sampler.starts_from:
            image = torch.rand(1, 3, *plan.size, generator=torch.Generator().manual_seed(3))
            plan = replace(plan, beginning=Beginning(image))
        return sampler.accept(plan)

    def sampler(self, cfg: float = 2.5, steps: int | None = None) -> ChunkSampler:
        sigmas = self.sigmas if steps is None else torch.cat([self.sigmas[:steps], torch.zeros(1)])
        return self.make(sigmas, cfg)

    @cached_property
    def state(self) -> VideoState:
        """After chunk 0, without any remedy."""
        return start_video(self.plan, self.sampler())[0]


def checkpoint(name: str) -> Path:
    return Path(folder_paths.get_folder_paths("checkpoints")[0]) / name


def svd_family(folder: Path) -> Family:
    # In float32, which a CPU computes in.
    write(checkpoint("remedies_svd.safetensors"), random_weights(official_shapes(TINY), dtype=torch.float32))
    model, clip_vision, vae, cam = svd_load.load_streamingsvd("remedies_svd.safetensors")

    def make(sigmas, cfg):
        sampling = svd.SamplingSettings(euler(), sigmas, cfg, min(cfg, 1.5))
        parts = {"model": model, "cam": cam, "vae": vae, "clip_vision": clip_vision, "first_model": model}
        return svd.SvdChunkSampler(**parts, sampling=sampling, first_sampling=sampling)

    return Family(make, VideoPlan(14, 6, 2, 7, height=32, width=64), torch.tensor([700.0, 20.0, 1.0, 0.0]))


def modelscope_family(folder: Path) -> Family:
    write(checkpoint("remedies_modelscope.safetensors"), tiny_weights(dtype=torch.float32))
    loaded = modelscope_load.load_streamingmodelscope("remedies_modelscope.safetensors")
    texts = [loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(words)) for words in ("a cat", "")]

    def make(sigmas, cfg):
        sampling = modelscope.ModelscopeSampling(euler(), sigmas, cfg)
        return modelscope.ModelscopeChunkSampler(
            loaded.model, loaded.cam, loaded.vae, (texts[0],), texts[1], loaded.model, loaded.clip_vision, loaded.apm,
            sampling=sampling, first_sampling=sampling,
        )  # fmt: skip

    sigmas = torch.cat([modelscope_sigmas(3)[:3], torch.zeros(1)])
    return Family(make, VideoPlan(14, 6, 2, 7, height=32, width=32), sigmas)


def droplet_family(folder: Path) -> Family:
    loaded = loaded_from(write_tiny_dropletvideo(folder))

    def make(sigmas, cfg):
        return droplet.DropletChunkSampler(
            loaded.model, loaded.vae, (text(1),), text(2), euler(), sigmas, cfg, prefix_frames=4
        )

    return Family(make, VideoPlan(31, 13, 4, 7, height=32, width=48), dropletvideo_sigmas(3))


def native_family(kind: tiny.Tiny) -> Family:
    model = kind.make()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    height, width = size_of(kind)

    def make(sigmas, cfg):
        return replace(sampler_of(kind), model=model, sigmas=sigmas, cfg=cfg)

    lengths = (14, 6, 2) if kind.frame_batch else (33, 17, 9)
    return Family(make, VideoPlan(*lengths, 7, height=height, width=width), sigmas)


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Family]:
    return {}


@pytest.fixture
def family(request, families, tmp_path_factory) -> Family:
    name = request.param
    if name not in families:
        makers = {"svd": svd_family, "modelscope": modelscope_family, "droplet": droplet_family}
        if name in makers:
            families[name] = makers[name](tmp_path_factory.mktemp("weights"))
        else:
            families[name] = native_family(NATIVE[name])
    return families[name]


def both(sampler: ChunkSampler, noise: Perturbation, guidance: PreviousGuidance) -> ChunkSampler:
    return sampler.with_perturbed_tail(noise).with_previous_guidance(guidance)


def new_latents(sampler: ChunkSampler, state, index: int = 1, **cues) -> torch.Tensor:
    """Latents of a chunk that continues `state`, less those of the tail where they are given."""
    chunk = replace(state.plan.chunk(min(index, state.plan.num_chunks - 1)), index=index, **cues)
    latents = sampler.sample_chunk(chunk, state.tail, state.anchor)
    layout = sampler.layout
    return latents if layout is None else layout.after(latents, layout.latents(chunk.overlap_frames))


# Both remedies on every family


@every_family
def test_off_is_bit_identical_and_has_the_same_identity(family):
    plain, state = family.sampler(), family.state
    off = both(plain, Perturbation(), PreviousGuidance())
    ranged = both(plain, Perturbation(0, 0, 0.2, 0.7), PreviousGuidance(0, 0, 0.2, 0.7))
    expected = new_latents(plain, state)
    for each in (off, ranged):
        assert torch.equal(new_latents(each, state), expected)
        assert each.identity() == plain.identity()
        assert each.chunk_identity(state.plan.chunk(1)) == plain.chunk_identity(state.plan.chunk(1))
    on = both(plain, Perturbation(0.1), PreviousGuidance(0.1))
    back = PreviousChunkGuidance.execute(PerturbTail.execute(on, 0.0).args[0], 0.0).args[0]
    assert torch.equal(new_latents(back, state), expected) and back.identity() == plain.identity()


@every_family
def test_each_changes_chunk_1_and_neither_changes_chunk_0(family):
    plain, state = family.sampler(), family.state
    expected = new_latents(plain, state)
    made = [
        new_latents(each, state)
        for each in (
            plain.with_perturbed_tail(Perturbation(0.1)),
            plain.with_previous_guidance(PreviousGuidance(0.1)),
            both(plain, Perturbation(0.1), PreviousGuidance(0.1)),
        )
    ]
    assert all(each.isfinite().all() for each in made)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(made[one], made[other])
    assert not any(torch.equal(each, expected) for each in made)
    plan = state.plan
    on = both(plain, Perturbation(0.1), PreviousGuidance(0.1))
    if "prompt" in plain.starts_from:  # a native model holds an image as it holds a tail
        plan = replace(plan, beginning=Beginning())
    first, again = (start_video(plan, each)[1] for each in (plain, on))
    assert torch.equal(first, again)


@every_family
def test_the_guidance_is_the_published_formula(family):
    """Against two model calls that are combined by hand; one step, so that the latents are the prediction."""
    state, weight = family.state, 0.35
    one = family.sampler(cfg=1.0, steps=1)
    if one.layout is not None:  # the anchor may be one more latent
        state = replace(state, anchor=replace(state.anchor, embedding=None))
    seen, guided = new_latents(one, state), new_latents(one.with_previous_guidance(PreviousGuidance(weight)), state)
    blind = latents_without_tail(family, one, state)
    assert (seen - blind).abs().max() > 1e-3
    assert torch.allclose(guided, seen + weight * (seen - blind), atol=2e-3 * float(seen.abs().max()))
    assert not torch.allclose(guided, seen, atol=2e-3 * float(seen.abs().max()))
    # And it is added to what CFG makes of the step.
    strong = family.sampler(cfg=4.0, steps=1)
    alone = new_latents(strong, state)
    guided = new_latents(strong.with_previous_guidance(PreviousGuidance(weight)), state)
    assert torch.allclose(guided, alone + weight * (seen - blind), atol=2e-3 * float(alone.abs().max()))


def latents_without_tail(family: Family, one: ChunkSampler, state) -> torch.Tensor:
    """What a family makes of chunk 1 without the tail, by ways of its own that the guidance does not take."""
    if "cam_strength" in one.follows:
        return new_latents(one, state, cam_strength=0.0)
    chunk = state.plan.chunk(1)
    if one.layout is None:
        return one._sample(chunk, state.plan.size, None)
    layout = one.layout
    held = layout.latents(chunk.overlap_frames)
    shape = list(state.tail.shape)
    shape[layout.axis] = layout.latents(chunk.num_frames)
    drawn = native.draw_noise(chunk, tuple(shape), layout, held)
    noise = torch.cat([drawn.unknown, layout.after(drawn.latent, held)], dim=layout.axis)
    request = native.ClipRequest(tuple(shape), chunk.num_frames, None, state.anchor.embedding)
    conds = one._conditions(native.condition_kind(one.model), chunk, request)
    latent = torch.zeros(shape)
    made = comfy.sample.sample_custom(
        one.model, noise, 1.0, one.sampler, one.sigmas, *conds, latent, disable_pbar=True, seed=drawn.sampler_seed
    )
    return layout.after(made, held)


@every_family
def test_growth_adds_to_every_later_chunk(family):
    state = family.state
    for start, growing in (
        (Perturbation(0.02), Perturbation(0.02, 0.04)),
        (PreviousGuidance(0.1), PreviousGuidance(0.1, 0.2)),
    ):
        # One step where the latents are the prediction. But a flow model sees of its tail nothing at the first one.
        plain = family.sampler(steps=1 if isinstance(start, PreviousGuidance) else None)
        steady, grown = (
            plain.with_perturbed_tail(each) if isinstance(each, Perturbation) else plain.with_previous_guidance(each)
            for each in (start, growing)
        )
        assert torch.equal(new_latents(steady, state, 1), new_latents(grown, state, 1))
        expected = new_latents(plain, state, 3)
        little, much = ((new_latents(each, state, 3) - expected).norm() for each in (steady, grown))
        assert much > 1.5 * little
        if isinstance(start, PreviousGuidance):
            assert abs(float(much / little) - growing.at(3) / start.at(3)) < 0.05
        assert grown.identity() != steady.identity() or grown.chunk_identity(
            replace(state.plan.chunk(1), index=3)
        ) != steady.chunk_identity(replace(state.plan.chunk(1), index=3))


@every_family
def test_steps_outside_the_range_are_as_without(family):
    """Ranges that hold all steps, the first two, or none."""
    plain, state = family.sampler(), family.state
    expected = new_latents(plain, state)
    first = between(plain, 1)
    for kind, add in ((Perturbation, "with_perturbed_tail"), (PreviousGuidance, "with_previous_guidance")):
        whole, begin, outside = (
            getattr(plain, add)(kind(0.3, 0.0, *steps)) for steps in ((0.0, 1.0), (0.0, first), between_none(plain))
        )
        made, most = new_latents(begin, state), new_latents(whole, state)
        assert torch.equal(new_latents(outside, state), expected)
        assert not torch.equal(made, expected) and not torch.equal(made, most)
        with pytest.raises(SettingsError, match=f"{kind.node} would act on no step: none of the 3"):
            outside.accept(state.plan)
        begin.accept(state.plan)
        # One that ends after the last step is all of it, by the way that ranges go.
        last = between(plain, 2)
        almost = new_latents(getattr(plain, add)(kind(0.3, 0.0, 0.0, last)), state)
        assert torch.allclose(almost, most, atol=1e-3 * float(most.abs().max()))


def percents(sampler: ChunkSampler) -> list[float]:
    """Where in sampling each step begins, found by halving; the host only goes the other way."""
    model = sampler.model.get_model_object("model_sampling")
    found = []
    for sigma in sampler_sigmas(sampler)[:-1].tolist():
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if float(model.percent_to_sigma(middle)) > sigma else (low, middle)
        found.append(low)
    return found


def sampler_sigmas(sampler: ChunkSampler) -> torch.Tensor:
    return sampler.sampling.sigmas if hasattr(sampler, "sampling") else sampler.sigmas


def between(sampler: ChunkSampler, step: int) -> float:
    """A place after `step` and before the one that follows."""
    places = [*percents(sampler), 1.0]
    return (places[step] + places[step + 1]) / 2


def between_none(sampler: ChunkSampler) -> tuple[float, float]:
    """A range that no step begins in."""
    places = percents(sampler)
    width = places[1] - places[0]
    return places[0] + width / 3, places[0] + width / 2


@every_family
def test_runs_resume_after_chunk_1_with_both(family, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "runs_root", lambda: tmp_path)
    plain = family.sampler()
    sampler = both(plain, Perturbation(0.05, 0.05, 0.0, 0.6), PreviousGuidance(0.1, 0.1, 0.0, 0.6))
    fitted = family.plan
    image = fitted.beginning.image
    # A native model holds an image as it holds a tail; with both remedies.
    start = {} if "prompt" in plain.starts_from or image is None else {"start_image": image.movedim(1, -1)}

    def made(chosen: ChunkSampler, frames: int, name: str) -> torch.Tensor:
        asked = videos.plan_video(
            frames, fitted.chunk_frames, fitted.overlap_frames, fitted.width, fitted.height, "crop", 7, 0, **start
        )
        stream = videos.make_video(chosen, asked, name)
        return stream.read(0, len(stream))

    two = fitted.chunk(1).stop
    whole = made(sampler, fitted.num_frames, "whole")
    first, calls = type(sampler).first_chunk, []
    monkeypatch.setattr(type(sampler), "first_chunk", lambda *args: (calls.append(0), first(*args))[1])
    assert torch.equal(made(sampler, two, "parts"), whole[:two])
    assert torch.equal(made(sampler, fitted.num_frames, "parts"), whole) and len(calls) == 1
    without = made(plain, fitted.num_frames, "parts")
    zero = fitted.chunk(0).stop
    assert torch.equal(without[:zero], whole[:zero]) and not torch.equal(without[zero:two], whole[zero:two])
    assert torch.equal(made(sampler, fitted.num_frames, "parts"), whole)


@frame_families
def test_turning_the_guidance_on_keeps_chunk_0(family):
    plain = family.sampler()
    guided, chunk = plain.with_previous_guidance(PreviousGuidance(0.1, 0.1)), family.plan.chunk(0)
    assert guided.identity() == plain.identity() and guided.chunk_identity(chunk) == plain.chunk_identity(chunk)
    later = [guided.chunk_identity(replace(chunk, index=index))["previous_guidance"] for index in (1, 2)]
    assert later == [{"weight": 0.1}, {"weight": 0.2}]


@every_family
def test_the_price_is_one_call_per_step_inside(family):
    state = family.state
    plain = family.sampler()
    model, calls = counted(plain.model)
    plain = replace(plain, model=model)
    chunk = replace(state.plan.chunk(1), index=1)
    rows = {}
    for end in (None, between(plain, 0), 1.0):
        guidance = PreviousGuidance() if end is None else PreviousGuidance(0.1, 0.0, 0.0, end)
        sampler = plain.with_previous_guidance(guidance)
        calls.clear()
        new_latents(sampler, state)
        rows[sampler.blind_calls(chunk)] = sum(calls)
        assert sampler.blind_calls(replace(chunk, index=0)) == 0
    assert rows == {0: 6, 1: 7, 3: 9}
    costs = preflight.preflight(
        plain.with_previous_guidance(PreviousGuidance(0.1)), state.plan, *reversed(state.plan.size), time_a_step=True
    )
    assert costs.blind_calls == 3 * (state.plan.num_chunks - 1) and costs.seconds > 0
    assert f"{costs.steps} sampling steps, {costs.blind_calls} of them with one more model call" in costs.text


# What a range of steps shows


@pytest.mark.parametrize("family", ["svd", "modelscope"], indirect=True)
def test_cam_is_shown_the_perturbed_frames_within_the_range_only(family):
    plain, state = family.sampler(), family.state
    shown = []
    name = "controlnet" if hasattr(plain.cam.network, "controlnet") else "unet"
    network = getattr(plain.cam.network, name)
    forward = network.forward

    def watched(*args, **options):
        shown.append(args[4 if name == "controlnet" else 3].clone())
        return forward(*args, **options)

    network.forward = watched
    try:
        new_latents(plain.with_perturbed_tail(Perturbation(0.1, 0, 0.0, between(plain, 0))), state)
    finally:
        del network.forward
    clean = shared_cam.encode_control_frames(plain.cam, core_to_images(state.tail))
    noisy = perturbed_frames(state.tail, 0.1, state.plan.chunk(1))
    perturbed = shared_cam.encode_control_frames(plain.cam, core_to_images(noisy))
    assert abs(float((noisy - state.tail).std()) - 0.1) < 0.03
    expected = [perturbed, clean, clean]
    difference = float((clean - perturbed).norm())
    assert difference > 1e-3 and len(shown) == 3
    assert all(float((a - b).norm()) < 1e-3 * difference for a, b in zip(shown, expected, strict=True))


@latent_families
def test_native_models_are_shown_the_perturbed_latents_within_the_range_only(family):
    plain, state = family.sampler(), family.state
    inputs = {"off": [], "whole": [], "begin": []}
    ranges = {"off": None, "whole": (0.0, 1.0), "begin": (0.0, between(plain, 1))}
    layout = plain.layout
    held = layout.latents(state.plan.overlap_frames)
    for name, steps in ranges.items():
        model = plain.model.clone()

        def watched(apply_model, call, into=inputs[name]):
            into.append(call["input"].narrow(layout.axis, 0, held).clone())
            return apply_model(call["input"], call["timestep"], **call["c"])

        model.set_model_unet_function_wrapper(watched)
        noise = Perturbation() if steps is None else Perturbation(0.3, 0.0, *steps)
        new_latents(replace(plain, model=model).with_perturbed_tail(noise), state)
    _, second, third = inputs["begin"]
    difference = float((inputs["whole"][1] - inputs["off"][1]).norm())
    assert difference > 0.1 and float((second - inputs["whole"][1]).norm()) < 1e-3 * difference
    assert torch.equal(third, inputs["off"][2])


@pytest.mark.parametrize("family", ["wan from an image"], indirect=True)
def test_the_condition_of_a_model_changes_with_its_latents(family):
    """Wan from an image is shown the held latents a second time, as channels."""
    plain, state = family.sampler(), family.state
    held = plain.layout.latents(state.plan.overlap_frames)
    seen = {"off": [], "whole": [], "begin": []}
    for name, steps in {"off": None, "whole": (0.0, 1.0), "begin": (0.0, between(plain, 0))}.items():
        model = plain.model.clone()

        def watched(apply_model, call, into=seen[name]):
            into.append(call["c"]["c_concat"][:, :, :held].clone())
            return apply_model(call["input"], call["timestep"], **call["c"])

        model.set_model_unet_function_wrapper(watched)
        noise = Perturbation() if steps is None else Perturbation(0.3, 0.0, *steps)
        new_latents(replace(plain, model=model).with_perturbed_tail(noise), state)
    assert not torch.equal(seen["whole"][0], seen["off"][0])
    expected = [seen["whole"][0], seen["off"][1], seen["off"][2]]
    assert all(torch.equal(a, b) for a, b in zip(seen["begin"], expected, strict=True))


# Identities of runs that exist already, refusals, nodes


def test_identities_of_earlier_runs_stay_as_they_are():
    wan = sampler_of(tiny.WAN)
    identity = both(wan, Perturbation(0.1), PreviousGuidance(0.2)).identity()
    assert (identity["held_noise"], identity["previous_guidance"]) == (0.1, 0.2)
    assert (wan.identity()["held_noise"], wan.identity()["previous_guidance"]) == (0.0, 0.0)
    grown = wan.with_perturbed_tail(Perturbation(0.1, 0.05, 0.0, 0.5)).identity()
    assert grown["held_noise"] == {"amount": 0.1, "growth": 0.05, "end": 0.5}
    assert Bare().with_perturbed_tail(Perturbation(0.1)).identity()["perturbed_tail"] == {"level": 0.1}


@frame_families
def test_a_perturbed_tail_is_in_the_identity_as_it_was(family):
    plain = family.sampler()
    assert "perturbed_tail" not in plain.identity() and "guidance" not in plain.identity()
    assert plain.with_perturbed_tail(Perturbation(0.1)).identity() == {
        **plain.identity(),
        "perturbed_tail": {"level": 0.1},
    }
    state = family.state
    wrapped = PerturbedTail(plain, Perturbation(0.1))  # how it was done before
    frames = wrapped.next_chunk(state.plan.chunk(1), state).frames
    own = plain.with_perturbed_tail(Perturbation(0.1)).next_chunk(state.plan.chunk(1), state).frames
    assert torch.equal(own, frames)


def test_families_that_cannot_say_so_before_the_first_chunk():
    assert Bare().with_previous_guidance(PreviousGuidance()).identity() == Bare().identity()
    with pytest.raises(SettingsError, match="bare cannot be guided against the previous chunk; remove Previous"):
        PreviousChunkGuidance.execute(Bare(), 0.1)
    with pytest.raises(SettingsError, match="bare is shown its tail once per chunk; set start_percent to 0"):
        PerturbTail.execute(Bare(), 0.1, 0.0, 0.0, 0.5)
    with pytest.raises(SettingsError, match="start_percent must be below end_percent"):
        PerturbTail.execute(Bare(), 0.1, 0.0, 0.5, 0.5)
    for wrong in ((-0.1,), (0.1, -0.1), (float("nan"),)):
        with pytest.raises(SettingsError, match="numbers of 0 and more"):
            PreviousGuidance(*wrong)


def test_growth_is_linear_and_ends():
    noise = Perturbation(0.1, 0.05)
    assert [round(noise.at(index), 3) for index in range(5)] == [0.1, 0.1, 0.15, 0.2, 0.25]
    assert noise.at(1000) == MOST and Perturbation(1.5, 0.5).at(9) == 1.5
    assert Perturbation(0, 0.1).is_on and not Perturbation(0, 0, 0.1, 0.2).is_on
    assert PreviousGuidance(0, 0.1).at(1) == 0 and PreviousGuidance(0, 0.1).at(2) == 0.1


def test_a_growing_perturbation_reaches_families_of_the_interface_alone():
    seen = []

    class Watching(Bare):
        def sample_chunk(self, chunk, tail, anchor):
            seen.append(tail.clone())
            return super().sample_chunk(chunk, tail, anchor)

    [sampler] = PerturbTail.execute(ColorAnchor(Watching()), 0.01, 0.03).args
    plan = VideoPlan(40, 8, 3, 5, height=32, width=64, beginning=Beginning(torch.full((1, 3, 32, 64), 0.5)))
    state, _ = start_video(plan, sampler)
    tails = [state.tail]
    for after, _ in video_chunks(state, sampler):
        tails.append(after.tail)
    sizes = [float((noisy - clean).std()) for noisy, clean in zip(seen, tails, strict=False)]
    assert sizes[0] == pytest.approx(0.01, rel=0.1) and sizes[2] == pytest.approx(0.07, rel=0.15)


@every_family
def test_a_range_is_measured_as_for_the_hosts_controlnets(family):
    model = family.sampler().model
    sampling = model.get_model_object("model_sampling")
    steps = SigmaRange.of(model, Perturbation(0.1, 0, 0.25, 0.75))
    assert (steps.highest, steps.lowest) == tuple(float(sampling.percent_to_sigma(each)) for each in (0.25, 0.75))
    assert SigmaRange.of(model, Perturbation(0.1)) == SigmaRange()


@pytest.mark.parametrize("family", ["svd"], indirect=True)
def test_the_anchor_stays_in_the_call_without_the_tail(family):
    """The guidance is against the previous chunk, not against the image that the video keeps looking like."""
    sampler = family.sampler(steps=1, cfg=1.0).with_previous_guidance(PreviousGuidance(1.0))
    state = family.state
    model = sampler.model.clone()
    shown = []

    def watched(apply_model, call):
        shown.append(call["c"]["c_concat"].clone())
        return apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(watched)
    new_latents(replace(sampler, model=model), state)
    assert len(shown) == 2 and torch.equal(*shown) and shown[0].abs().sum() > 0
