"""Run folders: what is stored, what may be used again, and what is refused with which words."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import (
    FrameError,
    RunDamagedError,
    RunFolderError,
    RunLockedError,
    RunMismatchError,
    RunNameError,
    SettingsError,
)
from streaming_core.runs.care import recover
from streaming_core.runs.chunk_file import file_sha256
from streaming_core.runs.folder import RunFolder, list_runs, settings_hash
from streaming_core.runs.frames import GroupDecoder, LatentGroup
from streaming_core.runs.name import folder_name, run_path

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"kind": "test", "height": 4, "width": 6, "fps": Fraction(24000, 1001)}


def frames(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_frames, 4, 6, 3, generator=torch.Generator().manual_seed(seed))


def eight_bit(video: torch.Tensor) -> torch.Tensor:
    return (video * 255).round() / 255


def hashes(*names: str) -> list[str]:
    return [settings_hash({"chunk": name}) for name in names]


def filled(root: Path, lengths: list[int], name: str = "run", **options) -> torch.Tensor:
    """A run with chunks of these lengths; their video."""
    parts = [frames(length, seed) for seed, length in enumerate(lengths)]
    with RunFolder.create(root, name, {"model": "abc"}, **{**SIZE, **options}) as run:
        for index, (part, wanted) in enumerate(zip(parts, hashes(*map(str, range(len(parts)))), strict=True)):
            run.write_chunk(index, settings_hash=wanted, seed=index, frames=part, tail=part[-2:], seconds=index / 4)
    return eight_bit(torch.cat(parts))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "runs"


# Storing and reading


def test_what_is_stored_comes_back(root):
    part, latents = frames(5), torch.randn(5, 4, 2, 3)
    with RunFolder.create(root, "run", {"cfg": 2.0, "sizes": (4, 6)}, num_frames=5, **SIZE) as run:
        record = run.write_chunk(
            0,
            settings_hash="h",
            seed=2**63,
            frames=part,
            latents=latents,
            tail=part[-2:],
            extra={"anchor": part[:1]},
            seconds=1.25,
            notes={"steps": 30},
        )
    assert record.seed == 2**63 and record.num_frames == 5 and record.num_bytes > 0
    run = RunFolder.open(root, "run")
    assert run.chunks == (record,)
    assert run.manifest.settings == {"cfg": 2, "sizes": [4, 6]} and record.notes == {"steps": 30}
    assert (run.manifest.fps, run.manifest.num_frames) == (Fraction(24000, 1001), 5)
    data = run.read_chunk(0)
    assert data.frames.dtype == torch.uint8 and torch.equal(data.frames.float() / 255, eight_bit(part))
    assert torch.equal(data.latents, latents) and torch.equal(data.tail, part[-2:]), "bit for bit"
    assert set(data.extra) == {"anchor"} and torch.equal(data.extra["anchor"], part[:1])
    assert sorted(path.name for path in run.path.iterdir()) == ["chunk_00000.safetensors", "manifest.json", "run.lock"]
    assert json.loads((run.path / "manifest.json").read_text())["schema"] == 1


def test_frames_can_be_stored_as_half(root):
    part = frames(3)
    with RunFolder.create(root, "run", **SIZE) as run:
        run.write_chunk(0, settings_hash="h", seed=0, frames=part, store_as="float16")
        assert torch.equal(run.read_chunk(0).frames, part.half())
        assert torch.equal(run.frames_stream().read(0, 3), part.half().float())


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    skips=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    bounds=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), min_size=1, max_size=6),
    asked=st.integers(1, 40),
)
@settings(max_examples=25, deadline=None)
def test_any_slices_of_a_run_equal_its_video(tmp_path_factory, lengths, skips, bounds, asked):
    parts = [frames(length + skip, seed) for seed, (length, skip) in enumerate(zip(lengths, skips, strict=False))]
    video = eight_bit(torch.cat([part[skip:] for part, skip in zip(parts, skips, strict=False)]))
    with RunFolder.create(tmp_path_factory.mktemp("runs"), "run", num_frames=asked, **SIZE) as run:
        for index, (part, skip) in enumerate(zip(parts, skips, strict=False)):
            run.write_chunk(index, settings_hash="h", seed=0, frames=part, skip_frames=skip)
    stream = run.frames_stream()
    video = video[:asked]
    assert (len(stream), stream.height, stream.width, stream.fps) == (len(video), 4, 6, SIZE["fps"])
    for start, stop in bounds:
        start, stop = min(start, len(video)), min(stop, len(video))
        assert torch.equal(stream.read(start, stop), video[start:stop])
    assert torch.equal(torch.cat(list(pickle.loads(pickle.dumps(stream)).slices(4))), video)


@dataclass(frozen=True)
class Doubler:
    """Latents of two frames each, decoded three at a time; counts its calls."""

    calls: list

    def groups(self, num_latents, first):
        groups, skip = [], first
        for start in range(0, num_latents, 3):
            stop = min(start + 3, num_latents)
            inside = 2 * (stop - start)
            if skip < inside:
                groups.append(LatentGroup(start, stop, skip, inside - skip))
            skip = max(0, skip - inside)
        return groups

    def decode(self, latents):
        self.calls.append(latents.shape[0])
        return latents.movedim(1, -1).repeat_interleave(2, dim=0)


@given(skip=st.integers(0, 12), size=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_latents_are_decoded_on_demand_in_the_same_groups(tmp_path_factory, skip, size):
    latents = [frames(7, seed).movedim(-1, 1) for seed in range(3)]
    video = torch.cat([part.movedim(1, -1).repeat_interleave(2, dim=0)[skip:] for part in latents])
    with RunFolder.create(tmp_path_factory.mktemp("runs"), "run", **SIZE) as run:
        for index, part in enumerate(latents):
            run.write_chunk(index, settings_hash="h", seed=0, latents=part, num_frames=14 - skip, skip_frames=skip)
    decoder = Doubler([])
    stream = run.frames_stream(decoder=decoder)
    assert torch.equal(torch.cat(list(stream.slices(size))), video)
    expected = [group.stop - group.start for group in decoder.groups(7, skip)] * 3
    assert decoder.calls == expected, "every group once, none of another size"


@pytest.mark.parametrize("grouping", ["official", "overlapping"])
def test_frame_by_frame_decoders(root, grouping):
    latents = frames(25).movedim(-1, 1)
    with RunFolder.create(root, "run", **SIZE) as run:
        run.write_chunk(0, settings_hash="h", seed=0, latents=latents, num_frames=18, skip_frames=7)
    calls = []
    decoder = GroupDecoder(lambda part: (calls.append(len(part)), part.movedim(1, -1))[1], grouping)
    stream = run.frames_stream(decoder=decoder)
    assert torch.equal(stream.read(0, 18), latents.movedim(1, -1)[7:])
    assert max(calls) == 8
    stream.read(3, 4).zero_()
    assert torch.equal(stream.read(0, 18), latents.movedim(1, -1)[7:]), "readers cannot change what is kept"


def test_latents_without_a_decoder_or_with_a_wrong_one(root):
    with RunFolder.create(root, "run", **SIZE) as run:
        run.write_chunk(0, settings_hash="h", seed=0, latents=torch.rand(5, 3, 4, 6), num_frames=5)
    with pytest.raises(FrameError, match="VAE"):
        run.frames_stream()
    with pytest.raises(FrameError, match="12x8.*6x4"):
        run.frames_stream(decoder=GroupDecoder(lambda part: torch.rand(len(part), 8, 12, 3))).read(0, 1)
    with pytest.raises(FrameError, match="decode to 2 frames"):
        run.frames_stream(decoder=GroupDecoder(lambda part: torch.rand(2, 4, 6, 3))).read(0, 1)


def test_the_video_ends_where_a_chunk_is_missing(root):
    with RunFolder.create(root, "run", **SIZE) as run:
        with pytest.raises(FrameError, match="no finished chunk"):
            run.frames_stream()
        for index in (0, 1, 3):
            run.write_chunk(index, settings_hash="h", seed=0, frames=frames(4, index))
        assert len(run.frames_stream()) == 8
        with pytest.raises(FrameError, match="9 frames.*8"):
            run.frames_stream(9)


# Resume and reroll


def test_resume_reuses_what_fits(root):
    filled(root, [3, 3, 3])
    run = RunFolder.open(root, "run")
    plan = run.completed_prefix(hashes("0", "1", "2"))
    assert plan.complete and list(plan.reused) == [0, 1, 2]
    plan = run.completed_prefix(hashes("0", "1", "2", "3"))
    assert (plan.next_index, plan.complete) == (3, False) and "3 of 4" in plan.reason
    plan = run.completed_prefix(hashes("0", "x", "2"))
    assert plan.next_index == 1 and "settings of chunk 1 changed" in plan.reason
    assert run.completed_prefix(hashes("0")).complete, "a shorter video needs nothing new"
    assert run.completed_prefix([]).complete


def test_hashes_chain(root):
    first = settings_hash({"seed": 1})
    assert settings_hash({"seed": 2}, previous=first) != settings_hash({"seed": 2}, previous=settings_hash({"seed": 3}))
    assert settings_hash({"a": 1, "b": 2.0}) == settings_hash({"b": 2, "a": 1.0}), (
        "order and type of a number do not count"
    )
    assert settings_hash({"a": [1, 2]}) == settings_hash({"a": (1, 2)}) != settings_hash({"a": [2, 1]})
    assert settings_hash({"a": 1}) != settings_hash({"a": "1"}) != settings_hash({"a": True})
    for wrong in (float("nan"), torch.zeros(2), object()):
        with pytest.raises(SettingsError):
            settings_hash({"a": wrong})


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), plain_values, max_size=4))
@settings(max_examples=50, deadline=None)
def test_hashes_survive_storing(value):
    assert settings_hash(json.loads(json.dumps(value))) == settings_hash(value)


def test_finished_chunks_are_replaced_only_on_request(root):
    filled(root, [3, 3, 3])
    with RunFolder.open(root, "run", write=True) as run:
        paths = [run.chunk_file(index).path for index in range(3)]
        before = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in paths}
        with pytest.raises(RunMismatchError, match="chunk 1.*the same settings"):
            run.write_chunk(1, settings_hash=hashes("1")[0], seed=9, frames=frames(3, 9))
        with pytest.raises(RunMismatchError, match="chunk 1.*other settings"):
            run.write_chunk(1, settings_hash="other", seed=9, frames=frames(3, 9))
        for attempt in (9, 10):
            run.write_chunk(1, settings_hash="other", seed=attempt, frames=frames(3, attempt), replace_existing=True)
        assert torch.equal(run.frames_stream().read(3, 6), eight_bit(frames(3, 10)))
    assert {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in (paths[0], paths[2])} == {
        path: before[path] for path in (paths[0], paths[2])
    }
    assert [record.seed for record in RunFolder.open(root, "run").chunks] == [0, 10, 2]
    assert len(list((root / "run").glob("chunk_00001*"))) == 1, "what was replaced is gone"


def test_open_or_create_goes_on_and_adapts_the_length(root):
    video = filled(root, [3, 3])
    with RunFolder.open_or_create(root, "run", {"model": "new"}, num_frames=5, **SIZE) as run:
        assert len(run.chunks) == 2
        assert torch.equal(run.frames_stream().read(0, 5), video[:5]) and len(run.frames_stream()) == 5
    assert RunFolder.open(root, "run").manifest.settings == {"model": "new"}
    with RunFolder.open_or_create(root, "another", **SIZE) as run:
        assert not run.chunks


@pytest.mark.parametrize(
    ("change", "words"),
    [({"height": 8}, "6x4, 6x8"), ({"width": 12}, "6x4, 12x4"), ({"kind": "other"}, "'test', not 'other'")],
)
def test_a_run_of_another_kind_or_size_is_refused(root, change, words):
    filled(root, [3])
    before = (root / "run" / "manifest.json").read_bytes()
    with pytest.raises(RunMismatchError, match=words):
        RunFolder.open_or_create(root, "run", **{**SIZE, **change})
    assert (root / "run" / "manifest.json").read_bytes() == before
    with RunFolder.open(root, "run", write=True):
        pass  # the refusal gave the lock back


def test_create_refuses_what_exists_and_open_what_does_not(root):
    filled(root, [3])
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(root, "run", **SIZE)
    with pytest.raises(RunFolderError, match="no run 'other'"):
        RunFolder.open(root, "other")
    assert not (root / "other").exists()


def test_discard_removes_only_runs_without_chunks(root):
    run = RunFolder.create(root, "empty", **SIZE)
    run.discard()
    assert not (root / "empty").exists()
    filled(root, [3])
    with RunFolder.open(root, "run", write=True) as run, pytest.raises(RunFolderError, match="1 finished"):
        run.discard()
    RunFolder.create(root, "empty", **SIZE).close()
    with pytest.raises(RunLockedError):
        RunFolder.open(root, "empty").discard()


def test_runs_are_listed(root):
    assert list_runs(root) == []
    filled(root, [3], "b")
    filled(root, [3, 3], "a")
    (root / "c").mkdir()
    (root / "c" / "manifest.json").write_text("{")
    found = list_runs(root)
    assert [run.name for run in found[:2]] == ["a", "b"] and len(found[0].chunks) == 2
    assert isinstance(found[2], RunDamagedError)


# What is refused when it is stored


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames": torch.rand(2, 4, 7, 3)}, "7x4.*6x4"),
        ({"frames": torch.full((2, 4, 6, 3), float("nan"))}, "not numbers"),
        ({}, "neither"),
        ({"latents": torch.rand(2, 4, 1, 1)}, "number of frames"),
        ({"frames": torch.rand(2, 4, 6, 3), "skip_frames": 2}, "at least one"),
        ({"frames": torch.rand(2, 4, 6, 3), "num_frames": 3}, "2 frames"),
        ({"frames": torch.rand(2, 4, 6, 3), "store_as": "float64"}, "uint8 or float16"),
        ({"frames": torch.rand(2, 4, 6, 3), "extra": {"tail": torch.zeros(1)}}, "tail"),
    ],
)
def test_chunks_that_make_no_sense(root, arguments, words):
    with RunFolder.create(root, "run", **SIZE) as run:
        with pytest.raises(FrameError, match=words):
            run.write_chunk(0, settings_hash="h", seed=0, **arguments)
        assert not list(run.path.glob("*chunk*")) and not run.chunks


def test_readers_cannot_write(root):
    filled(root, [3])
    with pytest.raises(RunLockedError, match="read only"):
        RunFolder.open(root, "run").write_chunk(1, settings_hash="h", seed=0, frames=frames(3))
    with RunFolder.open(root, "run", write=True) as run:
        pass
    with pytest.raises(RunLockedError, match="read only"):
        run.write_chunk(1, settings_hash="h", seed=0, frames=frames(3))


# Damage


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize(("how", "words"), [("cut", "cut off"), ("flip", "checksum"), ("missing", "missing")])
def test_a_damaged_chunk_is_refused_and_can_be_made_again(root, how, words):
    video = filled(root, [3, 3, 3])
    wanted = hashes("0", "1", "2")
    damage(RunFolder.open(root, "run").chunk_file(1).path, how)
    with RunFolder.open(root, "run", write=True) as run:
        for access in (
            lambda: run.read_chunk(1),
            lambda: run.completed_prefix(wanted),
            lambda: run.frames_stream().read(2, 4),
        ):
            with pytest.raises(RunDamagedError, match=f"chunk_00001.*{words}"):
                access()
        assert torch.equal(run.frames_stream().read(0, 3), video[:3]), "the others can be read"
        plan = run.completed_prefix(wanted, rerun_damaged=True)
        assert plan.next_index == 1 and words in plan.reason
        run.write_chunk(1, settings_hash=wanted[1], seed=1, frames=frames(3, 1), replace_existing=True)
        assert run.completed_prefix(wanted).complete
        assert torch.equal(run.frames_stream().read(0, 9), video)


def test_damage_is_noticed_after_a_first_good_read(root):
    filled(root, [3])
    run = RunFolder.open(root, "run")
    stream = run.frames_stream()
    stream.read(0, 1)
    path = run.chunk_file(0).path
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(RunDamagedError, match="checksum"):
        stream.read(0, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": "streaming-run", "schema": 1}',
        b'{"format": "streaming-run", "schema": 1, "kind": "t", "name": "r", "height": 4, "width": 6, "fps": "1/0",'
        b' "num_frames": 1, "created": 0, "settings": {}, "chunks": []}',
    ],
)
def test_a_damaged_manifest_is_refused_and_can_be_recovered(root, content):
    video = filled(root, [3, 2])
    with RunFolder.open(root, "run", write=True) as run:
        run.write_chunk(1, settings_hash="new", seed=7, frames=frames(2, 7), replace_existing=True)
    manifest = root / "run" / "manifest.json"
    whole = run.manifest
    manifest.write_bytes(content)
    for opening in (
        lambda: RunFolder.open(root, "run"),
        lambda: RunFolder.open(root, "run", write=True),
        lambda: RunFolder.open_or_create(root, "run", **SIZE),
    ):
        with pytest.raises(RunDamagedError, match="manifest"):
            opening()
    assert manifest.read_bytes() == content, "nothing is overwritten"
    with recover(root, "run") as run:
        assert run.chunks == whole.chunks and run.manifest == whole
        assert torch.equal(run.frames_stream().read(0, 3), video[:3])
    assert (root / "run" / "manifest.json.damaged").read_bytes() == content
    with pytest.raises(RunFolderError, match="intact"):
        recover(root, "run")


def test_a_manifest_cut_at_any_byte_is_refused(root):
    filled(root, [3, 3])
    manifest = root / "run" / "manifest.json"
    content = manifest.read_bytes()
    for length in range(0, len(content) - 1, 37):
        manifest.write_bytes(content[:length])
        with pytest.raises(RunDamagedError):
            RunFolder.open(root, "run")


def test_recovery_skips_half_chunks_and_needs_one(root):
    filled(root, [3, 3])
    damage(root / "run" / "chunk_00001.safetensors", "cut")
    (root / "run" / "manifest.json").unlink()
    with recover(root, "run") as run:
        assert [record.index for record in run.chunks] == [0]
    (root / "run" / "manifest.json").unlink()
    damage(root / "run" / "chunk_00000.safetensors", "cut")
    with pytest.raises(RunDamagedError, match="no whole chunk"):
        recover(root, "run")
    with pytest.raises(RunFolderError, match="no run"):
        recover(root, "other")


def test_another_schema_is_refused_with_its_number(root):
    filled(root, [3])
    manifest = root / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(RunMismatchError, match="streaming-run 2.*streaming-run 1"):
        RunFolder.open(root, "run")


def test_a_manifest_cannot_point_out_of_its_folder(root):
    filled(root, [3])
    manifest = root / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("chunk_00000.safetensors", "../../chunk_00000.safetensors"))
    with pytest.raises(RunDamagedError):
        RunFolder.open(root, "run")


# Names


@pytest.mark.parametrize("name", ["../out", "a/b", "a\\b", "..", ".", "", "   ", "/etc", "c:\\out", "a/../b"])
def test_names_that_are_paths_are_refused(root, name):
    with pytest.raises(RunNameError):
        RunFolder.create(root, name, **SIZE)
    assert not root.exists()


@pytest.mark.parametrize(
    "name", ["video", "my video 3", "été", "🎬 take 2", "x" * 300, "a:?*b", "C:out", "con", "...x", "🎬" * 90, "a\nb"]
)
def test_other_names_become_one_folder(root, name):
    video = filled(root, [3], name)
    assert len(list(root.iterdir())) == 1
    run = RunFolder.open(root, name)
    assert run.path.parent == root.resolve() and run.manifest.name == name
    assert torch.equal(run.frames_stream().read(0, 3), video)


@given(a=st.text(min_size=1, max_size=200), b=st.text(min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_names_stay_inside_and_apart(tmp_path_factory, a, b):
    base = tmp_path_factory.getbasetemp()
    named = []
    for name in (a, b):
        try:
            named.append(folder_name(name))
        except RunNameError:
            continue
        assert run_path(base, name).parent == base.resolve()
        assert len(named[-1].encode()) <= 120 and named[-1] not in (".", "..")
    if len(named) == 2 and named[0] == named[1]:
        import unicodedata

        assert unicodedata.normalize("NFC", a).strip() == unicodedata.normalize("NFC", b).strip()


def test_links_out_of_the_root_are_refused(root, tmp_path):
    filled(tmp_path / "elsewhere", [3])
    root.mkdir()
    (root / "run").symlink_to(tmp_path / "elsewhere" / "run")
    with pytest.raises(RunNameError, match="link"):
        RunFolder.open(root, "run", write=True)


def test_a_root_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "file", "run", **SIZE)


# Locks


def test_the_second_writer_is_told_who_holds_the_run(root):
    with RunFolder.create(root, "run", owner="prompt 12", **SIZE):
        with pytest.raises(
            RunLockedError, match=f"'run' is in use by prompt 12, process {os.getpid()} on .*, since 20"
        ):
            RunFolder.open(root, "run", write=True)
        with pytest.raises(RunLockedError):
            RunFolder.open_or_create(root, "run", **SIZE)
        assert RunFolder.open(root, "run").chunks == (), "readers need no lock"
    with RunFolder.open(root, "run", write=True):
        pass


HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from streaming_core.runs.lock import RunLock
from pathlib import Path
RunLock(Path(sys.argv[2]), "the other server").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_other_processes_are_kept_out_until_they_die(root):
    filled(root, [3])
    command = [sys.executable, "-c", HOLDER, str(ROOT), str(root / "run" / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"the other server, process {holder.pid}"):
            RunFolder.open(root, "run", write=True)
        holder.kill()
        holder.wait()
        assert str(holder.pid) in (root / "run" / "run.lock").read_text(), "it had no chance to tidy up"
        with RunFolder.open(root, "run", write=True):
            pass


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({}, True),
        ({"pid": 2**22 + 1, "host": "HERE"}, True),  # beyond the largest process id
        ({"pid": "SELF", "host": "HERE"}, True),  # an earlier process with our id, as containers have
        ({"pid": "PARENT", "host": "HERE"}, False),
        ({"pid": 1, "host": "elsewhere"}, False),
    ],
)
def test_without_file_locks_the_process_id_decides(root, monkeypatch, holder, free):
    import errno
    import socket

    from streaming_core.runs import lock as run_lock

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    names = {"HERE": socket.gethostname(), "SELF": os.getpid(), "PARENT": os.getppid()}
    (root / "run").mkdir(parents=True)
    (root / "run" / "run.lock").write_text(json.dumps({key: names.get(value, value) for key, value in holder.items()}))
    if free:
        with RunFolder.create(root, "run", **SIZE), pytest.raises(RunLockedError):
            RunFolder.open(root, "run", write=True)
    else:
        with pytest.raises(RunLockedError, match=f"process {names['PARENT'] if holder['pid'] == 'PARENT' else 1}"):
            RunFolder.create(root, "run", **SIZE)
