"""A process that the crash tests kill: it waits ready, and for every line on its input does the work in a fork.

    python -m tests.unit.crash_child      then per line: WORK FOLDER, tab-separated

The fork prints its process id, then one line after every finished chunk, then "done".
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from streaming_core.frames import write_video
from streaming_core.runs.folder import ChunkContent, RunFolder, settings_hash
from streaming_core.runs.gaps import gap_content
from tests.unit.frame_videos import LazyVideo

NUM_CHUNKS, CHUNK_FRAMES, HEIGHT, WIDTH = 12, 6, 48, 64
HASHES: list[str] = []
for _index in range(NUM_CHUNKS):
    HASHES.append(settings_hash({"chunk": _index}, previous=HASHES[-1] if HASHES else ""))

GAP_HASHES = [settings_hash({"gap": index}) for index in range(NUM_CHUNKS)]


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def chunk_after(tail: torch.Tensor, index: int) -> torch.Tensor:
    """A chunk that depends on every bit of the one before."""
    noise = torch.rand(CHUNK_FRAMES, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(index))
    return 0.5 * noise + 0.5 * tail


def make_video(root: str) -> None:
    """A run of twelve chunks, gone on with from where the last attempt was killed."""
    size = {"kind": "crash", "height": HEIGHT, "width": WIDTH, "fps": 24}
    with RunFolder.open_or_create(root, "run", num_frames=NUM_CHUNKS * CHUNK_FRAMES, **size) as run:
        missing = run.select(HASHES)
        tail = (
            run.chunk_file(missing[0] - 1).read("tail") if missing and missing[0] else torch.zeros(1, HEIGHT, WIDTH, 3)
        )
        for index in missing:
            say("begin", index)
            frames = chunk_after(tail, index)
            tail = frames[-1:]
            run.write_chunk(index, ChunkContent(frames, tail), settings_hash=HASHES[index], own={"seed": index})
            say("stored", index)


def fill_gaps(root: str) -> None:
    """The gaps between as many keyframes, continued from where the last attempt was killed."""
    size = {"kind": "crash gaps", "height": HEIGHT, "width": WIDTH, "fps": 24}
    noise = torch.Generator().manual_seed(3)
    keyframes = torch.rand(NUM_CHUNKS + 1, HEIGHT, WIDTH, 3, generator=noise)
    with RunFolder.open_or_create(root, "run", num_frames=NUM_CHUNKS * CHUNK_FRAMES + 1, **size) as run:
        for index in run.select(GAP_HASHES):
            say("begin", index)
            ends = keyframes[index : index + 2]
            between = chunk_after(ends.mean(), index)[1:]
            own = {"seed": index}
            run.write_chunk(
                index,
                gap_content(index, ends, between),
                settings_hash=GAP_HASHES[index],
                own=own,
                independent=True,
            )
            say("stored", index)


def save_video(folder: str) -> None:
    write_video(LazyVideo(1000, 64, 64), Path(folder) / "video.mp4", progress=lambda done, total: say("stored", done))


def without_disk(work: str, folder: str) -> None:
    """The same with files that may not grow beyond 20 kB, which fails like a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    WORKS[work](folder)


WORKS = {"run": make_video, "gaps": fill_gaps, "video": save_video}


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        work, folder = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                say("pid", os.getpid())
                if work.startswith("full "):
                    without_disk(work.removeprefix("full "), folder)
                else:
                    WORKS[work](folder)
                say("done")
            except Exception as error:
                say("error", type(error).__name__, error)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main()
