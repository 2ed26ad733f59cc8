"""Damaged video files of every container: read, or refused in a sentence; never a crash, a hang or a raw exception."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import dev
from streaming_core.frames import AudioTrack, TensorFrames, write_video
from tests.unit.frame_videos import counted_video, smooth_video

READ = """
import random, sys, time
from pathlib import Path
import torch
from benchmarks.memory import forget_peak, peak_mib
from streaming_core.errors import StreamingError
from streaming_core.frames import VideoFrames

forget_peak()  # that of the process that started this one
torch.set_num_threads(1)
source, first, last, path = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
whole = source.read_bytes()

def mutated(seed):
    chance, content = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(content))
        size = min(chance.choice((1, 1, 2, 4, 8, 64, 400)), len(content) - at)
        kind = chance.randrange(6)
        if kind < 3:
            content[at : at + size] = chance.randbytes(size)
        elif kind == 3:
            content[at : at + size] = bytes([chance.choice((0, 255, 127, 128))]) * size
        elif kind == 4:
            del content[at : at + size]
        else:
            content[at:at] = content[chance.randrange(len(content)) :][:size]
    if chance.random() < 0.1:
        del content[chance.randrange(len(content)) :]
    return bytes(content)

opened = 0
for seed in range(first, last):
    Path(path).write_bytes(mutated(seed))
    print("seed", seed, flush=True)
    began = time.monotonic()
    try:
        file = VideoFrames.open(path)
        stream = file.at_rate(file.fps) if file.variable_rate else file
        length = len(stream)
        for start in (0, length // 2, max(0, length - 6)):
            stop = min(start + 6, length)
            assert stream.read(start, stop).shape == (stop - start, stream.height, stream.width, 3)
        track = stream.audio()
        if track is not None:
            assert track.read().isfinite().all()
        opened += 1
    except StreamingError as error:
        assert str(error) and "\\n" not in str(error), error
    taken = time.monotonic() - began
    assert taken < 5, f"{taken:.1f} s"
    assert peak_mib() < 1024, f"{peak_mib():.0f} MiB"
print("opened", opened)
"""
KINDS = ["mp4", "mov", "mkv", "webm", "ts", "avi", "gif", "webp", "flv", "mpg"]
MUTATIONS = 2000


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    paths = {kind: folder / f"whole.{kind}" for kind in KINDS}
    video = TensorFrames(smooth_video(24, 48, 64), 24)
    audio = AudioTrack.from_waveform(np_audio(), 16000)
    write_video(video, paths["mp4"], audio=audio)
    write_video(video, paths["mov"], audio=audio)
    write_video(video, paths["mkv"], audio=audio)
    write_video(TensorFrames(smooth_video(12, 64, 64), 24), paths["webm"], codec="av1", audio=audio)
    for kind, encoders in (("ts", ("libx264", "aac")), ("avi", ("mpeg4", "mp2")), ("flv", ("libx264", "aac"))):
        write_with_audio(paths[kind], *encoders)
    write_with_audio(paths["mpg"], "mpeg2video", "mp2")
    images = [Image.fromarray((frame.numpy() * 255).astype(np.uint8)) for frame in counted_video(8, 48, 64)]
    for kind in ("gif", "webp"):
        images[0].save(paths[kind], save_all=True, append_images=images[1:], duration=[90] * 8)
    return paths


def np_audio():
    import torch

    return torch.sin(torch.arange(16000) * 0.05)[None]


def write_with_audio(path: Path, video: str, audio: str) -> None:
    with av.open(str(path), "w") as container:
        shown = container.add_stream(video, rate=24, options={"g": "8"})
        shown.width, shown.height, shown.pix_fmt = 64, 48, "yuv420p"
        heard = container.add_stream(audio, rate=44100, layout="mono")
        for number, image in enumerate((smooth_video(24, 48, 64).numpy() * 255).astype(np.uint8)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(shown.encode(frame))
        wave = np.sin(np.arange(44100) * 0.05).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(wave, format="flt", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 44100, 0, Fraction(1, 44100)
        container.mux(heard.encode(sound))
        container.mux(shown.encode(None))
        container.mux(heard.encode(None))


def read_mutations(source: Path, first: int, last: int, limit: float) -> None:
    path = source.with_name(f"mutated{source.suffix}")
    command = [sys.executable, "-c", READ, str(source), str(first), str(last), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, timeout=limit, env=environment)
    assert run.returncode == 0, f"{source.suffix} {run.stdout[-30:]}\n{run.stderr[-3000:]}"
    assert run.stdout.splitlines()[-1].startswith("opened")


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutations_of_each_container(sources, kind):
    read_mutations(sources[kind], 0, 12, 90)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutations_of_each_container(sources, kind):
    read_mutations(sources[kind], 12, 12 + MUTATIONS // len(KINDS), 240)
