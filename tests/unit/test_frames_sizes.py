"""Very small and very large frames: written whatever their size, in memory that depends on the size of one."""

from __future__ import annotations

import json
import subprocess
import sys

import av
import pytest
import torch

import dev
from streaming_core.errors import SettingsError
from streaming_core.frames import CODECS, TensorFrames, write_video
from streaming_core.frames.codecs import LARGE_PIXELS, choose_encoder, size_options

WRITE_LARGE = """
import json, sys, torch
from fractions import Fraction
from benchmarks.memory import forget_peak, peak_mib
from streaming_core.frames import FrameStream, write_video

class Stored(FrameStream):
    height, width, fps, decodes = 2304, 4096, Fraction(24), True

    def __len__(self):
        return int(sys.argv[2])

    def stored(self, start, stop):
        rows = torch.arange(self.height).view(-1, 1, 1) // 40 * 3
        columns = torch.arange(self.width).view(1, -1, 1) // 40 * 5 + 7 * start
        return ((rows + columns) % 256).to(torch.uint8).expand(-1, -1, 3)[None].clone()

    def _read(self, start, stop):
        raise AssertionError("8-bit frames went through float")

forget_peak()
before = peak_mib()
write_video(Stored(), sys.argv[1])
print(json.dumps(peak_mib() - before))
"""


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 1)])
def test_a_single_pixel_is_refused_or_written(tmp_path, height, width):
    stream = TensorFrames(torch.rand(2, height, width, 3), 24)
    with pytest.raises(SettingsError, match=f"ffv1 needs at least 2x2 pixels, the video is {width}x{height}; use h264"):
        write_video(stream, tmp_path / "video.mkv", codec="ffv1")
    write_video(stream, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert len(list(container.decode(video=0))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("pixel_format", CODECS["ffv1"].depths.values())
def test_ffv1_takes_8k(tmp_path, pixel_format):
    """Four slices are too few for it."""
    video = torch.rand(1, 1, 1, 3).expand(1, 4320, 7680, 3)
    write_video(TensorFrames(video, 24), tmp_path / "video.mkv", codec="ffv1", pixel_format=pixel_format)
    with av.open(str(tmp_path / "video.mkv")) as container:
        assert [(frame.height, frame.width) for frame in container.decode(video=0)] == [(4320, 7680)]


def test_what_most_people_make_is_encoded_as_ever():
    for codec in CODECS:
        encoder, _ = choose_encoder(codec, CODECS[codec].suffixes[0], None)
        for height, width in ((64, 64), (720, 1280), (2160, 3840)):
            assert size_options(encoder, height, width) == ({"slices": "4"} if codec == "ffv1" else {})
        assert height * width == LARGE_PIXELS


@pytest.mark.slow
def test_the_memory_of_large_frames_does_not_grow_with_their_number(tmp_path):
    """A frame is 27 MiB of bytes and 108 of float; an encoder left alone holds more than 40 of them."""
    grown = []
    for number, count in enumerate((12, 36)):
        command = [sys.executable, "-c", WRITE_LARGE, str(tmp_path / f"{number}.mp4"), str(count)]
        run = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr[-2000:]
        grown.append(json.loads(run.stdout))
    assert grown[1] < 800 and grown[1] < grown[0] + 300, grown
