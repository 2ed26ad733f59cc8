"""Chunks of DropletVideo that cross-fade: each passes over into the next one's version of its last frames."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack

import_host()
import_pack()

from comfyui_streamingt2v.nodes import stream  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import inspector, preflight, reroll, videos  # noqa: E402
from comfyui_streamingt2v.streaming_core.color.anchor import ColorAnchor  # noqa: E402
from comfyui_streamingt2v.streaming_core.errors import SettingsError  # noqa: E402
from comfyui_streamingt2v.streaming_core.runs.folder import RunFolder  # noqa: E402

from streaming_core.frames import VideoFrames  # noqa: E402
from streaming_core.loop.chunk import Chunk  # noqa: E402
from streaming_core.loop.plan import VideoPlan  # noqa: E402
from streaming_core.loop.state import ChunkResult  # noqa: E402
from streaming_core.loop.steps import state_after_first, video_chunks  # noqa: E402
from tests.host.test_drift_inprocess import FRAMES, OVERLAP, Drifting, image  # noqa: E402
from tests.host.tiny_droplet import (  # noqa: E402
    HEIGHT,
    WIDTH,
    chunk_sampler,
    images,
    keep_runs_in,
    load,
    make,
    plan,
)
from tiny_models.dropletvideo import write_tiny_dropletvideo  # noqa: E402

pytestmark = pytest.mark.slow
PREFIX, CHUNK, NEW = 4, 9, 5
LENGTH = CHUNK + 2 * NEW
FADE = torch.arange(1, PREFIX + 1)[:, None, None, None] / (PREFIX + 1)


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> tuple:
    return load(write_tiny_dropletvideo(tmp_path_factory.mktemp("droplet")))


@pytest.fixture(autouse=True)
def run_root(tmp_path, monkeypatch) -> Path:
    keep_runs_in(tmp_path, monkeypatch)
    monkeypatch.setattr(inspector, "runs_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def fading(loaded):
    return chunk_sampler(loaded, join="cross-fade")


def stored(root: Path, index: int, key: str, name: str = "mine") -> Tensor:
    return RunFolder.open(root, name).chunk_file(index).read(key).float() / 255


@pytest.mark.parametrize("chunk_frames", [9, 13], ids=["odd latents", "even latents"])
def test_the_end_of_a_chunk_passes_over_into_the_next_ones_version(loaded, run_root, chunk_frames):
    length = chunk_frames + 2 * (chunk_frames - PREFIX)
    plain = make(chunk_sampler(loaded), length, "plain", chunk_frames)
    made = make(chunk_sampler(loaded, join="cross-fade"), length, "mine", chunk_frames)
    joins = [chunk_frames, 2 * chunk_frames - PREFIX]
    expected = plain.clone()
    for index, join in enumerate(joins, start=1):
        lead, before = stored(run_root, index, "lead"), slice(join - PREFIX, join)
        assert lead.shape == (PREFIX, HEIGHT, WIDTH, 3) and not torch.allclose(lead, plain[before], atol=0.01)
        expected[before] = torch.lerp(plain[before], lead, FADE)
    assert torch.allclose(made, expected, atol=1e-6) and not torch.allclose(made, plain, atol=0.01)
    for index in range(3):
        assert torch.equal(stored(run_root, index, "frames"), stored(run_root, index, "frames", "plain"))


def test_the_lead_is_what_the_model_made_of_the_frames_it_was_given(loaded, fading, run_root):
    """Of the same call as the frames after it, in the same order: a chunk of a sampler that keeps all of them."""
    make(fading, LENGTH)
    state = videos.resumed_state(RunFolder.open(run_root, "mine"), fading, fading.accept(plan(LENGTH)), 1)
    chunk = state.next_chunk
    whole = fading._decode(fading.sample_chunk(chunk, state.tail, state.anchor), chunk).movedim(1, -1)
    assert len(whole) == CHUNK
    assert torch.allclose(stored(run_root, 1, "lead"), whole[:PREFIX], atol=0.002)
    assert torch.allclose(stored(run_root, 1, "frames"), whole[PREFIX:], atol=0.002)


def test_the_join_decides_later_chunks_only(loaded, fading, run_root, caplog):
    caplog.set_level(logging.INFO)
    plain = make(chunk_sampler(loaded), LENGTH)
    made = make(fading, LENGTH)
    assert "1 of 3 chunks are reused" in caplog.text and "join" in caplog.text
    assert torch.equal(make(chunk_sampler(loaded), LENGTH), plain) and torch.equal(make(fading, LENGTH), made)
    assert fading.identity() == chunk_sampler(loaded).identity()
    assert "join" not in str([chunk_sampler(loaded).chunk_identity(chunk) for chunk in plan(LENGTH).chunks])


def test_a_shorter_video_of_the_run_is_what_it_was(fading):
    short = make(fading, CHUNK + NEW)
    longer = make(fading, LENGTH)
    assert torch.equal(make(fading, CHUNK + NEW), short)
    assert torch.equal(longer[: -NEW - PREFIX], short[:-PREFIX]) and not torch.equal(longer[:-NEW], short)
    assert torch.equal(make(fading, LENGTH), longer)


def rerolled(sampler, chunks: tuple[int, ...], scope: int = 0) -> Tensor:
    return reroll.reroll(sampler, "mine", reroll.RerollRequest(chunks, "new", 1, reroll.SCOPES[scope])).read(0, LENGTH)


def test_a_rerolled_chunk_passes_over_into_the_old_take_and_then_into_the_next_chunk(fading, run_root):
    whole = make(fading, LENGTH)
    old, lead = stored(run_root, 1, "frames"), stored(run_root, 2, "lead")
    made = rerolled(fading, (1,))
    new = stored(run_root, 1, "frames")
    assert not torch.equal(new, old)
    first, second = slice(CHUNK - PREFIX, CHUNK), slice(CHUNK, CHUNK + NEW)
    expected = new.clone()
    expected[-PREFIX:] = torch.lerp(torch.lerp(new[-PREFIX:], old[-PREFIX:], FADE), lead, FADE)
    assert torch.allclose(made[second], expected, atol=1e-6)
    # Into chunk 1 the video passes over with what its new take made of chunk 0.
    into = torch.lerp(stored(run_root, 0, "frames")[-PREFIX:], stored(run_root, 1, "lead"), FADE)
    assert torch.allclose(made[first], into, atol=1e-6) and not torch.equal(made[first], whole[first])
    assert torch.equal(made[: first.start], whole[: first.start])
    assert torch.equal(made[second.stop :], whole[second.stop :])
    assert torch.equal(make(fading, LENGTH), made), "Stream Sampler keeps it"


def test_all_chunks_from_one_on_are_rerolled_without_an_old_take_in_between(fading, run_root):
    make(fading, LENGTH)
    made = rerolled(fading, (1,), scope=1)
    new, lead = stored(run_root, 1, "frames"), stored(run_root, 2, "lead")
    assert torch.allclose(made[CHUNK + 1 : CHUNK + NEW], torch.lerp(new[-PREFIX:], lead, FADE), atol=1e-6)


def test_a_run_goes_on(fading, run_root):
    whole = make(fading, LENGTH)
    make(fading, CHUNK + NEW, "again")
    assert torch.equal(make(fading, LENGTH, "again"), whole)


def test_every_reader_shows_the_faded_frames(fading, run_root):
    video = videos.make_video(fading, plan(LENGTH), "mine")
    made = video.read(0, LENGTH)
    frames = VideoFrames.open(videos.RunVideo(video).get_stream_source())
    difference = (frames.read(0, LENGTH) - made).abs().mean(dim=(1, 2, 3))
    join, raw = slice(CHUNK - PREFIX, CHUNK), stored(run_root, 0, "frames")
    as_stored = (frames.read(join.start, join.stop) - raw[join]).abs().mean(dim=(1, 2, 3))
    assert (difference[join] < as_stored).all(), "of the encoded video"
    text, sheet = inspector.describe("mine")
    assert "complete" in text
    middle = inspector._image(RunFolder.open(run_root, "mine").frames_stream(), CHUNK - 1)
    assert torch.equal(middle, made[CHUNK - 1]) and sheet.shape[0] == 1


def test_given_frames_fade_too(fading, run_root):
    given = images(6)
    made = make(fading, 11, start_image=None, start_frames=given)
    assert (made[:2] - given[:2]).abs().max() < 0.01
    assert torch.allclose(made[2:6], torch.lerp(stored(run_root, 0, "frames")[2:], stored(run_root, 1, "lead"), FADE))


def test_a_video_fades_into_a_last_chunk_with_an_end_image(loaded, run_root):
    sampler = chunk_sampler(loaded, join="cross-fade", end_image=images(1, 9))
    made = make(sampler, 16)
    assert len(made) == 16 and stored(run_root, 2, "lead").shape[0] == PREFIX
    before = stored(run_root, 1, "frames")[-PREFIX:]
    assert torch.allclose(made[10:14], torch.lerp(before, stored(run_root, 2, "lead"), FADE), atol=1e-6)


def test_colors_are_anchored_in_the_lead_too():
    """A chunk of one color all through: what fades in has the color of what follows, corrected or not."""

    class Leading(Drifting):
        lead_frames = OVERLAP

        def next_chunk(self, chunk, state):
            frames = self.sample_chunk(chunk, state.tail, state.anchor)
            return ChunkResult(frames[OVERLAP:], frames, lead=frames[:OVERLAP])

    video = VideoPlan(FRAMES + 6 * (FRAMES - OVERLAP), FRAMES, OVERLAP)
    first = image().expand(FRAMES, -1, -1, -1)
    corrections = []
    for sampler in (Leading(), ColorAnchor(Leading())):
        state = state_after_first(video, ChunkResult(first), first[:1], sampler)
        *_, (last, frames) = video_chunks(state, sampler)
        assert last.lead.shape == (OVERLAP, *first.shape[1:])
        assert torch.allclose(last.lead, frames[:1].expand_as(last.lead), atol=1e-5)
        corrections.append(last.lead)
    assert not torch.allclose(*corrections, atol=0.01)


def test_colors_of_latents_are_anchored_where_a_latent_stands_for_four_frames(loaded, fading, run_root):
    """What the chunk before left is not corrected; a last chunk may have no latent of its own alone."""
    for join, end in (("drop", None), ("cross-fade", images(1, 9))):
        sampler = chunk_sampler(loaded, join=join, end_image=end)
        for num_frames in (15, LENGTH):
            made = make(ColorAnchor(sampler, "latent", cut_threshold=0.0), num_frames, join)
            assert len(made) == num_frames and made.isfinite().all()


@pytest.mark.parametrize(
    ("latents", "called", "overlap", "new"),
    [(25, 25, 7, 18), (16, 16, 8, 8), (21, 81, 4, 19), (22, 85, 4, 20), (21, 81, 1, 20), (21, 81, 5, 19), (2, 5, 4, 0)],
)
def test_a_color_anchor_knows_how_many_latents_are_new(latents, called, overlap, new):
    result = ChunkResult(torch.zeros(called - overlap, 3, 2, 2), torch.zeros(1, 16, latents, 2, 2))
    chunk = Chunk(1, 0, called, called, overlap, 5)
    assert ColorAnchor(Drifting(), "latent")._new_latents(result, chunk, 2) == new


def test_single_steps_refuse_a_cross_fade_before_sampling(loaded, fading, monkeypatch):
    monkeypatch.setattr(type(fading), "_sample", None)
    given = {"overlap_frames": 1, "width": WIDTH, "height": HEIGHT, "fit": "crop", "seed": 5, "anchor_frame": 0}
    inputs = {"num_frames": 12, "chunk_frames": CHUNK, "start_image": images(1), **given}
    with pytest.raises(SettingsError, match="single steps cannot cross-fade"):
        stream.StartVideo.execute(fading, **inputs)
    monkeypatch.undo()
    state, _ = stream.StartVideo.execute(chunk_sampler(loaded), **inputs).result
    with pytest.raises(SettingsError, match="use Stream Sampler, or set join of the chunk sampler to drop"):
        stream.StreamChunk.execute(fading, state)
    _, frames = stream.StartVideo.execute(fading, **{**inputs, "num_frames": 9}).result
    assert len(frames) == 9, "a single chunk has no join"


def test_fades_that_make_no_sense_are_refused(loaded):
    with pytest.raises(SettingsError, match="needs more than the 1 frame of prefix_frames to fade over"):
        chunk_sampler(loaded, join="cross-fade", prefix_frames="1").accept(plan(LENGTH))
    long = chunk_sampler(loaded, join="cross-fade", prefix_frames="13")
    with pytest.raises(SettingsError, match="chunks of 17 add 4; use at least 29 chunk_frames"):
        long.accept(plan(LENGTH, 17))
    assert long.accept(plan(60, 29)).chunk_frames == 29


def test_preflight_counts_the_leads(loaded, fading):
    more, less = (
        preflight.preflight(sampler, plan(LENGTH), WIDTH, HEIGHT).disk_needed
        for sampler in (fading, chunk_sampler(loaded))
    )
    assert more - less == 2 * PREFIX * HEIGHT * WIDTH * 3
