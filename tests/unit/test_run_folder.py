"""Run folders: what is stored, what may be used again, and what is refused with which words."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
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
from streaming_core.runs.care import recover, set_aside_damaged
from streaming_core.runs.chunk_file import file_sha256
from streaming_core.runs.content import ChunkContent
from streaming_core.runs.folder import RunFolder, list_runs, settings_hash
from streaming_core.runs.name import folder_name, run_path

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"kind": "test", "height": 4, "width": 6, "fps": Fraction(24000, 1001)}


def frames(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_frames, 4, 6, 3, generator=torch.Generator().manual_seed(seed))


def eight_bit(video: torch.Tensor) -> torch.Tensor:
    return (video * 255).round() / 255


def hashes(*names: str) -> list[str]:
    """Of chunks with these settings; each holds the ones before."""
    found: list[str] = []
    for name in names:
        found.append(settings_hash({"chunk": name}, previous=found[-1] if found else ""))
    return found


def filled(root: Path, lengths: list[int], name: str = "run", **options) -> torch.Tensor:
    """A run with chunks of these lengths; their video."""
    parts = [frames(length, seed) for seed, length in enumerate(lengths)]
    with RunFolder.create(root, name, {"model": "abc"}, **{**SIZE, **options}) as run:
        for index, (part, wanted) in enumerate(zip(parts, hashes(*map(str, range(len(parts)))), strict=True)):
            content = ChunkContent(part, part[-2:])
            run.write_chunk(index, content, settings_hash=wanted, own={"seed": index}, seconds=index / 4)
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
            ChunkContent(part, part[-2:], {"anchor": part[:1], "latents": latents}, seam_frames=2),
            settings_hash="h",
            identity={"model": {"cfg": 2.5}},
            own={"seed": 2**63, "prompt": "a cat"},
            seconds=1.25,
            notes={"steps": 30},
        )
    assert record.seed == 2**63 and record.num_frames == 5 and record.num_bytes > 0 and record.seam_frames == 2
    run = RunFolder.open(root, "run")
    assert run.chunks == (record,)
    assert run.manifest.settings == {"cfg": 2, "sizes": [4, 6]} and record.notes == {"steps": 30}
    assert run.manifest.identities == {record.identity: {"model": {"cfg": 2.5}}}
    assert record.own == {"seed": 2**63, "prompt": "a cat"}
    assert (run.manifest.fps, run.manifest.num_frames) == (Fraction(24000, 1001), 5)
    file = run.chunk_file(0)
    assert file.keys() == record.contents == ("anchor", "frames", "latents", "tail")
    assert file.read("frames").dtype == torch.uint8 and torch.equal(file.read("frames").float() / 255, eight_bit(part))
    assert torch.equal(file.read("latents"), latents) and torch.equal(file.read("tail"), part[-2:]), "bit for bit"
    assert torch.equal(file.read("anchor"), part[:1]) and file.read("audio") is None
    assert sorted(path.name for path in run.path.iterdir()) == ["chunk_00000.safetensors", "manifest.json", "run.lock"]
    assert json.loads((run.path / "manifest.json").read_text())["schema"] == 2


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    bounds=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), min_size=1, max_size=6),
    asked=st.integers(1, 40),
)
@settings(max_examples=25, deadline=None)
def test_any_slices_of_a_run_equal_its_video(tmp_path_factory, lengths, bounds, asked):
    parts = [frames(length, seed) for seed, length in enumerate(lengths)]
    video = eight_bit(torch.cat(parts))
    with RunFolder.create(tmp_path_factory.mktemp("runs"), "run", num_frames=asked, **SIZE) as run:
        for index, part in enumerate(parts):
            run.write_chunk(index, ChunkContent(part), settings_hash="h")
    stream = run.frames_stream()
    video = video[:asked]
    assert (len(stream), stream.height, stream.width, stream.fps) == (len(video), 4, 6, SIZE["fps"])
    for start, stop in bounds:
        start, stop = min(start, len(video)), min(stop, len(video))
        assert torch.equal(stream.read(start, stop), video[start:stop])
    assert torch.equal(torch.cat(list(pickle.loads(pickle.dumps(stream)).slices(4))), video)


def test_the_video_ends_where_a_chunk_is_missing(root):
    with RunFolder.create(root, "run", **SIZE) as run:
        with pytest.raises(FrameError, match="no finished chunk"):
            run.frames_stream()
        for index in (0, 1, 3):
            run.write_chunk(index, ChunkContent(frames(4, index)), settings_hash="h")
        assert len(run.frames_stream()) == 8
        with pytest.raises(FrameError, match="9 frames.*8"):
            run.frames_stream(9)
        assert run.manifest.missing == (), "nothing says yet that chunk 2 is wanted"
        assert run.select(["h"] * 5) == (2, 4) and run.manifest.missing == (2, 4)


# Resume


def test_resume_reuses_what_fits(root):
    filled(root, [3, 3, 3])
    with RunFolder.open(root, "run", write=True) as run:
        assert run.select(hashes("0", "1", "2")) == ()
        assert run.select(hashes("0", "1", "2", "3")) == (3,)
        assert run.select(hashes("0")) == (), "a shorter video needs nothing new"
        assert run.select([]) == () and len(run.chunks) == 3
        assert run.select(hashes("0", "x", "2")) == (1, 2)
        assert run.select(hashes("0", "1", "2")) == ()
    with pytest.raises(RunLockedError, match="read only"):
        RunFolder.open(root, "run").select(hashes("0"))


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


def test_a_chunk_that_is_stored_again_is_another_take(root):
    filled(root, [3, 3, 3])
    before = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in (root / "run").glob("chunk_*")}
    with RunFolder.open(root, "run", write=True) as run:
        for attempt in (9, 10):
            run.write_chunk(1, ChunkContent(frames(3, attempt)), settings_hash="other", own={"seed": attempt})
        assert torch.equal(run.frames_stream().read(3, 6), eight_bit(frames(3, 10)))
    assert {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in before} == before
    run = RunFolder.open(root, "run")
    assert [record.seed for record in run.chunks] == [0, 10, 2]
    assert [(record.take, record.seed) for record in run.manifest.takes(1)] == [(0, 1), (1, 9), (2, 10)]
    assert len(list(run.path.glob("chunk_00001*"))) == 3


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


def test_only_runs_without_any_take_are_discarded(root):
    assert RunFolder.create(root, "empty", **SIZE).discard_if_empty()
    assert not (root / "empty").exists()
    filled(root, [3])
    with RunFolder.open(root, "run", write=True) as run:
        assert not run.discard_if_empty()
        assert run.select(hashes("x")) == (0,) and not run.chunks
        assert not run.discard_if_empty(), "takes of other settings count"
        assert run.select(hashes("0")) == ()
    RunFolder.create(root, "empty", **SIZE).close()
    with pytest.raises(RunLockedError):
        RunFolder.open(root, "empty").discard_if_empty()


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
        ({"frames": torch.rand(0, 4, 6, 3)}, "at least one"),
        ({"frames": torch.rand(2, 4, 6, 3), "extra": {"tail": torch.zeros(1)}}, "tail"),
    ],
)
def test_chunks_that_make_no_sense(root, arguments, words):
    with RunFolder.create(root, "run", **SIZE) as run:
        with pytest.raises(FrameError, match=words):
            run.write_chunk(0, ChunkContent(**arguments), settings_hash="h")
        assert not list(run.path.glob("*chunk*")) and not run.chunks


def test_readers_cannot_write(root):
    filled(root, [3])
    with pytest.raises(RunLockedError, match="read only"):
        RunFolder.open(root, "run").write_chunk(1, ChunkContent(frames(3)), settings_hash="h")
    with RunFolder.open(root, "run", write=True) as run:
        pass
    with pytest.raises(RunLockedError, match="read only"):
        run.write_chunk(1, ChunkContent(frames(3)), settings_hash="h")


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
            lambda: run.chunk_file(1).read("tail"),
            lambda: run.select(wanted),
            lambda: run.frames_stream().read(2, 4),
        ):
            with pytest.raises(RunDamagedError, match=f"chunk_00001.*{words}"):
                access()
        assert torch.equal(run.frames_stream().read(0, 3), video[:3]), "the others can be read"
        assert set_aside_damaged(run) == ("chunk_00001.safetensors",)
        assert run.select(wanted) == run.manifest.missing == (1,)
        run.write_chunk(1, ChunkContent(frames(3, 1)), settings_hash=wanted[1])
        assert run.select(wanted) == ()
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
        b'{"format": "streaming-run", "schema": 2}',
        b'{"format": "streaming-run", "schema": 2, "kind": "t", "name": "r", "height": 4, "width": 6, "fps": "1/0",'
        b' "num_frames": 1, "created": 0, "settings": {}, "wanted": [], "chosen": [], "records": [], "identities": {}}',
    ],
)
def test_a_damaged_manifest_is_refused_and_can_be_recovered(root, content):
    video = filled(root, [3, 2])
    with RunFolder.open(root, "run", write=True) as run:
        run.write_chunk(1, ChunkContent(frames(2, 7)), settings_hash="new", identity={"model": [1, 2.5]}, own={"a": 1})
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
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(RunMismatchError, match="streaming-run 1.*streaming-run 2.*another run name"):
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
