"""Gaps in run folders: independent of each other, whole on their own, keyframes bit for bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming_core.errors import RunDamagedError
from streaming_core.runs.care import recover, set_aside_damaged
from streaming_core.runs.folder import ChunkContent, RunFolder, settings_hash
from streaming_core.runs.gaps import gap_content, stored_ends
from streaming_core.runs.manifest import MANIFEST

HEIGHT, WIDTH = 6, 8
ABOUT = {"kind": "test gaps", "height": HEIGHT, "width": WIDTH, "fps": Fraction(12)}


def images(count: int, seed: int, bits: int = 0) -> Tensor:
    """Frames in 0..1, as floats or (`bits`) in steps."""
    frames = torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))
    return (frames * (2**bits - 1)).round() / (2**bits - 1) if bits else frames


def hashes_of(keyframes: Tensor, seeds: list[int]) -> list[str]:
    pairs = zip(keyframes[:-1], keyframes[1:], seeds, strict=True)
    return [
        settings_hash({"ends": [first.sum().item(), last.sum().item()], "seed": seed}) for first, last, seed in pairs
    ]


def fill(root: Path, keyframes: Tensor, stride: int = 3, seeds: list[int] | None = None) -> list[int]:
    """Make what the run lacks; the gaps that were made."""
    seeds = seeds or [0] * (len(keyframes) - 1)
    hashes = hashes_of(keyframes, seeds)
    with RunFolder.open_or_create(root, "run", num_frames=len(seeds) * stride + 1, **ABOUT) as run:
        missing = run.select(hashes)
        for index in missing:
            content = gap_content(index, keyframes[index : index + 2], images(stride - 1, 100 * index + seeds[index]))
            own = {"seed": seeds[index], "index": index}
            run.write_chunk(index, content, settings_hash=hashes[index], own=own, independent=True)
    return list(missing)


def video_of(root: Path) -> Tensor:
    stream = RunFolder.open(root, "run").frames_stream()
    return stream.read(0, len(stream))


@settings(max_examples=25)
@given(bits=st.sampled_from([0, 8, 10]), count=st.integers(2, 6), stride=st.integers(2, 5), data=st.data())
def test_keyframes_are_bit_for_bit_and_stand_once(tmp_path_factory, bits, count, stride, data):
    root = tmp_path_factory.mktemp("runs")
    keyframes = images(count, 1, bits)
    assert fill(root, keyframes, stride) == list(range(count - 1))
    video = video_of(root)
    assert len(video) == (count - 1) * stride + 1
    assert torch.equal(video[::stride], keyframes)
    for index in range(count - 1):
        between = video[index * stride + 1 : (index + 1) * stride]
        assert torch.equal(between, (images(stride - 1, 100 * index) * 255).round() / 255)
    start = data.draw(st.integers(0, len(video) - 1))
    stop = data.draw(st.integers(start + 1, len(video)))
    assert torch.equal(RunFolder.open(root, "run").frames_stream().read(start, stop), video[start:stop])


def test_both_ends_are_stored_as_bytes_where_these_hold_them(tmp_path):
    for name, bits, dtype in (("bytes", 8, torch.uint8), ("floats", 0, torch.float32)):
        keyframes = images(3, 2, bits)
        fill(tmp_path / name, keyframes)
        file = RunFolder.open(tmp_path / name, "run").chunk_file(1)
        stored = file.read("keyframes")
        assert stored is not None and stored.dtype == dtype
        assert torch.equal(stored_ends(file), keyframes[1:])


def test_a_changed_keyframe_makes_only_its_two_gaps_again(tmp_path):
    keyframes = images(6, 3)
    fill(tmp_path, keyframes)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("chunk_*")}
    other = keyframes.clone()
    other[2] = 1 - other[2]
    assert fill(tmp_path, other) == [1, 2]
    assert all((tmp_path / "run" / name).read_bytes() == content for name, content in before.items())
    assert torch.equal(video_of(tmp_path)[::3], other)
    assert fill(tmp_path, keyframes) == [] and torch.equal(video_of(tmp_path)[::3], keyframes), "and back again"


def test_another_take_of_a_gap_leaves_its_neighbors_alone(tmp_path):
    keyframes = images(5, 4)
    fill(tmp_path, keyframes)
    before = video_of(tmp_path)
    assert fill(tmp_path, keyframes, seeds=[0, 9, 0, 0]) == [1]
    video = video_of(tmp_path)
    changed = [index for index in range(len(video)) if not torch.equal(video[index], before[index])]
    assert changed == [4, 5], "no seam, no keyframe"
    assert all(record.continues == "" for record in RunFolder.open(tmp_path, "run").manifest.records)


def test_a_lost_manifest_and_a_damaged_gap_cost_no_other(tmp_path):
    keyframes = images(5, 5)
    fill(tmp_path, keyframes)
    before = video_of(tmp_path)
    (tmp_path / "run" / MANIFEST).unlink()
    recover(tmp_path, "run").close()
    assert fill(tmp_path, keyframes) == [] and torch.equal(video_of(tmp_path), before)
    path = tmp_path / "run" / "chunk_00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunDamagedError, match="cut off"):
        fill(tmp_path, keyframes)
    with RunFolder.open(tmp_path, "run", write=True) as run:
        assert set_aside_damaged(run) == ("chunk_00002.safetensors",)
    assert fill(tmp_path, keyframes) == [2] and torch.equal(video_of(tmp_path), before)


def test_a_chunk_that_is_no_gap_has_no_ends(tmp_path):
    with RunFolder.create(tmp_path, "run", **ABOUT) as run:
        run.write_chunk(0, ChunkContent(images(2, 1)), settings_hash="x")
        with pytest.raises(RunDamagedError, match="holds no keyframes; run Fill Between with another run_name"):
            stored_ends(run.chunk_file(0))
