"""Any of the host's video models in the chunk loop: lengths, held latents, conditions, guidance, resume."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.remedies import Perturbation, PreviousGuidance
from streaming_core.loop.state import ChunkResult
from streaming_core.loop.steps import continue_video, pick_anchor, state_after_first, video_chunks

import_host()
import_pack()

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
from comfyui_streamingt2v.nodes.host.native import conditions  # noqa: E402
from comfyui_streamingt2v.nodes.host.native import sampler as native  # noqa: E402
from comfyui_streamingt2v.nodes.host.native.conditions import condition_kind  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import videos  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd import build  # noqa: E402

from tiny_models import native as tiny  # noqa: E402
from tiny_models.native_vae import PlainVae, plain_vae, wan_vae  # noqa: E402

FAMILIES = (tiny.SVD, tiny.WAN, tiny.WAN_I2V, tiny.LTX, tiny.HUNYUAN, tiny.COSMOS)
every_family = pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@cache
def svd_vae():
    """The host's VAE class with SVD's temporal decoder, tiny."""
    from streaming_core.models.registry import shapes_of
    from streaming_core.models.streamingsvd.detect import detect_streamingsvd
    from streaming_core.models.streamingsvd.file import split_file
    from streaming_core.models.streamingsvd.shapes import official_shapes
    from tiny_models.streamingsvd import TINY, random_weights

    tensors = random_weights(official_shapes(TINY), dtype=torch.float32)
    config, weights = detect_streamingsvd(shapes_of(tensors)), split_file(tensors, "tiny")
    return build.build_vae(weights.vae, config.image_encoder, config.first_stage)


@cache
def model_of(kind):
    return kind.make()


def vae_of(kind):
    return svd_vae() if kind.frame_batch else plain_vae(kind)


def sampler_of(kind, vae=None, steps=2, **options):
    model = model_of(kind)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    euler = comfy.samplers.sampler_object("euler")
    conds = kind.conditioning(1), kind.conditioning(2)
    return native.AnyModelChunkSampler(model, vae or vae_of(kind), *conds, euler, sigmas, 2.0, **options)


def size_of(kind):
    side = kind.side * (8 if kind.frame_batch else plain_vae(kind).side)
    return side, side


def begun(sampler, kind, num_frames=40, chunk=17, overlap=9, seed=3):
    """State and frames after a first clip from the prompt (SVD: from an image)."""
    chunk, overlap = sampler.fit(chunk, overlap)
    plan = VideoPlan(num_frames, chunk, overlap, seed)
    image = torch.rand(1, 3, *size_of(kind)) if kind.frame_batch else None
    first = sampler.first_chunk(plan.chunk(0), size_of(kind), image)
    return state_after_first(plan, first, pick_anchor(first.frames, 0), sampler), first


def test_this_host_has_the_classes_that_families_are_told_by():
    """A class that a newer host renamed would make its models "none" without a word."""
    assert conditions.SVD and conditions.LTX and conditions.WAN and len(conditions.HUNYUAN_FROM_IMAGE) == 3


def test_a_wan_model_that_does_not_say_whether_it_takes_images_is_shown_none():
    silent = object.__new__(comfy.model_base.WAN22_S2V)
    assert not hasattr(silent, "image_to_video")
    assert condition_kind(SimpleNamespace(model=silent)) == "none"


@every_family
def test_videos_have_their_exact_length_and_hold_the_tail_bit_for_bit(kind):
    sampler = sampler_of(kind)
    state, clip = begun(sampler, kind)
    layout = sampler.layout
    assert clip.frames.shape[0] == state.plan.first_frames
    total = clip.frames.shape[0]
    held = layout.latents(state.plan.overlap_frames)
    while not state.is_complete:
        chunk, tail = state.next_chunk, state.tail
        latents = sampler.sample_chunk(chunk, tail, state.anchor)
        assert latents.shape[layout.axis] == layout.latents(chunk.num_frames)
        assert torch.equal(latents.narrow(layout.axis, 0, held), layout.last(tail, held))
        state, frames = continue_video(state, sampler)
        assert frames.shape[0] == chunk.num_frames - chunk.overlap_frames and frames.isfinite().all()
        new = latents.narrow(layout.axis, held, latents.shape[layout.axis] - held)
        expected = torch.cat([tail, new], dim=layout.axis)
        assert torch.equal(state.tail, layout.last(expected, max(held, layout.context)))
        total += min(frames.shape[0], chunk.new_frames)
    assert total == 40


@every_family
def test_the_model_sees_the_held_latents_and_changes_only_the_rest(kind):
    """With another tail the same noise gives other frames: the hand-off has an effect."""
    sampler = sampler_of(kind)
    state, _ = begun(sampler, kind)
    other = replace(state, tail=state.tail.flip(sampler.layout.axis) + 0.5)
    one, two = continue_video(state, sampler)[1], continue_video(other, sampler)[1]
    assert not torch.equal(one, two)
    assert torch.equal(one, continue_video(state, sampler)[1])


@every_family
def test_options_that_are_off_change_nothing_and_on_they_do(kind):
    sampler = sampler_of(kind)
    state, _ = begun(sampler, kind)
    layout, chunk = sampler.layout, state.next_chunk
    held = layout.latents(chunk.overlap_frames)
    plain = sampler.sample_chunk(chunk, state.tail, state.anchor)
    off = replace(sampler, held_noise=Perturbation(), previous_guidance=PreviousGuidance())
    assert torch.equal(off.sample_chunk(chunk, state.tail, state.anchor), plain)
    for options in ({"held_noise": Perturbation(0.3)}, {"previous_guidance": PreviousGuidance(0.2)}):
        changed = replace(sampler, **options).sample_chunk(chunk, state.tail, state.anchor)
        assert torch.equal(changed.narrow(layout.axis, 0, held), plain.narrow(layout.axis, 0, held))
        assert changed.isfinite().all() and not torch.equal(changed, plain), options


def counted(model):
    """A clone that counts its model calls by rows, and the list."""
    calls = []

    def wrapper(apply_model, call):
        calls.append(len(call["cond_or_uncond"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model, calls


@pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN, tiny.LTX], ids=lambda kind: kind.name)
def test_guidance_against_the_previous_chunk_costs_one_row_per_step(kind):
    model, calls = counted(model_of(kind))
    sampler = replace(sampler_of(kind), model=model)
    state, _ = begun(sampler, kind)
    rows = {}
    for weight in (0.0, 0.1):
        calls.clear()
        guided = sampler.with_previous_guidance(PreviousGuidance(weight))
        guided.sample_chunk(state.next_chunk, state.tail, state.anchor)
        rows[weight] = sum(calls)
    assert (rows[0.0], rows[0.1]) == (2 * 2, 3 * 2)


def test_guidance_is_the_published_formula():
    """e + w (e_c - e_u): twice the weight is twice the change of the first step's prediction."""
    sampler = sampler_of(tiny.WAN, steps=1)
    state, _ = begun(sampler, tiny.WAN)
    plain, once, twice = (
        sampler.with_previous_guidance(PreviousGuidance(weight)).sample_chunk(
            state.next_chunk, state.tail, state.anchor
        )
        for weight in (0.0, 0.1, 0.2)
    )
    assert torch.allclose(twice - plain, 2 * (once - plain), atol=1e-4)
    assert (once - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [tiny.WAN, tiny.LTX, tiny.HUNYUAN, tiny.COSMOS], ids=lambda kind: kind.name)
def test_a_users_clip_is_encoded_once_and_nothing_after_it(kind):
    vae = plain_vae(kind)
    sampler = sampler_of(kind, vae)
    chunk, overlap = sampler.fit(17, 9)
    clip = torch.rand(23, 3, *size_of(kind))
    plan = VideoPlan(70, chunk, overlap, given_frames=23)
    state = state_after_first(plan, ChunkResult(clip), clip[:1], sampler)
    layout = sampler.layout
    keep = layout.latents(vae.encoded[-1])
    assert state.tail.shape[2] == keep >= layout.latents(overlap)
    # The anchor, where the model has a use for it, and the clip's last frames.
    assert vae.encoded == ([1] if condition_kind(sampler.model) != "none" else []) + [layout.frames(keep)]
    assert torch.equal(state.tail, vae.encode(clip[-layout.frames(keep) :].movedim(1, -1)))
    count = len(vae.encoded)
    total = 23
    for each, frames in video_chunks(state, sampler):
        total += min(len(frames), each.plan.chunk(each.num_chunks - 1).new_frames)
    assert total == 70 and len(vae.encoded) == count


def seen_by(model):
    """A clone that keeps the conditions of its first model call."""
    seen = {}

    def wrapper(apply_model, call):
        seen.setdefault("c", {k: v for k, v in call["c"].items() if isinstance(v, torch.Tensor)})
        seen.setdefault("x", call["input"].clone())
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model, seen


def test_svd_gets_the_anchor_beside_every_frame_and_its_embedding_as_text():
    model, seen = seen_by(model_of(tiny.SVD))
    vision = SimpleNamespace(
        encode_image=lambda images, crop: SimpleNamespace(image_embeds=images.mean((1, 2)).repeat(1, 6)[:, :16]),
    )
    sampler = replace(sampler_of(tiny.SVD), model=model, clip_vision=vision)
    state, _ = begun(sampler, tiny.SVD)
    seen.clear()
    sampler.sample_chunk(state.next_chunk, state.tail, state.anchor)
    rows = seen["c"]["c_concat"].shape[0] // 17
    concat = seen["c"]["c_concat"].unflatten(0, (rows, 17))
    image = next(row for row in concat if row.abs().sum() > 0)
    assert torch.allclose(image, state.anchor.embedding.latent.expand_as(image))
    frame = state.anchor.frame.mean((2, 3)).repeat(1, 6)[:, :16]
    assert any(torch.allclose(text.flatten(), frame.flatten()) for text in seen["c"]["c_crossattn"])


@pytest.mark.parametrize("image_condition", ["anchor", "tail"])
def test_wan_is_shown_the_anchor_or_the_tail_and_a_mask(image_condition):
    model, seen = seen_by(model_of(tiny.WAN_I2V))
    sampler = replace(sampler_of(tiny.WAN_I2V), model=model, image_condition=image_condition)
    state, _ = begun(sampler, tiny.WAN_I2V)
    seen.clear()
    sampler.sample_chunk(state.next_chunk, state.tail, state.anchor)
    mask, image = seen["c"]["c_concat"][:1, :4], seen["c"]["c_concat"][:1, 4:]
    tail = model.model.process_latent_in(sampler.layout.last(state.tail, 3).clone())
    anchor = model.model.process_latent_in(state.anchor.embedding.latent.clone())
    assert mask[0, 0, :, 0, 0].tolist() == [1, 1, 1, 0, 0]
    first = anchor if image_condition == "anchor" else tail[:, :, :1]
    assert torch.allclose(image[:, :, :1], first, atol=1e-5)
    assert torch.allclose(image[:, :, 1:3], tail[:, :, 1:], atol=1e-5)
    gray = sampler.encode(torch.full((1, *size_of(tiny.WAN_I2V), 3), 0.5))
    assert torch.allclose(image[:, :, 3:], model.model.process_latent_in(gray).expand(1, 16, 2, 4, 4), atol=1e-5)


def test_a_single_held_latent_is_not_replaced_by_the_anchor():
    model, seen = seen_by(model_of(tiny.WAN_I2V))
    sampler = replace(sampler_of(tiny.WAN_I2V), model=model)
    state, _ = begun(sampler, tiny.WAN_I2V, overlap=1)
    seen.clear()
    sampler.sample_chunk(state.next_chunk, state.tail, state.anchor)
    tail = model.model.process_latent_in(sampler.layout.last(state.tail, 1))
    assert torch.allclose(seen["c"]["c_concat"][:1, 4:, :1], tail, atol=1e-5)


def test_ltx_sees_the_anchor_as_a_guide_before_the_clip():
    model, seen = seen_by(model_of(tiny.LTX))
    sampler = replace(sampler_of(tiny.LTX), model=model)
    state, _ = begun(sampler, tiny.LTX)
    seen.clear()
    latents = sampler.sample_chunk(state.next_chunk, state.tail, state.anchor)
    assert latents.shape[2] == 3 and seen["x"].shape[2] == 4
    anchor = model.model.process_latent_in(state.anchor.embedding.latent)
    assert torch.allclose(seen["x"][:1, :, 3:], anchor, atol=1e-5)
    assert torch.allclose(seen["x"][:1, :, :2], model.model.process_latent_in(state.tail[:, :, -2:]), atol=1e-5)
    times = seen["c"]["keyframe_idxs"][:1, 0].flatten().tolist()
    assert times and all(-8 <= time <= 0 for time in times)
    assert seen["c"]["denoise_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 0]
    seen.clear()
    weak = replace(state.next_chunk, anchor_strength=0.0)
    sampler.sample_chunk(weak, state.tail, state.anchor)
    assert seen["x"].shape[2] == 3


@pytest.mark.parametrize("kind", [tiny.WAN, tiny.LTX, tiny.COSMOS], ids=lambda kind: kind.name)
def test_a_start_image_is_held_as_the_first_latent(kind):
    sampler = sampler_of(kind)
    chunk, overlap = sampler.fit(17, 9)
    image = torch.rand(1, 3, *size_of(kind))
    clip = sampler.first_chunk(VideoPlan(30, chunk, overlap).chunk(0), size_of(kind), image)
    latent = sampler.encode(image.movedim(1, -1))
    assert clip.frames.shape[0] == chunk
    assert torch.allclose(clip.latents[:, :, :1], latent, atol=1e-4)


def test_lengths_are_rounded_to_those_of_the_model_and_said(caplog):
    with caplog.at_level(logging.INFO):
        assert sampler_of(tiny.WAN).fit(25, 7) == (25, 9)
        assert sampler_of(tiny.LTX).fit(25, 7) == (25, 9)
        assert sampler_of(tiny.SVD).fit(25, 7) == (25, 7)
    assert "chunks of 4n+1 frames: using 25 frames with an overlap of 9 instead of 25 and 7" in caplog.text


def test_a_vae_of_another_model_is_refused():
    with pytest.raises(SettingsError, match="16 channels, the VAE's 128"):
        sampler_of(tiny.WAN, plain_vae(tiny.LTX)).layout  # noqa: B018
    odd = PlainVae(16, 4, 8)
    odd.upscale_ratio = (lambda a: max(1, (a - 2) // 5 * 17 + 5), 8, 8)
    with pytest.raises(SettingsError, match="can be continued"):
        sampler_of(tiny.WAN, odd).layout  # noqa: B018


def test_a_plans_prompt_is_encoded_with_what_stands_beside_the_connected_one():
    class Text:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, text):
            return tiny.LTX.conditioning(len(text))

    sampler = sampler_of(tiny.LTX)
    sampler = replace(sampler, positive=tiny.LTX.conditioning(1, frame_rate=12.0))
    state, _ = begun(sampler, tiny.LTX)
    chunk = replace(state.next_chunk, prompt="a dog runs")
    with pytest.raises(SettingsError, match="connect clip"):
        sampler.sample_chunk(chunk, state.tail, state.anchor)
    told = replace(sampler, clip=Text())
    other = told.sample_chunk(chunk, state.tail, state.anchor)
    assert not torch.equal(other, told.sample_chunk(state.next_chunk, state.tail, state.anchor))
    assert told._prompt(chunk)[0][1]["frame_rate"] == 12.0
    assert told.chunk_identity(chunk) != told.chunk_identity(replace(chunk, prompt="a cat"))


def test_wans_own_decoder_continues_its_clip():
    """Frames of a continued video against one decoding of all its latents, by the host's own VAE of Wan."""
    sampler = sampler_of(tiny.WAN, wan_vae())
    layout = sampler.layout
    latents = torch.randn(1, 16, 14, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = sampler._decode(latents, 0)
    assert whole.shape[0] == layout.frames(14)
    chunk = VideoPlan(100, 33, 9).chunk(1)

    def difference(cut: int, context: int) -> float:
        after = sampler.decode(latents[:, :, cut - 3 :], chunk, latents[:, :, cut - context : cut])
        return float((after - whole[layout.frames(cut) :]).abs().mean())

    # With all latents before it the rest is the same; random weights look far back, and less and less so.
    assert difference(layout.context, layout.context) < 1e-5
    assert difference(12, layout.context) < difference(12, 1) / 2


@pytest.mark.parametrize("kind", [tiny.SVD, tiny.WAN, tiny.LTX], ids=lambda kind: kind.name)
def test_stream_videos_resume_bit_for_bit(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "runs_root", lambda: tmp_path)
    sampler = sampler_of(kind)
    side = size_of(kind)[0]
    request = videos.plan_video(
        num_frames=37,
        chunk_frames=16,
        overlap_frames=8,
        width=side,
        height=side,
        fit="crop",
        seed=1,
        anchor_frame=2,
        start_image=torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(1)),
    )
    whole = videos.make_video(sampler, request, "whole")
    assert len(whole) == 37

    made = []

    class Stopping(native.AnyModelChunkSampler):
        def sample_chunk(self, chunk, tail, anchor):
            if chunk.index == 2 and not made:
                made.append(chunk.index)
                raise RuntimeError("power cut")
            return super().sample_chunk(chunk, tail, anchor)

    fields = {f: getattr(sampler, f) for f in sampler.__dataclass_fields__ if f != "_encoded"}
    with pytest.raises(RuntimeError):
        videos.make_video(Stopping(**fields), request, "cut")
    resumed = videos.make_video(Stopping(**fields), request, "cut")
    assert torch.equal(resumed.read(0, 37), whole.read(0, 37))


def test_a_sampler_that_writes_into_its_sigmas_leaves_those_of_the_video_alone():
    """uni_pc does; the host hands the same tensor to the next Run, which would take it for other settings."""
    sampler = replace(sampler_of(tiny.WAN, plain_vae(tiny.WAN)), sampler=comfy.samplers.sampler_object("uni_pc"))
    before = sampler.sigmas.clone()
    begun(sampler, tiny.WAN)
    assert torch.equal(sampler.sigmas, before)
