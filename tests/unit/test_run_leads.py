"""Leads: what a chunk made of the frames before it, into which the video passes over when it is read."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming_core.errors import FrameError
from streaming_core.runs.care import recover, use_take
from streaming_core.runs.folder import ChunkContent, RunFolder
from streaming_core.runs.manifest import MANIFEST

SIZE = {"kind": "test", "height": 4, "width": 6, "fps": Fraction(12)}
CHUNKS, LENGTH, SEAM = 3, 5, 3


def some(count: int, index: int, seed: int) -> Tensor:
    frames = torch.rand(count, 4, 6, 3, generator=torch.Generator().manual_seed(1000 * count + 10 * index + seed))
    return (frames * 255).round() / 255


def make(run: RunFolder, index: int, seed: int = 0, lead: int = 0) -> None:
    content = ChunkContent(some(LENGTH, index, seed), seam_frames=SEAM, lead=some(lead, index, seed) if lead else None)
    name, stands_for = (f"h{index} {seed}", f"h{index}") if seed else (f"h{index}", "")
    run.write_chunk(index, content, settings_hash=name, own={"seed": seed}, stands_for=stands_for)


def whole_run(root: Path, lead: int = 2) -> RunFolder:
    run = RunFolder.create(root, "run", **SIZE)
    for index in range(CHUNKS):
        make(run, index, lead=lead if index else 0)
    return run


@pytest.fixture
def run(tmp_path):
    with whole_run(tmp_path) as opened:
        yield opened


def read(run: RunFolder, num_frames: int | None = None) -> Tensor:
    stream = run.frames_stream(num_frames)
    return stream.read(0, len(stream))


def faded(frames: Tensor, into: Tensor, over: int) -> Tensor:
    """`frames` whose last ones pass over into the last ones of `into`, frame n of `over` with n / (over + 1)."""
    seen = frames.clone()
    for back in range(1, min(over, len(frames)) + 1):
        weight = (over + 1 - back) / (over + 1)
        seen[-back] = (1 - weight) * frames[-back] + weight * into[-back]
    return seen


@given(
    lead=st.integers(1, 8),
    takes=st.lists(st.tuples(st.integers(0, CHUNKS - 1), st.integers(0, 4)), max_size=6),
    cuts=st.lists(st.integers(0, CHUNKS * LENGTH), max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_after_any_takes_a_chunk_ends_in_the_one_it_is_continued_as_and_then_in_the_lead(
    tmp_path_factory, lead, takes, cuts
):
    """Also leads that are longer than the chunk before."""
    with whole_run(tmp_path_factory.mktemp("runs"), lead) as run:
        present, continues = dict.fromkeys(range(CHUNKS), 0), dict.fromkeys(range(CHUNKS), 0)
        for seed, (index, has_lead) in enumerate(takes, start=1):
            make(run, index, seed, lead if has_lead and index else 0)
            present[index] = seed
            continues[index] = present.get(index - 1, 0)
        leads = {0: 0} | {index: lead for index in range(1, CHUNKS)}
        leads |= {index: lead if has_lead and index else 0 for index, has_lead in takes}
        expected = []
        for index in range(CHUNKS):
            frames = some(LENGTH, index, present[index])
            if index + 1 < CHUNKS:
                if continues[index + 1] != present[index]:
                    frames = faded(frames, some(LENGTH, index, continues[index + 1]), SEAM)
                if leads[index + 1]:
                    frames = faded(frames, some(lead, index + 1, present[index + 1]), lead)
            expected.append(frames)
        video = torch.cat(expected)
        assert torch.allclose(read(run), video, atol=1e-6)
        stream, bounds = run.frames_stream(), sorted({0, *cuts, CHUNKS * LENGTH})
        parts = [stream.read(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
        assert torch.allclose(torch.cat(parts), video, atol=1e-6), "in parts"


def test_stored_frames_stay_as_they_were_made(run):
    for index in range(CHUNKS):
        assert torch.equal(run.chunk_file(index).read("frames").float() / 255, some(LENGTH, index, 0))
    assert run.record(1).lead_frames == 2 and "lead" in run.record(1).contents
    assert run.record(0).lead_frames == 0 and "lead" not in run.record(0).contents


def test_a_shorter_video_shows_what_it_would_without_the_chunks_after_it(run, tmp_path):
    with RunFolder.create(tmp_path, "alone", **SIZE) as alone:
        make(alone, 0)
        make(alone, 1, lead=2)
        for num_frames in (9, 10):
            assert torch.equal(read(run, num_frames), read(alone, num_frames))
    assert not torch.equal(read(run, 11)[:10], read(run, 10)), "one frame of chunk 2 is shown: its fade is, too"
    assert torch.equal(read(run, 11)[:8], read(run, 10)[:8])


def test_choosing_another_take_takes_its_lead(run):
    before = read(run)
    make(run, 1, 7, lead=3)
    assert torch.allclose(read(run)[:5], faded(some(LENGTH, 0, 0), some(3, 1, 7), 3), atol=1e-6)
    use_take(run, 1, 0)
    assert torch.equal(read(run), before)


def test_leads_survive_the_manifest(run, tmp_path):
    before = read(run)
    run.close()
    (tmp_path / "run" / MANIFEST).unlink()
    with recover(tmp_path, "run") as found:
        assert torch.equal(read(found), before)


def test_folders_from_before_there_were_leads_are_read(run, tmp_path):
    """Records without the entry: nothing fades in."""
    run.close()
    with whole_run(tmp_path / "old", lead=0) as old:
        before = read(old)
    path = tmp_path / "old" / "run" / MANIFEST
    manifest = json.loads(path.read_text())
    for record in manifest["records"]:
        assert record.pop("lead_frames") == 0
    path.write_text(json.dumps(manifest))
    assert torch.equal(read(RunFolder.open(tmp_path / "old", "run")), before)
    assert torch.equal(before, torch.cat([some(LENGTH, index, 0) for index in range(CHUNKS)]))


def test_leads_of_another_size_and_extra_tensors_of_that_name_are_refused(run):
    with pytest.raises(FrameError, match="frames are 3x2"):
        ChunkContent(some(LENGTH, 0, 0), lead=torch.rand(2, 2, 3, 3)).tensors(4, 6)
    with pytest.raises(FrameError, match="extra tensors cannot be called lead"):
        ChunkContent(some(LENGTH, 0, 0), extra={"lead": torch.rand(1)}).tensors(4, 6)
