"""Every channel layout through every container, in processes of their own: mapped or refused, never a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

import dev
from streaming_core.errors import SettingsError, VideoReadError
from streaming_core.frames import CODECS, AudioTrack

LAYOUTS = ("mono", "stereo", "2.1", "3.0", "4.0", "quad", "5.0", "5.1", "6.1", "7.0", "7.1", "7.1(wide)", "octagonal")
RATES = (8000, 11025, 37800, 96000)
ODD_LAYOUTS = (
    *("3.0(back)", "quad(side)", "3.1", "4.1", "5.0(side)", "5.1(side)", "6.0", "6.0(front)", "hexagonal", "3.1.2"),
    *("6.1(back)", "6.1(front)", "7.0(front)", "7.1(wide-side)", "7.1(top)", "5.1.2", "5.1.2(back)", "cube", "downmix"),
)
EVERY_RATE = (7350, *RATES, 16000, 22050, 24000, 32000, 44056, 44100, 48000, 64000, 88200, 96001, 176400, 192000)
KINDS = [(codec, suffix) for codec, choice in CODECS.items() for suffix in choice.suffixes]
WRITE = """
import sys, torch
from streaming_core.frames import CODECS, AudioTrack, TensorFrames, write_video
codec, suffix, folder, *sources = sys.argv[1:]
frames = TensorFrames(torch.rand(10, 64, 64, 3), 10)
for source in sources:
    print(source, flush=True)
    path = f"{folder}/out.{suffix}"
    write_video(frames, path, codec=codec, audio=AudioTrack.from_file(source))
    track = AudioTrack.from_file(path)
    read = track.read()
    assert abs(read.shape[1] - track.sample_rate) < 3000, read.shape
    assert read.isfinite().all() and read.abs().max() > 0.01, read.abs().max()
"""
WRITE_TONES = """
import json, sys, av, torch
from streaming_core.frames import CODECS, AudioTrack, TensorFrames, write_video
from streaming_core.frames.codecs import audio_encoder, CONTAINERS
codec, path, sources = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
frames = TensorFrames(torch.full((6, 64, 64, 3), 0.5), 10)
encoder = audio_encoder(codec, CONTAINERS[path[path.rindex("."):]])
for layout, rate in sources:
    print(layout, rate, flush=True)
    channels = len(av.AudioLayout(layout).channels)
    time = torch.arange(rate * 6 // 10) / rate
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * (400 + 50 * channel) * time) for channel in range(channels)])
    track = AudioTrack(rate, layout, waveform=tones)
    write_video(frames, path, codec=codec, audio=track)
    with av.open(path) as container:
        audio = container.streams.audio[0]
        assert audio.rate == track.rate_for(encoder), (audio.rate, track.rate_for(encoder))
        # The same number of channels, or stereo where the codec has no place for so many.
        wanted = len(av.AudioLayout(track.layout_for(encoder)).channels)
        assert len(audio.layout.channels) == wanted and wanted in (channels, 2), audio.layout
        flat = av.AudioResampler("flt", audio.layout, audio.rate)
        parts = [part for frame in container.decode(audio) for part in flat.resample(frame)]
        read = torch.cat([torch.from_numpy(part.to_ndarray().reshape(-1, wanted)) for part in parts])
        # Codecs begin and end with whole blocks, of 1024 samples at most.
        assert -0.01 < len(read) / audio.rate - 0.6 < 2100 / audio.rate, len(read) / audio.rate
        assert read.isfinite().all() and read.abs().max() > 0.05, read.abs().max()
    with av.open(path) as container:
        assert len(list(container.decode(video=0))) == 6
"""


def file_of(path, layout: str, rate: int = 44100) -> None:
    """One second of a tone per channel, as PCM in WAV, written by hand: PCM takes any layout."""
    channels = len(av.AudioLayout(layout).channels)
    time = np.arange(rate) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * (200 + 50 * channel) * time) for channel in range(channels)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        packed = np.ascontiguousarray((samples.T * 32767).astype(np.int16)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("ffv1", "mkv"), ("av1", "webm")])
def test_every_layout_and_rate_is_written_in_every_container(tmp_path, codec, suffix):
    """In one process for each container: what it said last is the source that ended it."""
    sources = [tmp_path / f"{layout}.mkv" for layout in LAYOUTS]
    for source, layout in zip(sources, LAYOUTS, strict=True):
        file_of(source, layout)
    for rate in RATES:
        sources.append(tmp_path / f"{rate}.mkv")
        file_of(sources[-1], "stereo", rate)
    command = [sys.executable, "-c", WRITE, codec, suffix, str(tmp_path), *map(str, sources)]
    run = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-2000:]


def write_tones(folder, codec: str, suffix: str, sources: list[tuple[str, int]]) -> None:
    """Write and read all of them in one process; a crash is that of the last one it named."""
    path = str(folder / f"video{suffix}")
    command = [sys.executable, "-c", WRITE_TONES, codec, path, json.dumps(sources)]
    run = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{codec} {suffix}: {run.stdout.splitlines()[-1:]}\n{run.stderr[-2000:]}"
    assert len(run.stdout.splitlines()) == len(sources)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("ffv1", ".mkv"), ("av1", ".webm")])
def test_every_layout_at_every_rate(tmp_path, codec, suffix):
    """Every encoder of audio; which codec the video has makes no difference to it."""
    layouts = [*LAYOUTS, *(layout for layout in ODD_LAYOUTS if known(layout))]
    write_tones(tmp_path, codec, suffix, [(layout, rate) for layout in layouts for rate in EVERY_RATE])


@pytest.mark.parametrize(("codec", "suffix"), KINDS)
def test_every_kind_of_file_takes_audio_of_any_kind(tmp_path, codec, suffix):
    write_tones(tmp_path, codec, suffix, [("mono", 11025), ("5.1(side)", 44056), ("7.1", 192000), ("cube", 8000)])


def known(layout: str) -> bool:
    """Whether this FFmpeg has a layout of that name."""
    try:
        return bool(av.AudioLayout(layout).channels)
    except ValueError:
        return False


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_come_back_by_channel(tmp_path, layout):
    source = tmp_path / "source.mkv"
    file_of(source, layout)
    samples = AudioTrack.from_file(source).read()
    assert samples.shape == (len(av.AudioLayout(layout).channels), 44100)
    for channel, row in enumerate(samples):
        strongest = int(torch.fft.rfft(row).abs().argmax())
        assert strongest == 200 + 50 * channel


def test_waveforms_of_any_number_of_channels(tmp_path):
    for channels in range(1, 9):
        track = AudioTrack.from_waveform(torch.rand(1, channels, 1000), 8000)
        assert track.read().shape == (channels, 1000)
    with pytest.raises(SettingsError, match="1 to 8 channels"):
        AudioTrack.from_waveform(torch.rand(9, 1000), 8000)


def test_more_channels_than_a_video_takes_are_refused(tmp_path):
    source = tmp_path / "source.mkv"
    file_of(source, "hexadecagonal")
    with pytest.raises(VideoReadError, match="16 channels; convert it to at most 8"):
        AudioTrack.from_file(source)
