"""Chunks drawn anew: which file is read where, how seams pass over, what is kept, deleted and recovered."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import RunDamagedError, RunFolderError, RunLockedError, RunNameError
from streaming_core.runs.care import delete_older, delete_run, own_files, run_bytes, set_aside_damaged, use_revision
from streaming_core.runs.folder import RunFolder
from streaming_core.runs.frames import GroupDecoder
from streaming_core.runs.lock import holder
from streaming_core.runs.manifest import ChunkRecord, RunManifest
from streaming_core.runs.resume import drawn_anew, missing_chunks

SIZE = {"kind": "test", "height": 4, "width": 6, "fps": Fraction(12)}
CHUNKS, LENGTH, SEAM = 4, 5, 3


def drawing(index: int, seed: int) -> torch.Tensor:
    return torch.rand(LENGTH, 4, 6, 3, generator=torch.Generator().manual_seed(100 * index + seed))


def eight_bit(frames: torch.Tensor) -> torch.Tensor:
    return (frames * 255).round() / 255


def draw(run: RunFolder, index: int, seed: int, **options) -> None:
    options = {"keep_old": True, "replace_existing": True, "stands_for": f"h{index}" if seed else "", **options}
    name = f"h{index}" if seed == 0 else f"h{index} {seed}"
    run.write_chunk(
        index, settings_hash=name, seed=seed, frames=drawing(index, seed), seam_frames=SEAM, **options
    )  # fmt: skip


def video_of(run: RunFolder) -> torch.Tensor:
    stream = run.frames_stream()
    return stream.read(0, len(stream))


def whole_run(root: Path, name: str = "run") -> RunFolder:
    run = RunFolder.create(root, name, **SIZE)
    for index in range(CHUNKS):
        draw(run, index, 0)
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
    st.tuples(st.sampled_from(["draw", "choose"]), st.integers(0, CHUNKS - 1), st.integers(0, 9)), max_size=8
)


@given(operations=operations, cuts=st.lists(st.integers(0, CHUNKS * LENGTH), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_after_any_drawings_and_choices_every_chunk_ends_as_it_is_continued(tmp_path_factory, operations, cuts):
    with whole_run(tmp_path_factory.mktemp("runs")) as run:
        # By chunk: all drawings' seeds; and by (chunk, revision): the revision of the chunk before that it continues.
        seeds = {index: [0] for index in range(CHUNKS)}
        present = dict.fromkeys(range(CHUNKS), 0)
        continues = {(index, 0): 0 for index in range(CHUNKS)}
        for number, (what, index, pick) in enumerate(operations, start=1):
            if what == "draw":
                draw(run, index, number)
                seeds[index].append(number)
                present[index] = len(seeds[index]) - 1
                continues[index, present[index]] = present.get(index - 1, 0)
            else:
                present[index] = pick % len(seeds[index])
                use_revision(run, index, present[index])
        expected = []
        for index in range(CHUNKS):
            own = eight_bit(drawing(index, seeds[index][present[index]]))
            if index + 1 < CHUNKS:
                wanted = continues[index + 1, present[index + 1]]
                if wanted != present[index]:
                    own = passed_over(own, eight_bit(drawing(index, seeds[index][wanted])))
            expected.append(own)
        video = torch.cat(expected)
        assert torch.allclose(video_of(run), video, atol=1e-6)
        stream, bounds = run.frames_stream(), sorted({0, *cuts, CHUNKS * LENGTH})
        parts = [stream.read(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        assert torch.equal(torch.cat(parts), video_of(run)), "however it is sliced"
        assert missing_chunks(run.path, run.manifest, [f"h{index}" for index in range(CHUNKS)]) == ()
        # The same from the disk, and from the chunk files alone when the latest drawings are in the video.
        assert RunManifest.load(run.path) == run.manifest
        if all(present[index] == len(seeds[index]) - 1 for index in range(CHUNKS)):
            rebuilt = RunManifest.rebuild(run.path)
            assert torch.equal(video_of(RunFolder(run.path, rebuilt, None)), video_of(run))


def test_seams_of_latents_pass_over_in_pixels(tmp_path):
    def latents(seed):
        return drawing(0, seed).movedim(-1, 1)

    with RunFolder.create(tmp_path, "run", **SIZE) as run:
        for index in range(2):
            run.write_chunk(index, settings_hash="h", seed=0, latents=latents(index), num_frames=LENGTH, seam_frames=2)
        options = {"num_frames": LENGTH, "seam_frames": 2, "replace_existing": True, "keep_old": True}
        run.write_chunk(0, settings_hash="h", seed=9, latents=latents(9), **options)
        decoder = GroupDecoder(lambda part: part.movedim(1, -1) ** 2)
        video = run.frames_stream(decoder=decoder).read(0, LENGTH)
    new, old = drawing(0, 9) ** 2, drawing(0, 0) ** 2
    assert torch.equal(video[: LENGTH - 2], new[: LENGTH - 2])
    assert torch.allclose(video[-1], new[-1] / 3 + old[-1] * 2 / 3, atol=1e-6)


def test_only_the_drawn_chunks_file_is_written(run):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.glob("chunk_*")}
    draw(run, 1, 5)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.glob("chunk_*")}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"chunk_00001.r1.safetensors"}
    assert drawn_anew(run.manifest) == "drawn anew and kept so: chunk 1 (seed 5)"
    assert drawn_anew(run.manifest, missing=[1]) == ""


def test_older_runs_without_links_get_their_seam(run):
    """Manifests of before do not say what a chunk continues; the moment that one is replaced it is known."""
    bare = [replace(record, continues="") for record in run.manifest.chunks]
    run.save_manifest(replace(run.manifest, chunks=tuple(bare)))
    draw(run, 1, 5)
    assert run.record(2).continues == "chunk_00001.safetensors"
    own = slice(LENGTH, 2 * LENGTH)
    expected = passed_over(eight_bit(drawing(1, 5)), eight_bit(drawing(1, 0)))
    assert torch.allclose(video_of(run)[own], expected, atol=1e-6)


def test_a_drawing_is_wanted_for_what_it_stands_for_only(run):
    draw(run, 1, 5)
    wanted = [f"h{index}" for index in range(CHUNKS)]
    assert missing_chunks(run.path, run.manifest, wanted) == ()
    assert missing_chunks(run.path, run.manifest, ["h0", "other", "h2", "h3"]) == (1,)
    draw(run, 2, 0, stands_for="", keep_old=False)
    assert run.completed_prefix(wanted).complete
    record = ChunkRecord.from_dict(run.record(1).to_dict())
    assert record.accepts("h1") and record.accepts("h1 5") and not record.accepts("") and not record.accepts("h2")


def test_what_was_replaced_without_being_kept_is_gone(run):
    draw(run, 1, 5)
    draw(run, 1, 6, keep_old=False)
    assert [path.name for path in sorted(run.path.glob("chunk_00001*"))] == [
        "chunk_00001.r2.safetensors",
        "chunk_00001.safetensors",
    ]
    with pytest.raises(RunFolderError, match="no revision 1; there is 0, 2"):
        use_revision(run, 1, 1)


def test_choosing_needs_a_sound_file_and_the_lock(run):
    draw(run, 1, 5)
    (run.path / "chunk_00001.safetensors").write_bytes(b"cut")
    with pytest.raises(RunDamagedError, match="chunk_00001.safetensors"):
        use_revision(run, 1, 0)
    assert run.record(1).revision == 1
    reader = RunFolder(run.path, run.manifest, None)
    for work in (lambda: use_revision(reader, 1, 1), lambda: set_aside_damaged(reader), lambda: delete_older(reader)):
        with pytest.raises(RunLockedError, match="read only"):
            work()


def test_damaged_chunks_are_set_aside(run):
    draw(run, 2, 5)
    for name in ("chunk_00000.safetensors", "chunk_00002.r1.safetensors"):
        content = (run.path / name).read_bytes()
        (run.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (run.path / "chunk_00003.safetensors").unlink()
    assert set_aside_damaged(run) == (
        "chunk_00000.safetensors",
        "chunk_00002.r1.safetensors",
        "chunk_00003.safetensors",
    )
    assert missing_chunks(run.path, run.manifest, [f"h{index}" for index in range(CHUNKS)]) == (0, 3)
    assert run.record(2).revision == 0, "the older drawing takes its place"
    assert sorted(path.name for path in run.path.glob("*.damaged")) == [
        "chunk_00000.safetensors.damaged",
        "chunk_00002.r1.safetensors.damaged",
    ]
    assert RunManifest.load(run.path) == run.manifest
    assert set_aside_damaged(run) == ()


def test_older_drawings_are_deleted_but_for_seams(run):
    draw(run, 1, 5)
    draw(run, 1, 6)
    video, before = video_of(run), run_bytes(run.path)
    freed = delete_older(run)
    assert freed > 0
    # The manifest shrinks too, so the sum is only near.
    assert abs(before - run_bytes(run.path) - freed) < 2000
    assert sorted(path.name for path in run.path.glob("chunk_00001*")) == [
        "chunk_00001.r2.safetensors",
        "chunk_00001.safetensors",
    ]
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
    assert holder(lock) == "", "left behind by a process that is gone"
