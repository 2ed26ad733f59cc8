"""Settings that change under one run name: nothing that was made is lost, and what fits is found again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core import atomic
from streaming_core.errors import RunDamagedError
from streaming_core.runs import rebuild as rebuilding
from streaming_core.runs.care import recover, set_aside_damaged, use_take
from streaming_core.runs.chunk_file import file_sha256
from streaming_core.runs.folder import ChunkContent, RunFolder, settings_hash
from streaming_core.runs.manifest import RunManifest

SIZE = {"kind": "test", "height": 2, "width": 3, "fps": Fraction(12)}
LENGTH, SEAM, MOST = 3, 2, 5


def chained(values: list[str]) -> list[str]:
    """Settings hashes of chunks with these values."""
    found: list[str] = []
    for index, value in enumerate(values):
        found.append(settings_hash({"value": value, "index": index}, previous=found[-1] if found else ""))
    return found


class Killed(Exception):
    pass


@dataclass
class Video:
    """A run that is made, rerolled and left like the nodes do it; each chunk depends on the tail of the one before."""

    root: Path
    calls: list[int] = field(default_factory=list)

    def open(self) -> RunFolder:
        return RunFolder.open_or_create(self.root, "run", **SIZE)

    def make(self, run: RunFolder, index: int, own: str, stands_for: str = "", kill: str = "") -> None:
        tail = run.chunk_file(index - 1).read("tail") if index else torch.zeros(1, 2, 3, 3)
        seed = int(own[:8], 16)
        frames = torch.rand(LENGTH, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + tail * 0.5
        self.calls.append(index)
        if kill == "before the file":
            raise Killed
        if kill == "after the file":

            def killed(manifest: RunManifest) -> None:
                raise Killed

            run.save_manifest = killed
        content = ChunkContent(frames, frames[-1:], seam_frames=SEAM)
        run.write_chunk(index, content, settings_hash=own, own={"seed": seed}, stands_for=stands_for)

    def run(self, values: list[str], kill_at: int = -1, kill: str = "") -> tuple[int, ...]:
        """Make what is missing; which chunks were. A kill leaves chunk `kill_at` unfinished."""
        wanted = chained(values)
        with self.open() as run:
            missing = run.select(wanted)
            for index in missing:
                self.make(run, index, wanted[index], kill=kill if index == kill_at else "")
        return missing

    def reroll(self, index: int, number: int, after: bool) -> None:
        """Another take of a chunk, or also of all after it, each of which continues the one before it."""
        with self.open() as run:
            # After a kill, a reroll node refuses: the chunks before and the chunk itself must be there.
            if any(run.record(each) is None for each in range(index + 1)):
                return
            wanted = run.manifest.wanted
            for each in range(index, len(wanted) if after else index + 1):
                previous = run.record(each - 1).settings_hash if each else ""
                own = settings_hash({"reroll": number, "index": each}, previous=previous)
                self.make(run, each, own, stands_for=wanted[each])

    def choose(self, index: int, pick: int) -> None:
        with self.open() as run:
            takes = run.manifest.takes(index)
            if index < len(run.manifest.wanted) and takes:
                use_take(run, index, takes[pick % len(takes)].take)

    def frames(self, num_chunks: int) -> torch.Tensor:
        return RunFolder.open(self.root, "run").frames_stream(num_chunks * LENGTH).read(0, num_chunks * LENGTH)

    def files(self) -> dict[str, str]:
        return {path.name: file_sha256(path) for path in (self.root / "run").glob("chunk_*")}


SETTINGS = {"a": "aaaaa", "b": "bbbbb", "late": "aaabb", "middle": "abbbb"}
runs = st.tuples(
    st.just("run"),
    st.sampled_from(sorted(SETTINGS)),
    st.integers(1, MOST),
    st.integers(-4, MOST - 1),
    st.sampled_from(["before the file", "after the file"]),
)
rerolls = st.tuples(st.just("reroll"), st.integers(0, MOST - 1), st.booleans())
choices = st.tuples(st.just("choose"), st.integers(0, MOST - 1), st.integers(0, 9))


@given(steps=st.lists(st.one_of(runs, runs, rerolls, choices), min_size=2, max_size=12))
@settings(max_examples=100, deadline=None)
def test_no_chunk_is_ever_lost_and_earlier_settings_find_all_of_theirs(tmp_path_factory, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "flush_to_disk", lambda path: None)  # nothing is cut off from power here
        _live_through(Video(tmp_path_factory.mktemp("runs")), steps)


def _live_through(video: Video, steps: list[tuple]) -> None:
    files: dict[str, str] = {}
    shown: dict[tuple[int, str], str] = {}  # by chunk and settings hash: the file that stood when these were left
    seen: dict[tuple[str, ...], torch.Tensor] = {}  # by the files of a video: its frames
    for number, (what, *arguments) in enumerate([("run", "a", 2, -1, ""), *steps]):
        if what == "run":
            name, length, kill_at, kill = arguments
            hashes = chained(list(SETTINGS[name]))[:length]
            with contextlib.suppress(Killed):
                made = video.run(list(SETTINGS[name])[:length], kill_at, kill)
                assert not [index for index in made if (index, hashes[index]) in shown], "made although it was there"
        elif what == "reroll":
            video.reroll(arguments[0], number, arguments[1])
        else:
            video.choose(*arguments)
        assert files.items() <= video.files().items(), f"{what} {arguments} lost or changed a file"
        files = video.files()
        manifest = RunManifest.load(video.root / "run")
        assert {record.file for record in manifest.records} <= set(files)
        whole = [tuple(chained(list(values))) for values in SETTINGS.values()]
        assert any(each[: len(manifest.wanted)] == manifest.wanted for each in whole), "never half old, half new"
        assert all(manifest.wanted[index] == each for index, each in enumerate(hashes))
        shown |= {(record.index, manifest.wanted[record.index]): record.file for record in manifest.chunks}
        remember(video, manifest, seen)
    for values in SETTINGS.values():
        hashes = chained(list(values))
        length = next((index for index, each in enumerate(hashes) if (index, each) not in shown), MOST)
        if length:
            assert video.run(list(values)[:length]) == (), "going back needs nothing new"
            manifest = RunManifest.load(video.root / "run")
            found = {record.index: record.file for record in manifest.chunks if record.index < length}
            assert found == {index: shown[index, each] for index, each in enumerate(hashes[:length])}
            remember(video, manifest, seen)


def remember(video: Video, manifest: RunManifest, seen: dict[tuple[str, ...], torch.Tensor]) -> None:
    """Note the frames of the video; they must be what they were when it was made of the same files before."""
    names: list[str] = []
    for record in manifest.chunks:
        if record.index == len(names):
            names.append(record.file)
    if names:
        frames = video.frames(len(names))
        assert torch.equal(frames, seen.setdefault(tuple(names), frames))


def test_there_and_back_shows_the_take_that_stood(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaaa"))
    video.reroll(1, 1, False)
    video.reroll(1, 2, False)
    video.choose(1, 1)
    video.reroll(3, 3, False)
    before, files = video.frames(4), video.files()
    assert [record.take for record in RunFolder.open(tmp_path, "run").chunks] == [0, 1, 0, 1]
    assert video.run(list("abbb")) == (1, 2, 3)
    assert [record.take for record in RunFolder.open(tmp_path, "run").chunks] == [0, 3, 1, 2]
    assert not torch.equal(video.frames(4), before)
    assert video.run(list("aaaa")) == () and torch.equal(video.frames(4), before), "the seam of chunk 1 too"
    assert files.items() <= video.files().items()


def test_a_take_chosen_by_hand_from_other_settings_stays_with_these(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaa"))
    video.reroll(1, 1, False)  # take 1 stands for "aaa"
    video.run(list("bbb"))  # take 2
    video.choose(1, 0)  # "bbb" shows the first take of "aaa" now
    assert video.run(list("aaa")) == ()
    assert RunFolder.open(tmp_path, "run").record(1).take == 1, "not 0, although it fits as well"
    assert video.run(list("bbb")) == ()
    assert RunFolder.open(tmp_path, "run").record(1).take == 0


def test_a_canceled_change_shows_no_half_old_video(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaaa"))
    with pytest.raises(Killed):
        video.run(list("abbb"), kill_at=2, kill="before the file")
    run = RunFolder.open(tmp_path, "run")
    assert [record.index for record in run.chunks] == [0, 1] and run.manifest.missing == (2, 3)
    assert len(run.frames_stream()) == 2 * LENGTH and len(run.manifest.older) == 3
    assert video.run(list("aaaa")) == ()
    assert video.run(list("abbb")) == (2, 3)


def test_a_shorter_request_keeps_the_longer_video(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaaaa"))
    stamp = (tmp_path / "run" / "manifest.json").stat().st_mtime_ns
    assert video.run(list("aa")) == ()
    assert (tmp_path / "run" / "manifest.json").stat().st_mtime_ns == stamp, "nothing changed, nothing is written"
    assert len(RunFolder.open(tmp_path, "run").chunks) == 5
    assert video.run(list("ab")) == (1,)
    assert len(RunFolder.open(tmp_path, "run").chunks) == 2, "the rest continued another chunk 1"
    assert video.run(list("aaaaa")) == ()


def test_a_chunk_killed_before_the_manifest_knew_it_is_found(tmp_path, monkeypatch):
    video = Video(tmp_path)
    with pytest.raises(Killed):
        video.run(list("aaa"), kill_at=1, kill="after the file")
    assert [record.index for record in RunFolder.open(tmp_path, "run").chunks] == [0]
    assert video.run(list("aaa")) == (2,), "its file was whole"
    # A stray of another run, or one that is cut off, is left alone.
    (tmp_path / "run" / "chunk_00007.safetensors").write_bytes(b"cut")
    monkeypatch.setitem(SIZE, "kind", "another")
    Video(tmp_path / "another").run(list("aa"))
    monkeypatch.undo()
    source = tmp_path / "another" / "run" / "chunk_00001.safetensors"
    (tmp_path / "run" / "chunk_00001.t7.safetensors").write_bytes(source.read_bytes())
    with video.open() as run:
        assert [record.file for record in run.manifest.takes(1)] == ["chunk_00001.safetensors"]


def test_a_damaged_current_take_is_refused_a_damaged_older_one_only_not_chosen(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaa"))
    video.reroll(1, 1, False)
    (tmp_path / "run" / "chunk_00001.t1.safetensors").write_bytes(b"cut")
    with pytest.raises(RunDamagedError, match="chunk_00001.t1.safetensors .*set it aside with Run Inspector"):
        video.run(list("aaa"))
    assert video.run(list("abb")) == (1, 2), "other settings need it not"
    assert video.run(list("aaa")) == (), "the first take fits too"
    assert RunFolder.open(tmp_path, "run").record(1).take == 0
    video.run(list("abb"))
    (tmp_path / "run" / "chunk_00002.safetensors").write_bytes(b"cut")
    assert video.run(list("aaa")) == (2,)


def test_setting_aside_never_shows_takes_of_other_settings(tmp_path):
    video = Video(tmp_path)
    video.run(list("aa"))
    video.run(list("ab"))
    (tmp_path / "run" / "chunk_00001.t1.safetensors").write_bytes(b"cut")
    with video.open() as run:
        set_aside_damaged(run)
        assert run.record(1) is None and run.manifest.missing == (1,) and len(run.manifest.older) == 1
    assert video.run(list("ab")) == (1,)


def test_recovered_runs_know_what_was_wanted(tmp_path):
    """Takes of several settings lie side by side; the video is that of the latest ones, not a mixture."""
    video = Video(tmp_path)
    video.run(list("aaaa"))
    with pytest.raises(Killed):
        video.run(list("abbb"), kill_at=3, kill="before the file")
    before = RunManifest.load(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with recover(tmp_path, "run") as run:
        assert run.manifest == before
    assert video.run(list("aaaa")) == ()


def test_a_lost_manifest_does_not_cost_chunks_even_without_recovery(tmp_path):
    video = Video(tmp_path)
    video.run(list("aaa"))
    (tmp_path / "run" / "manifest.json").unlink()
    files = video.files()
    assert video.run(list("aaa")) == () and video.files() == files


def test_identities_are_stored_once_and_recovered(tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "MOST_IDENTITY_BYTES", 200)
    short, long = {"model": "x"}, {"model": "y" * 300}
    content = ChunkContent(torch.rand(1, 2, 3, 3))
    with RunFolder.create(tmp_path, "run", **SIZE) as run:
        for index, identity in enumerate([short, short, long, {}]):
            run.write_chunk(index, content, settings_hash=f"h{index}", identity=identity, own={"seed": index})
        keys = [record.identity for record in run.chunks]
        assert keys[0] == keys[1] != keys[2] and keys[3] == ""
        assert run.manifest.identities == {keys[0]: short, keys[2]: long}
    (tmp_path / "run" / "manifest.json").unlink()
    with recover(tmp_path, "run") as run:
        assert run.manifest.identities == {keys[0]: short}, "the long one was in the manifest only"
        assert [record.identity for record in run.chunks] == keys
        assert [record.own for record in run.chunks] == [{"seed": index} for index in range(4)]
