"""A disk that is really full: a tiny file system in a namespace of its own. (A limit on file sizes, which needs no
mounting, is in test_run_folder_crash.)"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNT = 'mount -t tmpfs -o size=200k none "$1" && shift && exec "$@"'
"""Runs a command with its first argument turned into a disk of 200 kB, seen by that command alone."""

CODE = """
import json, pathlib, sys
from streaming_core.errors import StreamingError
from streaming_core.frames import AudioTrack, TensorFrames, write_png_folder, write_video
from streaming_core.runs.folder import ChunkContent, RunFolder
import torch
disk = pathlib.Path(sys.argv[1])
noise = TensorFrames(torch.rand(90, 64, 96, 3, generator=torch.Generator().manual_seed(0)), 24)
keep = disk / "kept.bin"
keep.write_bytes(b"x" * 1000)

def run_folder():
    with RunFolder.open_or_create(disk, "run", num_frames=90, kind="t", height=64, width=96, fps=24) as run:
        run.write_chunk(0, ChunkContent(noise.read(0, 90), noise.read(80, 90)), settings_hash="a")

works = {
    "h264": lambda: write_video(noise, disk / "video.mp4", crf=0),
    "h264 with audio": lambda: write_video(
        noise, disk / "video.mp4", audio=AudioTrack.from_waveform(torch.rand(2, 180000), 48000), crf=0
    ),
    "h265": lambda: write_video(noise, disk / "video.mp4", codec="h265", crf=0),
    "av1": lambda: write_video(noise, disk / "video.mp4", codec="av1", crf=1),
    "ffv1": lambda: write_video(noise, disk / "video.mkv", codec="ffv1"),
    "png": lambda: write_png_folder(noise, disk / "images"),
    "run folder": run_folder,
}
torch.set_num_threads(1)
for name, work in works.items():
    try:
        work()
        error = "no error"
    except StreamingError as found:
        error = f"{type(found).__name__}: {found}"
    left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
    print(json.dumps([name, error, left]), flush=True)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, tuple[str, list[str]]]:
    """For every work its error and what was then left on the disk."""
    folder = tmp_path_factory.mktemp("disk")
    if not shutil.which("unshare"):
        pytest.skip("needs Linux' unshare to mount a small disk")
    begin = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", str(folder)]
    probe = subprocess.run([*begin, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"mounting is not allowed here: {probe.stderr.strip()}")
    command = [*begin, sys.executable, "-c", CODE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {name: (error, left) for name, error, left in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("work", ["h264", "h264 with audio", "h265", "av1", "ffv1", "png"])
def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(found, work):
    error, left = found[work]
    assert error.startswith("VideoWriteError: ") and "No space left on device" in error and "\n" not in error
    assert left == ["kept.bin"]


def test_a_full_disk_leaves_no_half_chunk(found):
    error, left = found["run folder"]
    assert error.startswith("RunFolderError: ") and "No space left on device" in error and "\n" not in error
    assert "kept.bin" in left and not [name for name in left if "chunk" in name or name.endswith(".part")]
