"""Color Anchor and Perturb Tail around chunk samplers of the host; Extend Video."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.color.anchor import ColorAnchor
from streaming_core.color.drift import lab_to_srgb
from streaming_core.color.lab import srgb_to_lab
from streaming_core.errors import FrameRangeError, SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.remedies import Perturbation
from streaming_core.loop.sampler import ChunkSampler, PerturbedTail
from streaming_core.loop.state import ChunkResult
from streaming_core.loop.steps import start_video, state_after_first, video_chunks

import_host()
import_pack()

from comfyui_streamingt2v.nodes.drift import ColorAnchorNode, ColorAnchorStream, PerturbTail  # noqa: E402
from comfyui_streamingt2v.nodes.extend import ExtendVideo  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import videos  # noqa: E402

from tests.host.test_native_inprocess import plain_vae, sampler_of  # noqa: E402
from tiny_models import native as tiny  # noqa: E402

HEIGHT, WIDTH, FRAMES, OVERLAP = 40, 64, 8, 3
DRIFT = torch.tensor([0.6, 0.4, -0.3])


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def image(seed=0):
    noise = torch.rand(1, 3, 5, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1) * 0.6 + 0.2


@dataclass(frozen=True)
class Drifting(ChunkSampler):
    """Repeats the last frame it is shown, a little off in color: what it makes drifts by `DRIFT` per chunk."""

    family = "drifting"
    size_multiple = 8
    cut_at: int = -1
    progress: object = None

    def identity(self):
        return {"model": "drifting"}

    def with_progress(self, progress):
        return replace(self, progress=progress)

    def steps(self, chunk):
        return 1

    def first_chunk(self, chunk, size, image):
        return ChunkResult(image.expand(chunk.num_frames, -1, -1, -1).clone())

    def sample_chunk(self, chunk, tail, anchor):
        last = image(9) * 0.7 + 0.3 if chunk.index == self.cut_at else tail[-1:]
        off = lab_to_srgb(srgb_to_lab(last.movedim(1, -1)) + DRIFT).movedim(-1, 1)
        return off.expand(chunk.num_frames, -1, -1, -1).clone()

    def decode(self, latents, chunk, tail):
        return latents[chunk.overlap_frames :]


def made(sampler, chunks=20):
    plan = VideoPlan(FRAMES + (chunks - 1) * (FRAMES - OVERLAP), FRAMES, OVERLAP)
    clip = image().expand(FRAMES, -1, -1, -1)
    state = state_after_first(plan, ChunkResult(clip), clip[:1], sampler)
    return [clip, *(frames for _, frames in video_chunks(state, sampler))]


def color_of(frames):
    return srgb_to_lab(frames.movedim(1, -1)).mean((0, 1, 2))


def test_a_video_in_the_loop_keeps_its_colors():
    drifted, kept = made(Drifting()), made(ColorAnchor(Drifting()))
    first = color_of(drifted[0])
    before, after = ([float((color_of(chunk) - first).norm()) for chunk in video[1:]] for video in (drifted, kept))
    assert before[-1] > 10 and sum(after) < 0.1 * sum(before) and max(after) < 1.0


def test_strength_0_changes_nothing():
    for plain, wrapped in zip(made(Drifting(), 4), made(ColorAnchor(Drifting(), strength=0.0), 4), strict=True):
        assert torch.equal(plain, wrapped)


def test_from_a_cut_on_the_video_is_what_it_would_be():
    sampler = ColorAnchor(Drifting(cut_at=5))
    video = made(sampler, 8)
    new_scene = made(Drifting(cut_at=5), 8)
    assert torch.equal(video[5], new_scene[5]) and torch.equal(video[7], new_scene[7])
    assert not torch.equal(video[4], new_scene[4])


@pytest.mark.parametrize("space", ["lab", "latent"])
def test_runs_resume_with_their_anchor(space, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "runs_root", lambda: tmp_path)
    widgets = (FRAMES, OVERLAP, WIDTH, HEIGHT, "crop", 1, 0)
    request = videos.plan_video(60, *widgets, start_image=image().movedim(1, -1))
    whole = videos.make_video(ColorAnchor(Drifting(), space=space), request, "whole")
    videos.make_video(ColorAnchor(Drifting(), space=space), replace(request, num_frames=33), "parts")
    parts = videos.make_video(ColorAnchor(Drifting(), space=space), request, "parts")
    assert torch.equal(parts.read(0, 60), whole.read(0, 60))
    plain = videos.make_video(Drifting(), request, "plain")
    assert not torch.equal(plain.read(0, 60), whole.read(0, 60))


def test_latents_of_a_host_model_are_brought_back_and_continued():
    """The model is replaced by one that repeats the last latent and drifts; loop, tail and decoder are the host's."""
    kind = tiny.WAN
    sampler = sampler_of(kind)
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(1, 16, 1, 8, 8, generator=generator)

    class Repeating(type(sampler)):
        def _sample(self, chunk, shape, held, image):
            last = scene if held is None else held[:, :, -1:] + 0.1
            return last.expand(shape).clone()

    repeating = Repeating(**{f: getattr(sampler, f) for f in sampler.__dataclass_fields__ if f != "_encoded"})
    off = {}
    for name, each in (("drifting", repeating), ("anchored", ColorAnchor(repeating, space="latent"))):
        states = [start_video(VideoPlan(17 + 8 * 12, 17, 9, height=64, width=64), each)[0]]
        for state, frames in video_chunks(states[0], each):
            assert frames.shape == (8, 3, 64, 64)
            states.append(state)
        off[name] = float((states[-1].tail[:, :, -1:] - scene).mean())
    assert abs(off["drifting"] - 1.2) < 0.01 and abs(off["anchored"]) < 0.12


def test_control_frames_are_perturbed_and_the_video_stays_clean():
    seen = []

    class Watching(Drifting):
        def sample_chunk(self, chunk, tail, anchor):
            seen.append(tail.clone())
            return super().sample_chunk(chunk, tail, anchor)

    sampler = Watching()
    assert PerturbTail.execute(sampler, 0.0).args[0] is sampler
    [perturbed] = PerturbTail.execute(sampler, 0.05).args
    clip = image().expand(FRAMES, -1, -1, -1)
    state = state_after_first(VideoPlan(13, FRAMES, OVERLAP), ChunkResult(clip), clip[:1], perturbed)
    [(after, _)] = video_chunks(state, perturbed)
    noise = seen[0] - state.tail
    assert torch.equal(state.tail, clip[-OVERLAP:]) and abs(float(noise.std()) - 0.05) < 0.005
    assert perturbed.identity() != sampler.identity() and after.is_complete
    held = sampler_of(tiny.WAN, plain_vae(tiny.WAN)).with_perturbed_tail(Perturbation(0.1))
    assert held.held_noise == Perturbation(0.1)
    both = ColorAnchor(held, strength=0.5).with_perturbed_tail(Perturbation(0.2))
    assert (both.inner.held_noise, both.strength) == (Perturbation(0.2), 0.5)
    around = ColorAnchor(sampler).with_perturbed_tail(Perturbation(0.2))
    assert isinstance(around, ColorAnchor) and around.identity()["perturbed_tail"] == {"level": 0.2}


def test_wrapped_samplers_compose_in_any_order():
    both = ColorAnchor(PerturbedTail(Drifting(), Perturbation(0.02)))
    other = PerturbedTail(ColorAnchor(Drifting()), Perturbation(0.02))
    for sampler in (both, other):
        assert sampler.family == "drifting" and sampler.size_multiple == 8 and sampler.steps(None) == 1
        assert {"color_anchor", "perturbed_tail", "model"} <= set(sampler.identity())
        video, plain = made(sampler, 6), made(ColorAnchor(Drifting()), 6)
        assert not torch.equal(video[2], plain[2])
        assert (color_of(video[-1]) - color_of(video[0])).norm() < 2


def test_a_second_perturb_tail_sets_the_level():
    """As on Any Model, and with an identity that says what is done."""
    twice, once = (
        PerturbTail.execute(sampler, 0.1).args[0]
        for sampler in (PerturbTail.execute(Drifting(), 0.05).args[0], Drifting())
    )
    assert twice.identity() == once.identity()
    assert all(torch.equal(a, b) for a, b in zip(made(twice, 6), made(once, 6), strict=True))
    [off] = PerturbTail.execute(twice, 0.0).args
    assert off.identity() == Drifting().identity()
    held = sampler_of(tiny.WAN, plain_vae(tiny.WAN)).with_perturbed_tail(Perturbation(0.1))
    assert PerturbTail.execute(held, 0.0).args[0].held_noise == Perturbation()


@pytest.mark.parametrize("space", ["lab", "latent"])
def test_a_color_anchor_may_come_with_a_later_step(space, caplog):
    """Stream Chunk takes another chunk sampler than Start Video; then its first chunk is what the rest is kept at."""
    caplog.set_level("INFO")
    plan = VideoPlan(FRAMES + 12 * (FRAMES - OVERLAP), FRAMES, OVERLAP, beginning=Beginning(image()))
    state, _ = start_video(plan, Drifting())
    made = [frames for _, frames in video_chunks(state, ColorAnchor(Drifting(), space=space))]
    assert len(made) == 12 and "colors are kept at those of chunk 1, the first" in caplog.text
    if space == "lab":
        assert (color_of(made[-1]) - color_of(made[0])).norm() < 2


def test_steps_may_anchor_colors_in_different_spaces():
    plan = VideoPlan(FRAMES + 6 * (FRAMES - OVERLAP), FRAMES, OVERLAP, beginning=Beginning(image()))
    state, _ = start_video(plan, ColorAnchor(Drifting(), space="latent"))
    made = [frames for _, frames in video_chunks(state, ColorAnchor(Drifting(), space="lab"))]
    assert len(made) == 6 and (color_of(made[-1]) - color_of(made[0])).norm() < 2


@pytest.mark.parametrize("between", [False, True], ids=["next to it", "a Perturb Tail between"])
def test_a_second_color_anchor_is_refused(between):
    """They would share what is measured, and the run could not tell the two from the second one alone."""
    [sampler] = ColorAnchorNode.execute(Drifting(), space="latent").args
    if between:
        sampler = PerturbedTail(sampler, Perturbation(0.05))
    with pytest.raises(SettingsError, match="already has a Color Anchor; use one"):
        ColorAnchorNode.execute(sampler, space="lab")


def test_the_stream_node_corrects_a_finished_video():
    video = torch.cat(made(Drifting(), 12)).movedim(1, -1)
    (stream,) = ColorAnchorStream.execute(TensorFrames(video, 12), "8,5", 1.0, 0.6).args
    drifted, kept = (
        float((color_of(f.movedim(-1, 1)) - color_of(video[:8].movedim(-1, 1))).norm())
        for f in (video[-5:], stream.read(len(stream) - 5, len(stream)))
    )
    assert drifted > 6 and kept < 0.1 * drifted
    assert ColorAnchorStream.validate_inputs(chunks="8,x") is not True


def test_extend_video_hands_over_what_the_video_needs():
    frames = torch.arange(60.0).view(-1, 1, 1, 1).expand(60, 40, 80, 3) / 100
    values = ExtendVideo.execute(TensorFrames(frames, 24), 50, 9, -1, 12.0, 64, 40, "crop").args
    start_frames, anchor, video, num_frames, tail_frames, width, height, fps, text = values
    assert start_frames.shape == (9, 40, 64, 3) and anchor.shape == (1, 40, 64, 3)
    assert torch.allclose(start_frames[-1], torch.full((), 0.59), atol=1e-6)
    assert torch.allclose(anchor, torch.full((), 0.59), atol=1e-6)
    assert (len(video), num_frames, tail_frames, width, height, fps) == (30, 59, 9, 64, 40, 12.0)
    assert "one of every 2 frames is used" in text and "80 frames" in text and "frame 59" in text
    short = ExtendVideo.execute(TensorFrames(frames[:4], 24), 50, 9, 0, 0.0, 64, 40, "crop").args
    assert short[4] == 4 and short[7] == 24.0
    with pytest.raises(FrameRangeError, match="choose 0 to 59"):
        ExtendVideo.execute(TensorFrames(frames, 24), 50, 9, 60, 12.0, 64, 40, "crop")
