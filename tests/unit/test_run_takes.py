"""Takes of a chunk: which file is read where, how seams pass over, what is kept, deleted and recovered."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import RunDamagedError, RunFolderError, RunLockedError, RunNameError
from streaming_core.runs.care import (
    delete_older,
    delete_run,
    forget_gone,
    own_files,
    run_bytes,
    set_aside_damaged,
    use_take,
)
from streaming_core.runs.folder import ChunkContent, RunFolder
from streaming_core.runs.lock import holder
from streaming_core.runs.manifest import ChunkRecord, RunManifest
from streaming_core.runs.rebuild import rebuild
from streaming_core.runs.takes import kept_rerolls

SIZE = {"kind": "test", "height": 4, "width": 6, "fps": Fraction(12)}
CHUNKS, LENGTH, SEAM = 4, 5, 3
WANTED = [f"h{index}" for index in range(CHUNKS)]


def take_frames(index: int, seed: int) -> torch.Tensor:
    return torch.rand(LENGTH, 4, 6, 3, generator=torch.Generator().manual_seed(100 * index + seed))


def eight_bit(frames: torch.Tensor) -> torch.Tensor:
    return (frames * 255).round() / 255


def make(run: RunFolder, index: int, seed: int, **options) -> None:
    options = {"stands_for": f"h{index}" if seed else "", **options}
    name = f"h{index}" if seed == 0 else f"h{index} {seed}"
    content = ChunkContent(take_frames(index, seed), seam_frames=SEAM)
    run.write_chunk(index, content, settings_hash=name, own={"seed": seed}, **options)


def video_of(run: RunFolder) -> torch.Tensor:
    stream = run.frames_stream()
    return stream.read(0, len(stream))


def whole_run(root: Path, name: str = "run") -> RunFolder:
    run = RunFolder.create(root, name, **SIZE)
    for index in range(CHUNKS):
        make(run, index, 0)
    return run


@pytest.fixture
def run(tmp_path):
    with whole_run(tmp_path / "runs") as opened:
        yield opened


def passed_over(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    seen = new.clone()
    for step in range(1, SEAM + 1):
        weight = step / (SEAM + 1)
        seen[LENGTH - SEAM + step - 1] = (1 - weight) * new[LENGTH - SEAM + step - 1] + weight * old[
            LENGTH - SEAM + step - 1
        ]
    return seen


operations = st.lists(
    st.tuples(st.sampled_from(["make", "choose"]), st.integers(0, CHUNKS - 1), st.integers(0, 9)), max_size=8
)


@given(operations=operations, cuts=st.lists(st.integers(0, CHUNKS * LENGTH), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_after_any_takes_and_choices_every_chunk_ends_as_it_is_continued(tmp_path_factory, operations, cuts):
    with whole_run(tmp_path_factory.mktemp("runs")) as run:
        # By chunk: all takes' seeds; and by (chunk, take): the take of the chunk before that it continues.
        seeds = {index: [0] for index in range(CHUNKS)}
        present = dict.fromkeys(range(CHUNKS), 0)
        continues = {(index, 0): 0 for index in range(CHUNKS)}
        for number, (what, index, pick) in enumerate(operations, start=1):
            if what == "make":
                make(run, index, number)
                seeds[index].append(number)
                present[index] = len(seeds[index]) - 1
                continues[index, present[index]] = present.get(index - 1, 0)
            else:
                present[index] = pick % len(seeds[index])
                use_take(run, index, present[index])
        expected = []
        for index in range(CHUNKS):
            own = eight_bit(take_frames(index, seeds[index][present[index]]))
            if index + 1 < CHUNKS:
                wanted = continues[index + 1, present[index + 1]]
                if wanted != present[index]:
                    own = passed_over(own, eight_bit(take_frames(index, seeds[index][wanted])))
            expected.append(own)
        video = torch.cat(expected)
        assert torch.allclose(video_of(run), video, atol=1e-6)
        stream, bounds = run.frames_stream(), sorted({0, *cuts, CHUNKS * LENGTH})
        parts = [stream.read(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        assert torch.equal(torch.cat(parts), video_of(run)), "however it is sliced"
        assert run.select(WANTED) == () and torch.allclose(video_of(run), video, atol=1e-6)
        # The same from the disk, and from the chunk files alone when the latest takes are in the video.
        assert RunManifest.load(run.path) == run.manifest
        if all(present[index] == len(seeds[index]) - 1 for index in range(CHUNKS)):
            rebuilt = rebuild(run.path)
            assert torch.equal(video_of(RunFolder(run.path, rebuilt, None)), video_of(run))


def test_only_the_file_of_the_new_take_is_written(run):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.glob("chunk_*")}
    make(run, 1, 5)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.glob("chunk_*")}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"chunk_00001.t1.safetensors"}
    assert kept_rerolls(run.manifest) == "rerolled and kept so: chunk 1 (seed 5)"
    assert kept_rerolls(run.manifest, missing=[1]) == ""


def test_a_reroll_is_wanted_for_what_it_stands_for_only(run):
    make(run, 1, 5)
    assert run.select(WANTED) == () and run.record(1).seed == 5
    assert run.select(["h0", "other", "h2", "h3"]) == (1,)
    assert run.select(WANTED) == () and run.record(1).seed == 5
    record = ChunkRecord.from_dict(run.record(1).to_dict())
    assert record == run.record(1)
    assert record.accepts("h1") and record.accepts("h1 5") and not record.accepts("") and not record.accepts("h2")


def test_a_take_that_is_not_there_cannot_be_chosen(run):
    make(run, 1, 5)
    make(run, 1, 6)
    with pytest.raises(RunFolderError, match="no take 3; there is 0, 1, 2"):
        use_take(run, 1, 3)
    with pytest.raises(RunFolderError, match="chunk 9 .* there is none"):
        use_take(run, 9, 0)


def test_the_number_of_a_take_is_never_used_twice(run):
    """Chunk 2 continues take 0 of chunk 1. If another take got its number, chunk 1 would end in frames of that one."""
    (run.path / "chunk_00001.safetensors").write_bytes(b"cut")
    assert set_aside_damaged(run) == ("chunk_00001.safetensors",)
    make(run, 1, 7, stands_for="")
    assert run.record(1).take == 1
    (run.path / "chunk_00001.safetensors.damaged").unlink()
    make(run, 1, 8, stands_for="")
    assert run.record(1).take == 2
    own = slice(LENGTH, 2 * LENGTH)
    assert torch.equal(video_of(run)[own], eight_bit(take_frames(1, 8))), "there is nothing to pass over into"


def test_a_take_whose_file_is_gone_is_made_again_and_found_when_it_comes_back(run, tmp_path):
    before = video_of(run)
    assert forget_gone(run) == ()
    os.replace(run.path / "chunk_00001.safetensors", tmp_path / "elsewhere")
    [gone] = forget_gone(run)
    assert gone.file == "chunk_00001.safetensors" and run.select(WANTED) == (1,)
    make(run, 1, 0)
    assert run.record(1).file == "chunk_00001.t1.safetensors", "a number is never used twice"
    assert torch.equal(video_of(run), before)
    os.replace(tmp_path / "elsewhere", run.path / "chunk_00001.safetensors")
    run.close()
    with RunFolder.open(run.path.parent, "run", write=True) as again:
        assert [record.take for record in again.manifest.takes(1)] == [0, 1]
        assert forget_gone(again) == () and torch.equal(video_of(again), before)


def test_what_is_set_aside_is_not_overwritten(run):
    for number, name in ((0, "chunk_00003.safetensors.damaged"), (1, "chunk_00003.t1.safetensors.damaged")):
        run.record(3).file_in(run.path).path.write_bytes(bytes([number]))
        set_aside_damaged(run)
        assert (run.path / name).read_bytes() == bytes([number])
        make(run, 3, 0)
    (run.path / "chunk_00003.t2.safetensors.damaged").write_bytes(b"mine")
    run.record(3).file_in(run.path).path.write_bytes(b"cut")
    set_aside_damaged(run)
    assert (run.path / "chunk_00003.t2.safetensors.damaged").read_bytes() == b"mine"
    assert (run.path / "chunk_00003.t2.safetensors.damaged1").read_bytes() == b"cut"
    assert delete_older(run) > 0 and not list(run.path.glob("*.damaged*"))


def test_choosing_needs_a_sound_file_and_the_lock(run):
    make(run, 1, 5)
    (run.path / "chunk_00001.safetensors").write_bytes(b"cut")
    with pytest.raises(RunDamagedError, match="chunk_00001.safetensors"):
        use_take(run, 1, 0)
    assert run.record(1).take == 1
    reader = RunFolder(run.path, run.manifest, None)
    for work in (lambda: use_take(reader, 1, 1), lambda: set_aside_damaged(reader), lambda: delete_older(reader)):
        with pytest.raises(RunLockedError, match="read only"):
            work()


def test_damaged_chunks_are_set_aside(run):
    make(run, 2, 5)
    for name in ("chunk_00000.safetensors", "chunk_00002.t1.safetensors"):
        content = (run.path / name).read_bytes()
        (run.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (run.path / "chunk_00003.safetensors").unlink()
    assert set_aside_damaged(run) == (
        "chunk_00000.safetensors",
        "chunk_00002.t1.safetensors",
        "chunk_00003.safetensors",
    )
    assert run.select(WANTED) == run.manifest.missing == (0, 3)
    assert run.record(2).take == 0, "the older take that fits is shown"
    assert sorted(path.name for path in run.path.glob("*.damaged")) == [
        "chunk_00000.safetensors.damaged",
        "chunk_00002.t1.safetensors.damaged",
    ]
    assert RunManifest.load(run.path) == run.manifest
    assert set_aside_damaged(run) == ()


def test_older_takes_are_deleted_but_for_seams(run):
    make(run, 1, 5)
    make(run, 1, 6)
    video, before = video_of(run), run_bytes(run.path)
    freed = delete_older(run)
    assert freed > 0
    # The manifest shrinks too, so the sum is only near.
    assert abs(before - run_bytes(run.path) - freed) < 2000
    kept = {path.name for path in run.path.glob("chunk_00001*")}
    assert kept == {"chunk_00001.safetensors", "chunk_00001.t2.safetensors"}
    assert torch.equal(video_of(run), video)


def test_deleting_a_run_leaves_everything_else(tmp_path):
    root = tmp_path / "runs"
    whole_run(root).close()
    whole_run(root, "other").close()
    folder, precious = root / "run", tmp_path / "precious.safetensors"
    precious.write_text("precious")
    (tmp_path / "inside").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "chunk_00009.safetensors").symlink_to(precious)
    (folder / "linked").symlink_to(tmp_path / "inside")
    (folder / "chunk_00008.safetensors").mkdir()
    assert precious not in own_files(folder) and len(own_files(folder)) == CHUNKS + 1
    freed, left = delete_run(root, "run")
    assert freed > 0 and left == ("chunk_00008.safetensors", "chunk_00009.safetensors", "linked", "notes.txt")
    assert precious.read_text() == "precious" and (tmp_path / "inside").is_dir()
    assert len(RunFolder.open(root, "other").chunks) == CHUNKS
    with pytest.raises(RunFolderError, match="no run 'run'"):
        delete_run(root, "run")
    delete_run(root, "other")
    assert not (root / "other").exists()


@pytest.mark.parametrize("name", ["../precious", "", "a/b", ".."])
def test_deleting_stays_inside_the_root(tmp_path, name):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "manifest.json").write_text("{}")
    with pytest.raises(RunNameError):
        delete_run(tmp_path / "runs", name)
    assert (tmp_path / "precious" / "manifest.json").exists()


def test_a_link_in_place_of_a_run_is_not_followed(tmp_path):
    whole_run(tmp_path / "elsewhere").close()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").symlink_to(tmp_path / "elsewhere" / "run")
    with pytest.raises(RunNameError, match="link"):
        delete_run(tmp_path / "runs", "run")
    assert len(RunFolder.open(tmp_path / "elsewhere", "run").chunks) == CHUNKS


def test_a_run_in_use_is_not_deleted(run):
    with pytest.raises(RunLockedError):
        delete_run(run.path.parent, "run")
    assert len(run.chunks) == CHUNKS and video_of(run) is not None


def test_a_damaged_run_can_be_deleted(tmp_path):
    whole_run(tmp_path).close()
    (tmp_path / "run" / "manifest.json").write_text("{")
    delete_run(tmp_path, "run")
    assert not (tmp_path / "run").exists()


def test_who_holds_a_run_is_told_without_taking_it(tmp_path):
    lock = tmp_path / "run" / "run.lock"
    assert holder(lock) == ""
    with RunFolder.create(tmp_path, "run", owner="prompt 12", **SIZE):
        words = holder(lock)
        assert words.startswith(f"prompt 12, process {os.getpid()} on ")
        assert holder(lock) == words
    assert holder(lock) == ""
    lock.write_text('{"pid": 4194305, "host": "' + os.uname().nodename + '", "time": 1, "owner": "gone"}')
    assert holder(lock) == "", "left by a process that is gone"
