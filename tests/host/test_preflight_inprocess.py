"""Preflight: numbers that hold against what a video really takes, and refusals with those numbers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.sampler import StepMemory
from streaming_core.runs.care import run_bytes
from tests.host.painted import PaintedChunks

GIB = 2**30
CARD = StepMemory(4 * GIB, 9 * GIB, 16 * GIB)


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.runs import preflight, videos

    return SimpleNamespace(videos=videos, preflight=preflight)


@pytest.fixture
def costs(host):
    return host.preflight.Costs(100, 6, 175, None, GIB, 2 * GIB, GIB, 8 * GIB, GIB, CARD)


@given(
    num_frames=st.integers(1, 90),
    chunk_frames=st.integers(2, 12),
    overlap=st.integers(1, 11),
    size=st.sampled_from([(32, 64), (64, 48)]),
)
@settings(max_examples=15, deadline=None)
def test_a_run_takes_the_disk_that_was_said(host, num_frames, chunk_frames, overlap, size):
    plan = VideoPlan(num_frames, chunk_frames, min(overlap, chunk_frames - 1), 0, Fraction(12))
    height, width = size
    sampler = PaintedChunks()
    said = host.preflight.preflight(sampler, plan, width, height)
    assert sampler.calls == [], "nothing was made"
    image = torch.rand(1, height, width, 3)
    widgets = {"num_frames": 0, "chunk_frames": 0, "overlap_frames": 0, "seed": 0, "fit": "crop", "anchor_frame": 0}
    video = host.videos.plan_video(**widgets, plan=plan, width=width, height=height, start_image=image)
    name = f"disk {num_frames} {chunk_frames} {overlap} {height}"
    host.videos.make_video(sampler, video, name)
    assert len(sampler.calls) == said.num_chunks and said.steps == 2 * said.num_chunks
    taken = run_bytes(host.videos.runs_root() / name)
    assert taken <= said.disk_needed <= taken * 1.05 + 8192 * said.num_chunks


def test_what_fits_is_let_through(costs):
    costs.refuse_what_cannot_fit()
    assert costs.text.splitlines() == [
        "video: 100 frames in 6 chunks",
        "model: 6 chunks, 175 sampling steps",
        "time: not measured; turn time_a_step on",
        "disk: 1024 MiB needed, 2048 MiB free",
        "RAM: 1024 MiB for one chunk, 8192 MiB free; does not grow with the length",
        "weights: 1024 MiB in total",
        "VRAM: 4096 MiB at least, 9216 MiB to hold a whole step, 16.0 GiB available",
    ]
    assert "time: about 88.0 s of sampling" in replace(costs, seconds=88.0).text
    assert "time: about 15 min of sampling" in replace(costs, seconds=900.0).text


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ({"disk_free": GIB - 1}, "the run needs 1024 MiB of disk but 1024 MiB are free"),
        ({"ram_free": GIB // 2}, "one chunk needs 1024 MiB of RAM but 512 MiB are free"),
        (
            {"memory": replace(CARD, device_total=3 * GIB)},
            "one step needs 4096 MiB of VRAM but the device has 3072 MiB",
        ),
        (
            {"memory": replace(CARD, device_total=None), "ram_free": 4 * GIB},
            "one chunk needs 5120 MiB of RAM but 4096 MiB are free",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_its_numbers(costs, short, words):
    with pytest.raises(SettingsError, match=words):
        replace(costs, **short).refuse_what_cannot_fit()


def test_weights_may_stay_outside_the_device(costs):
    replace(costs, memory=replace(CARD, device_total=5 * GIB)).refuse_what_cannot_fit()


def test_wrong_sizes_are_refused_as_by_the_video(host):
    with pytest.raises(SettingsError, match="width must be a multiple of 8 pixels, got 60"):
        host.preflight.preflight(PaintedChunks(), VideoPlan(9, 4, 2, 0, Fraction(12)), 60, 32)
