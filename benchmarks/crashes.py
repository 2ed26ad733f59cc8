"""A real server killed at random moments of a twelve-chunk video, and what is left of it each time."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dev
from hosting.report import RunReport
from hosting.server import HostServer
from streaming_core.runs.folder import RunFolder

NUM_CHUNKS, CHUNK_FRAMES, OVERLAP_FRAMES = 12, 6, 2
NUM_FRAMES = CHUNK_FRAMES + (NUM_CHUNKS - 1) * (CHUNK_FRAMES - OVERLAP_FRAMES)
CHECKPOINT = "tiny_streamingsvd.safetensors"
RUNS = Path("output") / "streaming_runs"
SAMPLER = "sampler"
STEPS = 2
"""Of a chunk."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Tiny networks on busy machines: threads that wait for each other are many times slower than one."""


def prepare(base: Path) -> None:
    """A start image and a tiny checkpoint in the folders of a host."""
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    for folder in ("models/checkpoints", "input"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    write_tiny_streamingsvd(base / "models" / "checkpoints" / CHECKPOINT)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(base / "input" / "start.png")


def video_prompt(
    run_name: str, seed: int = 33, num_frames: int = NUM_FRAMES, chunk_frames: int = CHUNK_FRAMES, **settings
) -> dict[str, dict]:
    """A small video of twelve chunks; what shows it is Run Inspector, so that nothing is encoded.

    `settings`: of the chunk sampler.
    """
    sampling = {
        "model_fps": 7,
        "motion_bucket_id": 127,
        "augmentation_level": 0.02,
        "augmentation_noise": "gaussian",
        "steps": STEPS,
        "cfg": 3.0,
        "min_cfg": 1.5,
        "first_steps": STEPS,
        "first_min_cfg": 1.0,
        "decode": "overlapping",
        "preprocessing": "official",
        **settings,
    }
    video = {
        "num_frames": num_frames,
        "chunk_frames": chunk_frames,
        "overlap_frames": OVERLAP_FRAMES,
        "width": 64,
        "height": 32,
        "fit": "crop",
        "anchor_frame": 1,
        "seed": seed,
        "run_name": run_name,
        "fps": 12.0,
        "collect_images": False,
    }
    networks = {"model": ["load", 0], "clip_vision": ["load", 1], "vae": ["load", 2], "cam": ["load", 3]}
    look = {"run_name": "", "action": "look", "chunk": 0, "take": 0, "confirm": "", "frames": [SAMPLER, 0]}
    return {
        "image": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "load": {"class_type": "StreamingT2VLoadStreamingSVD", "inputs": {"ckpt_name": CHECKPOINT}},
        "chunks": {"class_type": "StreamingT2VStreamingSVDChunkSampler", "inputs": {**networks, **sampling}},
        SAMPLER: {
            "class_type": "StreamingT2VStreamSampler",
            "inputs": {"chunk_sampler": ["chunks", 0], "start_image": ["image", 0], **video},
        },
        "look": {"class_type": "StreamingT2VRunInspector", "inputs": look},
    }


@dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    videos: int = 0
    kept: list[int] = field(default_factory=list)
    """Finished chunks at each kill."""
    in_work: int = 0
    """Kills that met a chunk in work."""
    seconds: float = 0.0
    """Of an undisturbed video, models loaded first."""


def tensors_of(base: Path, run_name: str) -> list[dict[str, torch.Tensor]]:
    """Every tensor of every chunk of a finished run."""
    run = RunFolder.open(base / RUNS, run_name)
    assert [record.index for record in run.chunks] == list(range(NUM_CHUNKS))
    return [
        {key: run.chunk_file(index).read(key) for key in run.chunk_file(index).keys()} for index in range(NUM_CHUNKS)
    ]


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every chunk file in a run folder that its manifest names."""
    if not (folder / "manifest.json").exists():
        return {}
    run = RunFolder.open(folder.parent, folder.name)
    paths = [run.chunk_file(record.index).path for record in run.chunks]
    return {path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths}


def surroundings(base: Path) -> dict[str, int]:
    """Every file outside the run root that no crash may change, with its time."""
    folders = [base / name for name in ("models", "input", "output")]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in found if (base / RUNS) not in path.parents}


def crash_videos(base: Path, kills: int, dice: random.Random, say: Callable[[str], None] = print) -> Tally:
    """Kill servers until there were so many kills, and assert after each that nothing finished was lost.

    Every video is resumed by a fresh server until it is whole, and then compared with one that was left alone.
    """
    tally = Tally()
    prepare(base)
    with HostServer(pack=dev.ROOT, base=base, env=ONE_THREAD) as server:
        server.run(video_prompt("warm", num_frames=CHUNK_FRAMES)).check()
        began = time.monotonic()
        server.run(video_prompt("alone")).check()
        tally.seconds = time.monotonic() - began
    whole, before = tensors_of(base, "alone"), surroundings(base)
    while tally.kills < kills:
        name, last_kill = f"video {tally.videos}", tally.kills + dice.randint(1, 3)
        folder = base / RUNS / name
        while len(stamps(folder)) < NUM_CHUNKS:
            known = stamps(folder)
            # A video is let alone after some kills, or they would all meet its last chunk.
            more = tally.kills < min(kills, last_kill)
            moment = random_moment(dice, len(known), tally.seconds) if more else None
            ended, steps = run_and_kill(base, name, moment)
            now = stamps(folder)
            assert {key: now.get(key) for key in known} == known, "a finished chunk was lost or made again"
            if ended == "success":
                continue
            # A chunk begins its steps when the one before is stored; what the server said last may not have arrived.
            begun = -(-steps // STEPS)
            assert len(now) >= begun - 1, "more than the chunk in work was lost"
            tally.kills += 1
            tally.kept.append(len(now))
            tally.in_work += begun > len(now)
            say(f"kill {tally.kills}: {moment}, {steps} steps seen, {len(now)} of {NUM_CHUNKS} chunks kept")
        tally.videos += 1
        again = tensors_of(base, name)
        for index, (a, b) in enumerate(zip(whole, again, strict=True)):
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), f"chunk {index} differs"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "manifest.json",
            "run.lock",
            *(f"chunk_{index:05d}.safetensors" for index in range(NUM_CHUNKS)),
        }
    assert surroundings(base) == before, "something outside the run root was touched"
    return tally


@dataclass(frozen=True)
class Moment:
    """`seconds` after the video has done `steps` steps, or after it was queued when `steps` is 0."""

    steps: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after step {self.steps}" if self.steps else f"{self.seconds:.2f} s after queueing"


def random_moment(dice: random.Random, known: int, video_seconds: float) -> Moment:
    """Anywhere in what is left of a video: one time in eight while it loads, else in or after any of its steps."""
    if dice.random() < 1 / 8:
        return Moment(0, dice.uniform(0, video_seconds / 4))
    steps = dice.randint(STEPS * known + 1, STEPS * NUM_CHUNKS)
    # A step and a half: the last step of a chunk is followed by decoding and writing.
    return Moment(steps, dice.uniform(0, 1.5 * video_seconds / (STEPS * NUM_CHUNKS)))


def run_and_kill(base: Path, run_name: str, moment: Moment | None) -> tuple[str, int]:
    """One server: queue the video and kill it at a moment; how it ended, how many of the video's steps were seen."""
    server = HostServer(pack=dev.ROOT, base=base, env=ONE_THREAD).start()
    timer = None if moment is None else threading.Timer(moment.seconds, server.kill)
    seen = 0

    def watch(report: RunReport) -> bool:
        nonlocal seen
        seen = int(report.bars().get(SAMPLER, (0, 0))[0])
        if timer is not None and timer.ident is None and seen >= moment.steps:
            timer.start()
        return False

    try:
        try:
            report = server.run(video_prompt(run_name), cancel_when=watch)
        except OSError:
            assert timer is not None and timer.ident is not None, "it was not us who killed it"
            return "died", seen  # no history can be asked for
        if report.status != "died":
            report.check()
        return report.status, seen
    finally:
        if timer is not None and timer.ident is not None:
            timer.cancel()
            timer.join()
        server.stop()
