"""The host's own models between two frames: both matter, the host's own nodes are followed, the rest is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.loop.fillers import SampledGaps
from streaming_core.loop.hierarchy import GapPlan
from streaming_core.loop.remedies import Perturbation, PreviousGuidance

import_host()
import_pack()

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy_extras import nodes_lt, nodes_wan  # noqa: E402
from comfyui_streamingt2v.nodes.host.native import sampler as native  # noqa: E402
from comfyui_streamingt2v.nodes.host.native.filling import fill_kind  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import gaps, handed_out  # noqa: E402

from tiny_models import native as tiny  # noqa: E402
from tiny_models.native_vae import plain_vae, wan_vae  # noqa: E402

pytestmark = pytest.mark.slow
ABLE = {tiny.WAN_I2V: "images", tiny.WAN_FLF: "images", tiny.WAN_VACE: "control", tiny.LTX: "guides"}
able = pytest.mark.parametrize("kind", ABLE, ids=lambda kind: kind.name)
LENGTH = {"ltx": 17}


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@cache
def model_of(kind):
    return kind.make()


def sampler_of(kind, steps=2, vae=None, **options):
    model = options.pop("model", None) or model_of(kind)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    euler = comfy.samplers.sampler_object("euler")
    conds = kind.conditioning(1), kind.conditioning(2)
    return native.AnyModelChunkSampler(model, vae or plain_vae(kind), *conds, euler, sigmas, 2.0, **options)


def side_of(kind):
    return kind.side * plain_vae(kind).side


def images(kind, seed):
    side = side_of(kind)
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def gap(kind, seed=3):
    return GapPlan(100, 4, LENGTH.get(kind.name, 13), seed).chunk(2)


def seen_by(model):
    """A clone that keeps what its first model call gets."""
    seen = {}

    def wrapper(apply_model, call):
        if not seen:
            seen.update(call["c"], x=call["input"].clone())
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model, seen


@pytest.mark.parametrize("kind", [*ABLE, tiny.WAN, tiny.SVD, tiny.HUNYUAN, tiny.COSMOS], ids=lambda kind: kind.name)
def test_models_are_told_apart_by_what_they_read(kind):
    assert fill_kind(model_of(kind)) == ABLE.get(kind)


def test_a_wan_model_that_something_else_drives_is_none(monkeypatch):
    class Driven(comfy.model_base.WAN21):
        def extra_conds(self, **kwargs):
            return super().extra_conds(**kwargs)

    model = tiny.WAN_I2V.make()
    assert fill_kind(model) == "images"
    monkeypatch.setattr(model.model, "__class__", Driven)
    assert fill_kind(model) is None


@able
def test_both_ends_matter_and_the_last_one_most_at_the_end(kind):
    sampler, chunk = sampler_of(kind), gap(kind)
    first, last = images(kind, 1), images(kind, 2)
    made = sampler.fill(first, last, chunk)
    assert made.shape == (chunk.num_frames, *first.shape[1:]) and made.isfinite().all()
    assert torch.equal(made, sampler.fill(first, last, chunk)), "the same seed, the same frames"
    assert not torch.equal(made, sampler.fill(first, last, replace(chunk, seed=4)))
    per_frame = {
        name: (sampler.fill(*ends, chunk) - made).abs().amax(dim=(1, 2, 3))
        for name, ends in (("first", (1 - first, last)), ("last", (first, 1 - last)))
    }
    assert per_frame["first"].max() > 1e-4 and per_frame["last"].max() > 1e-4
    assert per_frame["last"][-1] > 1e-4, "frames near the end change with the last image"


@able
def test_lengths_are_those_of_the_model(kind):
    sampler, step = sampler_of(kind), 8 if kind is tiny.LTX else 4
    fitted = [sampler.fit_gap(length) for length in range(2, 40)]
    assert all(length % step == 1 and length > 1 for length in fitted)
    assert all(have >= want > have - step for want, have in zip(range(2, 40), fitted, strict=True))
    assert sampler.fill(images(kind, 1), images(kind, 2), replace(gap(kind), num_frames=step + 1)).shape[0] == step + 1


@pytest.mark.parametrize("kind", [tiny.WAN_I2V, tiny.WAN_FLF], ids=lambda kind: kind.name)
def test_wan_sees_what_the_hosts_node_shows_it(kind):
    class Vision:
        patcher = model_of(tiny.WAN)

        def encode_image(self, image, crop):
            tokens = image.mean((1, 2)).reshape(1, 1, 3).repeat(1, 3, 427)[..., :1280]
            return SimpleNamespace(penultimate_hidden_states=tokens)

    model, seen = seen_by(model_of(kind))
    vae, vision, chunk, side = wan_vae(), Vision(), gap(kind), side_of(kind)
    first, last = images(kind, 1), images(kind, 2)
    sampler_of(kind, vae=vae, model=model, clip_vision=vision).fill(first, last, chunk)
    first, last = first.movedim(1, -1), last.movedim(1, -1)
    end = {"clip_vision_end_image": vision.encode_image(last, False)} if kind is tiny.WAN_FLF else {}
    node = nodes_wan.WanFirstLastFrameToVideo.execute(
        *(kind.conditioning(1), kind.conditioning(2), vae, side, side, chunk.num_frames, 1),
        start_image=first,
        end_image=last,
        clip_vision_start_image=vision.encode_image(first, False),
        **end,
    )
    model, expected = seen_by(model_of(kind))
    tiny.sample(model, node.args[2]["samples"], *node.args[:2], steps=2)
    assert torch.equal(seen["c_concat"], expected["c_concat"]) and seen["c_concat"].shape[1] == 20
    assert torch.equal(seen["clip_fea"], expected["clip_fea"])


def test_vace_sees_what_the_hosts_node_shows_it():
    kind = tiny.WAN_VACE
    model, seen = seen_by(model_of(kind))
    vae, chunk, side = wan_vae(), gap(kind), side_of(kind)
    first, last = images(kind, 1), images(kind, 2)
    sampler_of(kind, vae=vae, model=model).fill(first, last, chunk)
    control = torch.full((chunk.num_frames, side, side, 3), 0.5)
    control[0], control[-1] = first[0].movedim(0, -1), last[0].movedim(0, -1)
    masks = torch.ones(chunk.num_frames, side, side)
    masks[0] = masks[-1] = 0
    node = nodes_wan.WanVaceToVideo.execute(
        *(kind.conditioning(1), kind.conditioning(2), vae, side, side, chunk.num_frames, 1, 1.0),
        control_video=control,
        control_masks=masks,
    )
    model, expected = seen_by(model_of(kind))
    tiny.sample(model, node.args[2]["samples"], *node.args[:2], steps=2)
    assert torch.allclose(seen["vace_context"], expected["vace_context"], atol=1e-5)


def test_ltx_sees_what_the_hosts_node_shows_it():
    kind = tiny.LTX
    model, seen = seen_by(model_of(kind))
    vae, chunk = plain_vae(kind), gap(kind)
    vae.downscale_index_formula = (8, 32, 32)
    first, last = images(kind, 1), images(kind, 2)
    sampler_of(kind, vae=vae, model=model).fill(first, last, chunk)
    positive, negative, latent = kind.conditioning(1), kind.conditioning(2), {"samples": torch.zeros(1, 128, 3, 3, 3)}
    for image, frame in ((first, 0), (last, -1)):
        node = nodes_lt.LTXVAddGuide.execute(positive, negative, vae, latent, image.movedim(1, -1), frame, 1.0)
        positive, negative, latent = node.args
    guides = latent["samples"][:, :, 3:]
    assert torch.allclose(seen["x"][:1, :, 3:], model.model.process_latent_in(guides), atol=1e-5)
    expected = positive[0][1]["keyframe_idxs"]
    places = seen["keyframe_idxs"][:1]
    tokens = expected.shape[2] // 2
    assert torch.equal(places[:, :, :tokens], expected[:, :, :tokens])
    # Older hosts place a single later frame as if it were a whole latent, newer ones as the one frame that it is.
    assert torch.equal(places[:, 1:, tokens:], expected[:, 1:, tokens:])
    assert places[:, 0, tokens:].min() == chunk.num_frames - 1
    mask = seen["denoise_mask"][0, 0, :, 0, 0]
    assert mask.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", [tiny.WAN, tiny.HUNYUAN, tiny.COSMOS], ids=lambda kind: kind.name)
def test_models_with_a_first_frame_at_most_are_refused(kind):
    sampler = sampler_of(kind)
    for refused in (lambda: SampledGaps(sampler, 4), lambda: sampler.fill(images(kind, 1), images(kind, 2), gap(kind))):
        with pytest.raises(
            SettingsError, match="any_model cannot fill a gap between two frames; connect a chunk sampler"
        ):
            refused()


@able
def test_what_has_no_place_in_a_gap_is_refused(kind):
    sampler, chunk, side = sampler_of(kind), gap(kind), side_of(kind)
    sampler.accept_gap(chunk, (side, side))
    for name, on in {"held_noise": Perturbation(0.1), "previous_guidance": PreviousGuidance(0.1)}.items():
        with pytest.raises(SettingsError, match=f"^{name} has no effect between two keyframes; connect an Any Model"):
            replace(sampler, **{name: on}).accept_gap(chunk, (side, side))
    for name in ("concat_latent_image", "vace_frames", "keyframe_idxs"):
        conds = kind.conditioning(1, **{name: torch.zeros(1)})
        with pytest.raises(
            SettingsError, match=f"the conditioning has {name} of its own, which a gap sets; connect it"
        ):
            replace(sampler, negative=conds).accept_gap(chunk, (side, side))
    with pytest.raises(SettingsError, match="the plan has prompts; connect clip"):
        sampler.accept_gap(replace(chunk, prompt="a dog"), (side, side))
    with pytest.raises(SettingsError, match="cannot follow the plan's motion setting"):
        sampler.accept_gap(replace(chunk, motion=4.0), (side, side))
    with pytest.raises(SettingsError, match="width must be a multiple of"):
        sampler.accept_gap(chunk, (side, side + 3))


@able
def test_a_whole_video_between_keyframes(kind, tmp_path, monkeypatch):
    for module in (gaps, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    side = side_of(kind)
    keyframes = torch.rand(3, side, side, 3, generator=torch.Generator().manual_seed(1))
    sampler = sampler_of(kind)

    def made(sampler):
        request = gaps.FillRequest(3, 1, 6, 5, "video")
        stream = gaps.fill_between(TensorFrames(keyframes, Fraction(4)), SampledGaps(sampler, 3), request)
        return stream.read(0, len(stream))

    video = made(sampler)
    assert len(video) == 6 and torch.equal(video[::3], keyframes[:2])
    stored = {path.name: path.read_bytes() for path in (tmp_path / "video").glob("chunk_*")}
    assert torch.equal(made(sampler_of(kind)), video), "the same sampler again"
    assert {path.name: path.read_bytes() for path in (tmp_path / "video").glob("chunk_*")} == stored
    assert not torch.equal(made(replace(sampler, cfg=3.0)), video)
