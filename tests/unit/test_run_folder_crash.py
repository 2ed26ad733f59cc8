"""`kill -9` at any moment, and a full disk: what was finished stays, half files never stand under a final name."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streaming_core.frames import VideoFrames
from streaming_core.runs.folder import RunFolder

if not hasattr(os, "pidfd_open"):
    pytest.skip("needs fork, kill -9 and a sure way to hit no other process: Linux", allow_module_level=True)

from tests.unit.crash_child import CHUNK_FRAMES, HASHES, NUM_CHUNKS

ROOT = Path(__file__).resolve().parents[2]
KILLS = 15


@pytest.fixture(scope="module")
def child() -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "tests.unit.crash_child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        yield process
        process.stdin.close()


def attempt(child: subprocess.Popen, work: str, folder: Path, kill_at: tuple[str, float] | None = None) -> list[str]:
    """Let the child work until it is done, or until some seconds after it said a line; all lines it said."""
    child.stdin.write(f"{work}\t{folder}\n")
    process, timer, lines = None, None, []
    for line in child.stdout:
        line = line.strip()
        if line.startswith("pid "):
            process = os.pidfd_open(int(line.removeprefix("pid ")))
        elif line == "ended":
            break
        else:
            lines.append(line)
            if kill_at is not None and line == kill_at[0] and timer is None:
                timer = threading.Timer(kill_at[1], kill, (process,))
                timer.start()
    if timer is not None:
        timer.cancel()
        timer.join()
    os.close(process)
    return lines


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        signal.pidfd_send_signal(process, signal.SIGKILL)


def stored(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("stored ")]


def video_of(root: Path) -> torch.Tensor:
    return RunFolder.open(root, "run").frames_stream().read(0, NUM_CHUNKS * CHUNK_FRAMES)


@pytest.fixture(scope="module")
def undisturbed(child, tmp_path_factory) -> tuple[torch.Tensor, float]:
    """The video of a run that was left alone, and how many seconds one chunk took on this machine."""
    root = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    lines = attempt(child, "run", root)
    seconds = (time.monotonic() - began) / NUM_CHUNKS
    assert lines[-1] == "done" and stored(lines) == list(range(NUM_CHUNKS))
    return video_of(root), seconds


@pytest.mark.parametrize("word", ["begin", "stored"])
def test_gaps_killed_in_the_third_end_like_ones_that_were_left_alone(child, tmp_path, word):
    lines = attempt(child, "gaps", tmp_path / "whole")
    assert stored(lines) == list(range(NUM_CHUNKS))
    whole = RunFolder.open(tmp_path / "whole", "run").frames_stream().read(0, NUM_CHUNKS * CHUNK_FRAMES + 1)
    lines = attempt(child, "gaps", tmp_path / "killed", (f"{word} 3", 0.0))
    known = len(RunFolder.open(tmp_path / "killed", "run").chunks)
    before = {path.name: path.read_bytes() for path in (tmp_path / "killed" / "run").glob("chunk_*.safetensors")}
    assert known >= 3 and lines[-1:] != ["done"]
    lines = attempt(child, "gaps", tmp_path / "killed")
    assert lines[-1] == "done" and set(stored(lines)) <= set(range(known, NUM_CHUNKS))
    after = RunFolder.open(tmp_path / "killed", "run").frames_stream().read(0, NUM_CHUNKS * CHUNK_FRAMES + 1)
    assert torch.equal(after, whole)
    assert all((tmp_path / "killed" / "run" / name).read_bytes() == content for name, content in before.items())


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_chunk_in_work(child, undisturbed, tmp_path):
    """Killed at random moments over several videos; each video ends bit for bit like one that was left alone."""
    dice = random.Random(5)
    whole, chunk_seconds = undisturbed
    kills, lost, longest = 0, 0, 2 * chunk_seconds
    for video in range(60):
        root = tmp_path / str(video)
        known = 0
        while known < NUM_CHUNKS:
            target = min(known + dice.choice((0, 1, 1, 2)), NUM_CHUNKS - 1)
            lines = attempt(child, "run", root, (f"begin {target}", dice.uniform(0, longest)))
            begun = [int(line.split()[1]) for line in lines if line.startswith("begin ")]
            assert begun[:1] in ([], [known]) or begun[0] == known + 1, "only the chunk in work is made again"
            assert not [line for line in lines if line.startswith("error")], lines
            if lines[-1:] == ["done"]:
                longest *= 0.8  # it was faster than when the machine was measured
                break
            kills += 1
            run = RunFolder.open(root, "run")
            known = len(run.chunks)
            assert [record.settings_hash for record in run.chunks] == HASHES[:known]
            assert known >= max(stored(lines), default=-1) + 1, "what was reported as stored is there"
            lost += known == max(begun, default=0)
            assert known in (max(begun, default=0), max(begun, default=0) + 1), "at most the chunk in work is lost"
        assert torch.equal(video_of(root), whole)
        names = {path.name for path in (root / "run").iterdir()}
        assert names == {
            "run.lock",
            "manifest.json",
            *(f"chunk_{index:05d}.safetensors" for index in range(NUM_CHUNKS)),
        }
        if kills >= KILLS:
            break
    assert kills >= KILLS
    assert lost, "no kill met a chunk in work: the test is too tame"


@pytest.mark.parametrize("frames", [16, 400])
def test_a_killed_video_has_no_final_name(child, tmp_path, frames):
    lines = attempt(child, "video", tmp_path, (f"stored {frames}", 0.02))
    assert lines[-1] != "done" and not (tmp_path / "video.mp4").exists()
    assert all(path.suffix == ".part" for path in tmp_path.iterdir())


def test_a_full_disk_costs_the_chunk_in_work_and_says_so(child, undisturbed, tmp_path):
    lines = attempt(child, "full run", tmp_path)
    assert lines[-1].startswith("error RunFolderError chunk 0 could not be stored"), lines
    run = RunFolder.open(tmp_path, "run")
    assert not run.chunks
    assert sorted(path.name for path in run.path.iterdir()) == ["manifest.json", "run.lock"]
    assert attempt(child, "run", tmp_path)[-1] == "done"
    before = {path: path.read_bytes() for path in run.path.glob("chunk_*")}
    assert torch.equal(video_of(tmp_path), undisturbed[0])
    assert attempt(child, "full run", tmp_path)[-1] == "done", "nothing to do, so nothing to write"
    assert {path: path.read_bytes() for path in run.path.glob("chunk_*")} == before


def test_a_full_disk_leaves_no_video(child, tmp_path):
    lines = attempt(child, "full video", tmp_path)
    assert lines[-1].startswith("error VideoWriteError"), lines
    assert "video.mp4" in lines[-1] and "File too large" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_the_child_can_write_a_whole_video(child, tmp_path):
    """What the tests above cut short is intact when it is left alone."""
    assert attempt(child, "video", tmp_path)[-1] == "done"
    assert len(VideoFrames.open(tmp_path / "video.mp4")) == 1000
