"""DropletVideo between known frames: videos that end with an image, and gaps that are filled."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack

import_host()
import_pack()

import comfy.latent_formats  # noqa: E402
from comfyui_streamingt2v.nodes import stream  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo import model as droplet_model  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo import sampler as droplet  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import preflight, reroll  # noqa: E402
from comfyui_streamingt2v.streaming_core.errors import FrameError, SettingsError  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.chunk import Chunk  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.sampler import WrappedSampler  # noqa: E402

from tests.host.tiny_droplet import HEIGHT, WIDTH, chunk_sampler, images, keep_runs_in, load, make, plan  # noqa: E402
from tiny_models.dropletvideo import WEIGHTS, transformer_weights, write_tiny_dropletvideo  # noqa: E402

pytestmark = pytest.mark.slow
END = images(1, 9)


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> tuple:
    return load(write_tiny_dropletvideo(tmp_path_factory.mktemp("droplet")))


@pytest.fixture(autouse=True)
def run_root(tmp_path, monkeypatch):
    keep_runs_in(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int, list[int], Tensor | None]]:
    """Of every model call: its frames, how many of the first are known, which of the last, and the end image."""
    found = []
    original = droplet.known_conditioning

    def noticed(vae, size, num_frames, start, end=None, **options):
        known = [] if end is None else list(range(num_frames - len(end), num_frames))
        found.append((num_frames, 0 if start is None else len(start), known, end))
        return original(vae, size, num_frames, start, end, **options)

    monkeypatch.setattr(droplet, "known_conditioning", noticed)
    return found


@pytest.mark.parametrize(
    ("num_frames", "called", "known"),
    [
        (15, 5, [4]),  # 4 known and 1 new
        (16, 9, [5, 6, 7, 8]),
        (17, 9, [6, 7, 8]),
        (18, 9, [7, 8]),
        (19, 9, [8]),
    ],
)
def test_the_last_chunk_is_as_short_as_it_can_be_and_ends_with_the_image(loaded, calls, num_frames, called, known):
    made = make(chunk_sampler(loaded, end_image=END), num_frames)
    assert len(made) == num_frames
    assert [call[:3] for call in calls] == [(9, 1, []), (9, 4, []), (called, 4, known)]
    end = calls[-1][3]
    assert torch.equal(end, END.movedim(-1, 1).expand(len(known), -1, -1, -1)), "one image, as often as it takes"
    # Counted from the first known frame of the call, the first one of the image is the last one of the video.
    assert known[0] - 4 == num_frames - 14 - 1


@pytest.mark.parametrize(("num_frames", "called"), [(2, 5), (5, 5), (6, 9), (9, 9)])
@pytest.mark.parametrize("start", ["image", "prompt"])
def test_a_video_of_one_chunk_ends_with_the_image(loaded, calls, num_frames, called, start):
    given = {} if start == "image" else {"start_image": None}
    made = make(chunk_sampler(loaded, end_image=END), num_frames, **given)
    assert len(made) == num_frames
    known = list(range(num_frames - 1, called))
    assert [call[:3] for call in calls] == [(called, int(start == "image"), known)]


def test_the_image_decides_the_last_chunk_only(loaded):
    plain, ended, other = (
        make(chunk_sampler(loaded, **options), 19, name)
        for name, options in (("plain", {}), ("ended", {"end_image": END}), ("other", {"end_image": images(1, 10)}))
    )
    assert torch.equal(plain[:14], ended[:14]) and torch.equal(plain[:14], other[:14])
    assert not torch.equal(plain[14:], ended[14:]) and not torch.equal(ended[14:], other[14:])


def test_without_it_a_chunk_has_the_identity_it_had(loaded):
    sampler, asked = chunk_sampler(loaded), plan(19)
    ended = chunk_sampler(loaded, end_image=END)
    assert ended.identity() == sampler.identity()
    assert "end_image" not in str(sampler.identity())
    for chunk in asked.chunks:
        assert set(sampler.chunk_identity(chunk)) == {"prompt", "positive"}
        assert (ended.chunk_identity(chunk) == sampler.chunk_identity(chunk)) == (not chunk.ends_video)


def test_a_longer_video_makes_the_chunk_again_and_says_why(loaded, calls, caplog):
    caplog.set_level(logging.INFO)
    sampler = chunk_sampler(loaded, end_image=END)
    short = make(sampler, 12)
    assert len(calls) == 2
    long = make(sampler, 19)
    assert [call[0] for call in calls[2:]] == [9, 9] and calls[2][2] == [] and calls[3][2] == [8]
    assert torch.equal(long[:9], short[:9]) and not torch.equal(long[9:12], short[9:12])
    assert "chunk 1 is made again because" in caplog.text and "end_image" in caplog.text
    assert torch.equal(make(sampler, 12), short) and torch.equal(make(sampler, 19), long), "both are kept"
    assert len(calls) == 4
    make(sampler, 18)
    assert len(calls) == 5 and "chunk 2 is made again because new_frames changed 5 -> 4" in caplog.text


def test_a_run_goes_on_and_its_last_chunk_is_rerolled(loaded, calls, monkeypatch):
    sampler = chunk_sampler(loaded, end_image=END)
    whole = make(sampler, 17, "whole")
    calls.clear()
    original = droplet.DropletChunkSampler.next_chunk

    def interrupted(self, chunk, state):
        if chunk.index == 2:
            raise KeyboardInterrupt
        return original(self, chunk, state)

    with monkeypatch.context() as patch:
        patch.setattr(droplet.DropletChunkSampler, "next_chunk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(sampler, 17)
    assert torch.equal(make(sampler, 17), whole)
    assert [call[:3] for call in calls] == [(9, 1, []), (9, 4, []), (9, 4, [6, 7, 8])]
    calls.clear()
    again = reroll.reroll(sampler, "mine", reroll.RerollRequest((2,), "new", 1, reroll.SCOPES[0])).read(0, 17)
    assert [call[:3] for call in calls] == [(9, 4, [6, 7, 8])]
    assert torch.equal(again[:14], whole[:14]) and not torch.equal(again[14:], whole[14:])


def test_given_frames_are_continued_to_the_image(loaded, calls):
    made = make(chunk_sampler(loaded, end_image=END), 9, start_image=None, start_frames=images(6))
    assert len(made) == 9 and (made[:6] - images(6)).abs().max() < 0.01
    assert [call[:3] for call in calls] == [(9, 4, [6, 7, 8])]


def test_single_steps_make_the_same_video(loaded):
    sampler = chunk_sampler(loaded, end_image=END)
    whole = make(sampler, 12)
    given = {"overlap_frames": 1, "width": WIDTH, "height": HEIGHT, "fit": "crop", "seed": 5, "anchor_frame": 0}
    inputs = {"num_frames": 12, "chunk_frames": 9, "start_image": images(1), **given}
    state, first = stream.StartVideo.execute(sampler, **inputs).result
    _, second, complete = stream.StreamChunk.execute(sampler, state).result
    assert complete and (torch.cat([first, second]) - whole).abs().max() < 0.003, "as bytes on the disk"


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_the_image_is_fitted_as_the_start_image_is(loaded, calls, how):
    wide = images(1, 3, 40, 200)
    make(chunk_sampler(loaded, end_image=wide), 9, how, fit=how)
    make(chunk_sampler(loaded), 9, f"start {how}", fit=how, start_image=wide)
    assert calls[0][3].shape == (1, 3, HEIGHT, WIDTH)
    start = plan(9, fit=how, start_image=wide).beginning.image
    assert torch.equal(calls[0][3], start)


def test_what_makes_no_sense_is_refused_before_sampling(loaded, calls):
    sampler = chunk_sampler(loaded, end_image=END)
    with pytest.raises(SettingsError, match="end_image has no effect: start_frames has all 6 frames"):
        make(sampler, 6, start_image=None, start_frames=images(6))
    with pytest.raises(SettingsError, match="a video of 1 frame has no way to end_image"):
        make(sampler, 1)
    with pytest.raises(FrameError, match="too small to make a video from"):
        make(chunk_sampler(loaded, end_image=images(1, 9, 1, 1)), 19)
    assert not calls


def test_few_frames_before_the_image_are_worth_a_word(loaded, caplog):
    chunk_sampler(loaded, end_image=END).accept(plan(30, 25))
    assert "has 5 new frames in which to reach end_image; a video of 46 frames gives it 21" in caplog.text


def test_preflight_counts_with_the_longest_chunk(loaded):
    asked = plan(27, 25)
    sampler = chunk_sampler(loaded, end_image=END)
    costs = preflight.preflight(sampler, asked, WIDTH, HEIGHT)
    assert costs.memory == chunk_sampler(loaded).step_memory(asked.chunk(0), asked.size)
    assert preflight.preflight(sampler, plan(9, 25), WIDTH, HEIGHT).memory.least < costs.memory.least


def test_preflight_says_what_is_computed(loaded):
    sampler, asked = chunk_sampler(loaded, steps=3), plan(27, 25)
    work = [sampler.step_work(chunk, asked.size) for chunk in asked.chunks]
    costs = preflight.preflight(sampler, asked, WIDTH, HEIGHT)
    assert len(work) == 2 and work[0] == work[1] and work[0].calls == 2
    assert costs.calls == 2 * 3 * 2 and costs.flops == costs.calls * work[0].flops
    assert f"work: 12 calls of the network of {work[0].flops / 1e9:.3g} GFLOP on average" in costs.text
    shorter = preflight.preflight(chunk_sampler(loaded, steps=3, end_image=END), asked, WIDTH, HEIGHT)
    assert shorter.calls == costs.calls and shorter.flops < costs.flops
    assert preflight.preflight(chunk_sampler(loaded, steps=3, cfg=1.0), asked, WIDTH, HEIGHT).calls == 6
    assert WrappedSampler(sampler).step_work(asked.chunk(0), asked.size) == work[0]


def test_pickles_in_shards_are_read_whichever_is_chosen(loaded, tmp_path):
    folder = write_tiny_dropletvideo(tmp_path)
    whole, stem = folder / "transformer" / WEIGHTS, WEIGHTS.removesuffix(".safetensors")
    tensors = sorted(transformer_weights().items())
    for number in (1, 2):
        part = dict(tensors[number - 1 :: 2])
        torch.save(part, whole.with_name(f"{stem}-0000{number}-of-00002.bin"))
    whole.unlink()
    for number in (1, 2):
        model, _ = load(folder, f"{stem}-0000{number}-of-00002.bin")
        for key, tensor in loaded[0].model.diffusion_model.state_dict().items():
            assert torch.equal(model.model.diffusion_model.state_dict()[key], tensor)


def test_previews_are_made_with_the_colors_of_the_host_where_it_has_them(monkeypatch):
    class Known(comfy.latent_formats.LatentFormat):
        latent_rgb_factors = [[0.1, 0.2, 0.3]] * 16
        latent_rgb_factors_bias = [0.0, 0.1, 0.2]

    monkeypatch.setattr(comfy.latent_formats, "CogVideoX1_5", Known, raising=False)
    made = droplet_model.DropletLatents()
    assert made.latent_rgb_factors == Known.latent_rgb_factors
    assert made.latent_rgb_factors_bias == Known.latent_rgb_factors_bias and made.scale_factor == 0.7
    for name in ("CogVideoX1_5", "CogVideoX"):
        monkeypatch.delattr(comfy.latent_formats, name, raising=False)
    assert droplet_model.DropletLatents().latent_rgb_factors is None


# Gaps


def core(seed: int) -> Tensor:
    return images(1, seed).movedim(-1, 1)


def test_gaps_have_lengths_that_the_model_can_make(loaded):
    sampler = chunk_sampler(loaded)
    assert sampler.fills and WrappedSampler(sampler).fills
    assert [sampler.fit_gap(frames) for frames in (2, 3, 5, 6, 9, 10, 81, 82)] == [5, 5, 5, 9, 9, 13, 81, 85]


@pytest.mark.parametrize("num_frames", [5, 9, 13])
def test_a_gap_is_filled_between_its_ends(loaded, calls, num_frames):
    sampler, chunk = chunk_sampler(loaded), Chunk(3, 0, num_frames, num_frames, 0, 7)
    made = sampler.fill(core(1), core(2), chunk)
    assert made.shape == (num_frames, 3, HEIGHT, WIDTH) and made.isfinite().all()
    assert [call[:3] for call in calls] == [(num_frames, 1, [num_frames - 1])]
    assert torch.equal(calls[0][3], core(2))
    assert torch.equal(sampler.fill(core(1), core(2), chunk), made)
    for first, last, other in (
        (core(3), core(2), chunk),
        (core(1), core(3), chunk),
        (core(1), core(2), Chunk(3, 0, num_frames, num_frames, 0, 8)),
        (core(1), core(2), Chunk(3, 0, num_frames, num_frames, 0, 7, motion=32.0)),
    ):
        assert not torch.equal(sampler.fill(first, last, other), made)


def test_an_end_image_has_no_place_in_a_gap(loaded, calls):
    with pytest.raises(SettingsError, match="end_image has no effect where frames between given ones are filled"):
        chunk_sampler(loaded, end_image=END).accept_gap(Chunk(0, 0, 5, 5, 0, 7, ends_video=True), (HEIGHT, WIDTH))
    assert not calls
