"""Video files as they are read: the right frame whatever the order, odd files, damaged files."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.memory import MALLOC
from streaming_core.errors import FrameRangeError, VideoReadError
from streaming_core.frames import (
    AudioTrack,
    JoinedFrames,
    TensorFrames,
    VideoFrames,
    close_idle_decoders,
    decoder,
    look,
    write_video,
)
from tests.unit.frame_videos import counted_video, numbers_in, psnr, set_display_matrix, smooth_video, write_at_times

LENGTH = 60
ROOT = Path(__file__).resolve().parents[2]


def gop(path: Path, encoder: str, **options) -> None:
    """A video of frame numbers with a keyframe every 12 frames or so."""
    write_at_times(path, counted_video(LENGTH, 64, 96), range(LENGTH), encoder, ticks=25, **options)


KINDS = {
    "h264 with B-frames": (".mp4", "libx264", {"g": 12, "bf": 3}),
    "h264 all keyframes": (".mkv", "libx264", {"g": 1}),
    "h264 one keyframe": (".mp4", "libx264", {"g": 500, "bf": 2}),
    "h264 open groups": (".mkv", "libx264", {"g": 12, "bf": 3, "x264-params": "open-gop=1"}),
    "h265 open groups": (".mp4", "libx265", {"x265-params": "log-level=error:keyint=12:min-keyint=12:open-gop=1"}),
    "av1": (".mkv", "libsvtav1", {"g": 12, "preset": 12}),
    "ffv1": (".mkv", "ffv1", {}),
    "mpeg4 in avi": (".avi", "mpeg4", {"g": 12, "bf": 2, "q:v": 2}),
    "h264 in ts": (".ts", "libx264", {"g": 12, "bf": 3}),
    "vp8 with hidden frames": (".webm", "libvpx", {"g": 12, "auto-alt-ref": 1, "lag-in-frames": 16, "b": 2_000_000}),
    "vp9 with hidden frames": (
        ".webm",
        "libvpx-vp9",
        {"g": 12, "auto-alt-ref": 1, "lag-in-frames": 16, "b": 2_000_000},
    ),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, VideoFrames]:
    folder = tmp_path_factory.mktemp("kinds")
    streams = {}
    for name, (suffix, encoder, options) in KINDS.items():
        path = folder / f"{name.replace(' ', '_')}{suffix}"
        if encoder in av.codecs_available:
            gop(path, encoder, **options)
            streams[name] = VideoFrames.open(path)
    return streams


@pytest.fixture(autouse=True)
def no_decoder_left_open():
    yield
    close_idle_decoders()


@pytest.fixture(params=list(KINDS))
def kind(request, kinds) -> VideoFrames:
    if request.param not in kinds:
        pytest.skip(f"this PyAV has no {KINDS[request.param][1]}")
    return kinds[request.param]


def test_frames_are_counted_and_in_order(kind):
    assert (len(kind), kind.width, kind.height) == (LENGTH, 96, 64)
    assert kind.fps == 25 and not kind.variable_rate and not kind.has_audio
    assert numbers_in(kind.read(0, LENGTH)) == list(range(LENGTH))


def test_any_read_gives_the_right_frames(kind):
    """Every start, forwards, backwards and at random, in one decoder that is sought and gone on with."""
    order = torch.randperm(LENGTH - 2, generator=torch.Generator().manual_seed(1)).tolist()
    for start in [*range(LENGTH - 3, 0, -9), *order[:16], 0, LENGTH - 3]:
        assert numbers_in(kind.read(start, start + 3)) == [start, start + 1, start + 2]


@given(bounds=st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_slices_equal_the_whole(kinds, bounds):
    stream = kinds["h264 with B-frames"]
    whole = stream.read(0, LENGTH)
    for start, stop in bounds:
        assert torch.equal(stream.read(start, stop), whole[start:stop])


@given(size=st.integers(1, 70))
@settings(max_examples=10, deadline=None)
def test_slices_of_any_size_equal_the_whole(kinds, size):
    stream = kinds["h265 open groups"]
    assert torch.equal(torch.cat(list(stream.slices(size))), stream.read(0, LENGTH))


def test_reading_on_opens_the_file_once(kinds, monkeypatch):
    stream = kinds["h264 one keyframe"]
    opened, decoded = [], []
    original_open, original_image = decoder.FileDecoder._open, look.Look.image
    monkeypatch.setattr(decoder.FileDecoder, "_open", lambda self: (opened.append(1), original_open(self))[1])
    monkeypatch.setattr(look.Look, "image", lambda *args: (decoded.append(1), original_image(*args))[1])
    for _ in stream.slices(7):
        pass
    assert len(opened) == 1 and len(decoded) == LENGTH
    assert not decoder._idle, "a video read to its end is closed"
    list(stream.slices(7, 0, 21))
    assert len(decoder._idle) == 1
    two = JoinedFrames((stream.trimmed(21, 30), stream.trimmed(0, 9)))
    assert numbers_in(two.read(0, 18)) == [*range(21, 30), *range(9)]
    assert len(opened) <= 3


def test_readers_in_threads_do_not_disturb_each_other(kinds):
    stream = kinds["h264 with B-frames"]

    def read_all(size: int) -> list[int]:
        return [number for part in stream.slices(size) for number in numbers_in(part)]

    with ThreadPoolExecutor(4) as threads:
        assert all(numbers == list(range(LENGTH)) for numbers in threads.map(read_all, (1, 4, 7, 16)))
    assert len(decoder._idle) <= decoder._MAX_IDLE


def test_handles_can_be_pickled(kinds):
    stream = kinds["h264 with B-frames"]
    data = pickle.dumps(stream)
    assert len(data) < 5000
    assert numbers_in(pickle.loads(data).read(30, 33)) == [30, 31, 32]


def test_range_errors(kinds):
    with pytest.raises(FrameRangeError, match="0 to 61.*0 to 60"):
        kinds["ffv1"].read(0, 61)


# Rates


TIMES_MS = [0, 33, 66, 200, 233, 266, 300, 900, 933, 1000]


@pytest.fixture(params=[".mp4", ".mkv"])
def uneven(tmp_path, request) -> Path:
    path = tmp_path / f"uneven{request.param}"
    write_at_times(path, counted_video(len(TIMES_MS)), TIMES_MS, bf=2, g=4)
    return path


def test_uneven_frames_as_stored(uneven):
    stream = VideoFrames.open(uneven)
    assert stream.variable_rate
    assert len(stream) == len(TIMES_MS)
    assert numbers_in(stream.read(0, len(stream))) == list(range(len(TIMES_MS)))
    assert stream.fps == 30, "pauses do not make a video slower"


@pytest.mark.parametrize("fps", [10, 24, 30, Fraction(24000, 1001), 60])
def test_uneven_frames_at_a_constant_rate(uneven, fps):
    stream = VideoFrames.open(uneven, fps=fps)
    assert stream.fps == fps
    assert abs(stream.seconds - stream.index.seconds) <= 1 / Fraction(fps)
    assert 1 < stream.index.seconds < 1.2
    early = 1000 / (2 * max(fps, 30))
    shown = [
        max(number for number, time in enumerate(TIMES_MS) if time < 1000 * index / fps + early)
        for index in range(len(stream))
    ]
    assert numbers_in(stream.read(0, len(stream))) == shown
    middle = len(stream) // 2
    assert numbers_in(stream.read(middle, middle + 3)) == shown[middle : middle + 3]


@pytest.mark.parametrize("options", [{}, {"bf": 0}, {"bf": 2, "g": 4}])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_videos_do_not_grow_at_their_end(tmp_path, suffix, options):
    path = tmp_path / f"uneven{suffix}"
    write_at_times(path, counted_video(len(TIMES_MS)), TIMES_MS, **options)
    assert 1 < VideoFrames.open(path).index.seconds < 1.1


def test_a_rate_can_be_chosen_later(uneven):
    stored = VideoFrames.open(uneven)
    later, at_once = stored.at_rate(30), VideoFrames.open(uneven, fps=30)
    assert (len(later), later.fps) == (len(at_once), at_once.fps)
    assert numbers_in(later.read(0, len(later))) == numbers_in(at_once.read(0, len(at_once)))


@given(milliseconds=st.integers(0, 1200))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_are_found_by_their_time(uneven, milliseconds):
    stored = VideoFrames.open(uneven)
    assert stored.number_at(Fraction(milliseconds, 1000)) == sum(time < milliseconds for time in TIMES_MS)
    steady = stored.at_rate(25)
    expected = min(-(-milliseconds // 40), len(steady))
    assert steady.number_at(milliseconds / 1000) == steady.number_at(Fraction(milliseconds, 1000)) == expected


@pytest.mark.parametrize("fps", [25, 50, Fraction(25, 2), Fraction(25, 3)])
def test_constant_rates_are_repeated_or_thinned_evenly(kinds, fps):
    stream = VideoFrames.open(kinds["h264 with B-frames"].path, fps=fps)
    assert len(stream) == round(LENGTH * fps / 25)
    early = Fraction(1, 2) / max(fps, 25)
    shown = [
        max(k for k in range(LENGTH) if Fraction(k, 25) < index / Fraction(fps) + early) for index in range(len(stream))
    ]
    assert numbers_in(stream.read(0, len(stream))) == shown


@pytest.mark.parametrize("fps", [24, Fraction(24000, 1001), Fraction(60000, 1001), Fraction(25, 2), 144])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_written_rates_are_read_exactly(tmp_path, fps, suffix):
    write_video(TensorFrames(counted_video(40), fps), tmp_path / f"video{suffix}")
    for wanted in (None, fps):
        stream = VideoFrames.open(tmp_path / f"video{suffix}", fps=wanted)
        assert stream.fps == fps and len(stream) == 40 and not stream.variable_rate
        assert stream.index.seconds == 40 / Fraction(fps)
        assert numbers_in(stream.read(0, 40)) == list(range(40)), "the same rate changes nothing"


def test_one_frame(tmp_path):
    write_video(TensorFrames(counted_video(1), 24), tmp_path / "one.mp4")
    stream = VideoFrames.open(tmp_path / "one.mp4")
    assert len(stream) == 1 and stream.fps == 24
    assert numbers_in(stream.read(0, 1)) == [0]
    assert len(VideoFrames.open(tmp_path / "one.mp4", fps=48)) == 2


# Orientation, audio, colors


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda video: video),
        ((0, 1, -1, 0), lambda video: video.rot90(-1, (1, 2))),  # x goes down: clockwise
        ((-1, 0, 0, -1), lambda video: video.rot90(2, (1, 2))),
        ((0, -1, 1, 0), lambda video: video.rot90(1, (1, 2))),
        ((-1, 0, 0, 1), lambda video: video.flip(2)),
        ((1, 0, 0, -1), lambda video: video.flip(1)),
        ((0, 1, 1, 0), lambda video: video.transpose(1, 2)),
    ],
)
def test_stored_rotation_is_applied(tmp_path, matrix, turn):
    video = smooth_video(3, 32, 48)
    path = tmp_path / "phone.mp4"
    write_video(TensorFrames(video, 24), path)
    set_display_matrix(path, *matrix)
    stream = VideoFrames.open(path)
    expected = turn(video)
    assert (stream.height, stream.width) == expected.shape[1:3]
    assert psnr(stream.read(0, 3), expected) > 35


def test_audio_is_noticed(tmp_path):
    audio = AudioTrack.from_waveform(torch.zeros(1, 1, 48000), 48000)
    write_video(TensorFrames(counted_video(24), 24), tmp_path / "video.mp4", audio=audio)
    assert VideoFrames.open(tmp_path / "video.mp4").has_audio


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("space", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (2, 0.299, 0.114)])
def test_matrix_and_range_of_the_file_are_used(tmp_path, space, kr, kb, full_range):
    """Planes computed here from the definitions of BT.709 and BT.601; code 2 is "not said", read as BT.601."""
    colors = (torch.rand(8, 3, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = space
        stream.codec_context.color_range = 2 if full_range else 1
        for red, green, blue in colors.tolist():
            luma = kr * red + (1 - kr - kb) * green + kb * blue
            chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
            if full_range:
                values = [255 * luma, *(128 + 255 * value for value in chroma)]
            else:
                values = [16 + 219 * luma, *(128 + 224 * value for value in chroma)]
            frame = av.VideoFrame(32, 32, "yuv444p")
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(bytes([min(255, max(0, round(value)))]) * plane.buffer_size)
            frame.colorspace, frame.color_range = space, 2 if full_range else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    read = VideoFrames.open(path).read(0, 8)
    assert (read.mean((1, 2)) - colors).abs().max() < 3 / 255


# Damage


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("with_audio", [False, True])
def test_a_file_cut_in_half_is_refused(tmp_path, suffix, with_audio):
    audio = AudioTrack.from_waveform(torch.zeros(1, 1, 48000 * 3), 48000) if with_audio else None
    path = tmp_path / f"video{suffix}"
    write_video(TensorFrames(counted_video(60), 24), path, audio=audio)
    cut_in_half(path)
    with pytest.raises(VideoReadError, match="cut off") as caught:
        VideoFrames.open(path)
    assert str(path) in str(caught.value)


def test_a_streamed_file_cut_in_half_is_refused(tmp_path):
    """The index stands at the beginning and promises frames that are not there."""
    write_video(TensorFrames(counted_video(60), 24), tmp_path / "video.mp4")
    path = tmp_path / "fast.mp4"
    with (
        av.open(str(tmp_path / "video.mp4")) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as sink,
    ):
        stream = sink.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in source.decode(video=0):
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    assert len(VideoFrames.open(path)) == 60
    cut_in_half(path)
    with pytest.raises(VideoReadError, match="cut off"):
        VideoFrames.open(path)


def test_damage_in_the_middle_is_an_error_not_a_hang(kinds, tmp_path):
    """Whatever bytes are hit: the frames are read, or a typed error says what is wrong."""
    source = Path(kinds["h264 with B-frames"].path)
    generator = np.random.default_rng(0)
    for attempt in range(12):
        content = bytearray(source.read_bytes())
        at = generator.integers(200, len(content) - 900)
        content[at : at + 600] = generator.bytes(600)
        path = tmp_path / f"{attempt}.mp4"
        path.write_bytes(content)
        try:
            stream = VideoFrames.open(path)
            assert sum(len(part) for part in stream.slices(16)) == len(stream) <= LENGTH
        except VideoReadError as error:
            assert str(path) in str(error)


def test_a_file_that_changes_under_the_handle_is_refused(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(TensorFrames(counted_video(30), 24), path)
    stream = VideoFrames.open(path)
    write_video(TensorFrames(counted_video(20), 24), path)
    with pytest.raises(VideoReadError, match="changed"):
        stream.read(0, 3)
    path.unlink()
    with pytest.raises(VideoReadError, match="missing"):
        stream.read(0, 3)


def test_what_is_no_video(tmp_path):
    with pytest.raises(VideoReadError, match="missing"):
        VideoFrames.open(tmp_path / "no.mp4")
    (tmp_path / "text.mp4").write_text("this is not a video")
    with pytest.raises(VideoReadError):
        VideoFrames.open(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoReadError):
        VideoFrames.open(tmp_path / "empty.mp4")
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoReadError, match="no video"):
        VideoFrames.open(tmp_path / "audio.mp4")


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path):
    """100 and 500 frames are written, read and joined in processes of their own; whole, 400 more take 350 MB."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from benchmarks.memory import forget_peak, peak_mib
from streaming_core.frames import VideoFrames, write_video
from tests.unit.frame_videos import LazyVideo
forget_peak()  # that of the process that started this one
path = sys.argv[2]
write_video(LazyVideo(int(sys.argv[3]), 240, 320), path, preset="ultrafast", slice_frames=8)
sums = [part.mean() for part in VideoFrames.open(path).slices(8)]
print(peak_mib())
"""
    peaks = [
        float(
            subprocess.run(
                [sys.executable, "-c", script, str(ROOT), str(tmp_path / f"{length}.mp4"), str(length)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, **MALLOC},
            ).stdout
        )
        for length in (100, 500)
    ]
    assert peaks[1] - peaks[0] < 40, peaks
