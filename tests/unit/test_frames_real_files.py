"""Video files as phones, recorders, broadcasts and editors write them: each kind of public report, made small."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import dev
from streaming_core.errors import VideoReadError
from streaming_core.frames import JoinedFrames, TensorFrames, VideoFrames, close_idle_decoders, write_video
from streaming_core.frames.pixels import to_video_frame
from streaming_core.frames.video_read import log as read_log
from tests.unit.frame_videos import counted_video, numbers_in, psnr, smooth_video, write_at_times

RATE = 48000
TS_PACKET = 188


@pytest.fixture(autouse=True)
def no_decoder_left_open():
    yield
    close_idle_decoders()


def all_numbers(stream) -> list[int]:
    return numbers_in(stream.read(0, len(stream)))


def as_it_comes(path: Path) -> VideoFrames:
    """What Stream from Video gives: evenly spaced where the file is not."""
    file = VideoFrames.open(path)
    return file.at_rate(file.fps) if file.variable_rate else file


def write_flashes(path: Path, seconds: int, fps: int = 24, video="libx264", audio="aac", missing=(), start=Fraction(0)):
    """A white frame and a click half a second into every second; audio packets in `missing` seconds are left out."""
    with av.open(str(path), "w") as container:
        shown = container.add_stream(video, rate=fps, options={"g": "12", "bf": "0" if path.suffix == ".avi" else "2"})
        shown.width, shown.height, shown.pix_fmt = 96, 64, "yuv420p"
        heard = container.add_stream(audio, rate=RATE, layout="mono")
        wave = np.zeros(seconds * RATE, np.float32)
        for second in range(seconds):
            wave[second * RATE + RATE // 2 :][:240] = 0.8 * np.sin(np.arange(240) * 0.6)
        for number in range(seconds * fps):
            image = np.full((64, 96, 3), 235 if number % fps == fps // 2 else 16, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number + round(start * fps), Fraction(1, fps)
            container.mux(shown.encode(frame))
            if number % fps == 0:
                _mux_second(container, heard, wave, number // fps, missing, start)
        container.mux(shown.encode(None))
        container.mux(heard.encode(None))


def _mux_second(container, heard, wave: np.ndarray, second: int, missing, start: Fraction) -> None:
    if second in missing:
        return
    for first in range(second * RATE, (second + 1) * RATE, 1000):
        frame = av.AudioFrame.from_ndarray(wave[None, first : first + 1000], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, first + round(start * RATE), Fraction(1, RATE)
        container.mux(heard.encode(frame))


def offsets(path: Path) -> list[float]:
    """How much later each click is heard than its white frame is shown, in milliseconds."""
    stream = as_it_comes(path)
    light = [float(frame.mean()) for frame in stream.read(0, len(stream))]
    flashes = [number / float(stream.fps) for number, value in enumerate(light) if value > 0.5]
    track = stream.audio()
    loud = np.flatnonzero(np.abs(track.read().numpy()[0]) > 0.25) / track.sample_rate
    clicks = [time for number, time in enumerate(loud) if number == 0 or time - loud[number - 1] > 0.3]
    found = [1000 * (min(clicks, key=lambda time: abs(time - flash)) - flash) for flash in flashes]
    return [value for value in found if abs(value) < 450]


# Rates


@pytest.mark.parametrize("jitter", [2, 3, 5, 7])
@pytest.mark.parametrize("fps", [None, 30])
def test_frames_that_jitter_are_all_shown(tmp_path, jitter, fps):
    chance = random.Random(jitter)
    times = [round(1000 * number / 30 + chance.uniform(-jitter, jitter)) for number in range(150)]
    path = tmp_path / "phone.mp4"
    write_at_times(path, counted_video(150), [time - times[0] for time in times], crf=10)
    stream = as_it_comes(path) if fps is None else VideoFrames.open(path, fps)
    assert stream.fps == 30 and len(stream) == 150
    assert len(set(all_numbers(stream))) >= 149


def test_bursts_of_a_screen_recording_lose_no_frame_and_pauses_stay(tmp_path):
    gaps = ([17, 16, 17] * 7 + [400, 100, 250]) * 4
    times = np.cumsum([0, *gaps]).tolist()
    path = tmp_path / "screen.mp4"
    write_at_times(path, counted_video(len(times)), times, crf=10)
    stream = as_it_comes(path)
    assert stream.fps == 60 and abs(float(stream.seconds) - times[-1] / 1000) < 0.05
    assert set(all_numbers(stream)) == set(range(len(times)))


def test_a_cut_without_encoding_keeps_its_rate_and_holds_its_gap(tmp_path):
    """The frames that a cut leaves out at its end refer to others that are gone."""
    kept = [*range(70), 71, 74]
    path = tmp_path / "cut.mp4"
    write_at_times(path, counted_video(75)[kept], kept, ticks=24, crf=10)
    stream = as_it_comes(path)
    assert stream.fps == 24 and len(stream) == 75
    assert all_numbers(stream) == [max(k for k in kept if k <= number) for number in range(75)]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 24, 25, 30, Fraction(60000, 1001)])
@pytest.mark.parametrize("frames", [3, 45, 72])
def test_a_remuxed_rate_stays_what_it_is(tmp_path, rate, frames):
    """Matroska rounds times to milliseconds; copied on into MP4, the average is another rate."""
    write_video(TensorFrames(counted_video(frames), rate), tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "a.mp4"), "w") as sink:
        shown = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = shown
                sink.mux(packet)
    stream = VideoFrames.open(tmp_path / "a.mp4")
    assert stream.fps == rate and not stream.variable_rate
    assert len(JoinedFrames((stream, TensorFrames(counted_video(2), rate)))) == frames + 2


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
@pytest.mark.parametrize(
    "delays", [[100] * 10, [100, 500, 60, 100, 1000, 100], [100] * 5 + [2000], [100, 300, 100], [40, 40]]
)
def test_animated_images_show_each_frame_for_its_time(tmp_path, suffix, delays):
    images = [Image.fromarray((frame.numpy() * 255).astype(np.uint8)) for frame in counted_video(len(delays), 64, 96)]
    path = tmp_path / f"animated{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, loop=0, **options)
    stream = as_it_comes(path)
    shown = all_numbers(stream)
    assert sorted(set(shown)) == list(range(len(delays))), "each of them"
    assert abs(float(stream.seconds) - sum(delays) / 1000) < 0.05
    for number, delay in enumerate(delays):
        assert abs(shown.count(number) / float(stream.fps) - delay / 1000) <= 1 / float(stream.fps)


# Containers


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(5)])
def test_a_file_may_begin_at_any_time(tmp_path, suffix, start):
    path = tmp_path / f"late{suffix}"
    write_flashes(path, 2, start=start)
    found = offsets(path)
    assert len(VideoFrames.open(path)) == 48 and len(found) == 2
    assert max(map(abs, found)) < 21


@pytest.mark.parametrize("cut", [3, 4, 7])
def test_a_recording_that_begins_between_keyframes_stays_in_sync(tmp_path, cut):
    write_flashes(tmp_path / "whole.ts", 5)
    content = (tmp_path / "whole.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(content[TS_PACKET * (len(content) // TS_PACKET // cut) :])
    stream = as_it_comes(path)
    assert stream.fps == 24
    found = offsets(path)
    assert len(found) >= 2 and max(map(abs, found)) < 21


def test_lost_packets_of_a_broadcast_do_not_refuse_it(tmp_path):
    write_flashes(tmp_path / "whole.ts", 4)
    content = (tmp_path / "whole.ts").read_bytes()
    packets = [content[at : at + TS_PACKET] for at in range(0, len(content), TS_PACKET)]
    path = tmp_path / "lost.ts"
    path.write_bytes(b"".join(packet for number, packet in enumerate(packets) if number % 97 != 60))
    stream = as_it_comes(path)
    assert stream.fps == 24 and abs(len(stream) - 96) <= 2
    assert stream.read(0, len(stream)).isfinite().all()


def test_recordings_joined_byte_by_byte_play_one_after_the_other(tmp_path):
    write_flashes(tmp_path / "part.ts", 3)
    content = (tmp_path / "part.ts").read_bytes()
    (tmp_path / "both.ts").write_bytes(content + content)
    stream = as_it_comes(tmp_path / "both.ts")
    assert stream.fps == 24 and abs(len(stream) - 144) <= 1
    found = offsets(tmp_path / "both.ts")
    assert len(found) == 6 and max(map(abs, found)) < 21


def test_another_size_later_on_is_shown_at_the_first_size(tmp_path):
    for name, size in (("one", (64, 96)), ("two", (48, 64))):
        write_at_times(tmp_path / f"{name}.ts", counted_video(24, *size), range(24), ticks=24, g=12, crf=10)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    stream = as_it_comes(path)
    assert stream.read(0, len(stream)).shape[1:] == (64, 96, 3) and len(stream) >= 47


def test_a_cover_image_is_not_the_video(tmp_path):
    write_video(TensorFrames(counted_video(12, 64, 96), 24), tmp_path / "plain.mp4")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "cover.png")
    path = tmp_path / "covered.mp4"
    with (
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(tmp_path / "plain.mp4")) as video,
        av.open(str(path), "w") as sink,
    ):
        image = sink.add_stream_from_template(cover.streams.video[0])
        image.disposition = av.stream.Disposition.attached_pic
        shown = sink.add_stream_from_template(video.streams.video[0])
        for source, stream in ((cover, image), (video, shown)):
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    sink.mux(packet)
    opened = VideoFrames.open(path)
    assert (len(opened), opened.width) == (12, 96)


@pytest.mark.parametrize(
    ("video", "audio", "suffix"),
    [
        ("mjpeg", "pcm_s16le", ".avi"),
        ("mpeg4", "ac3", ".avi"),
        ("libx264", "pcm_s16le", ".mkv"),
        ("libx264", "ac3", ".ts"),
        ("mpeg2video", "mp2", ".mpg"),
        ("libx264", "flac", ".mkv"),
    ],
)
def test_audio_keeps_time_whatever_the_codecs(tmp_path, video, audio, suffix):
    path = tmp_path / f"video{suffix}"
    if not {video, audio} <= av.codecs_available:
        pytest.skip("this PyAV cannot write it")
    if video == "mjpeg":
        write_mjpeg(path, audio)
    else:
        write_flashes(path, 3, video=video, audio=audio)
    found = offsets(path)
    assert len(found) == 3 and max(map(abs, found)) < 21


def write_mjpeg(path: Path, audio: str) -> None:
    write_flashes(path.with_suffix(".mkv"), 3, audio=audio)
    source = VideoFrames.open(path.with_suffix(".mkv"))
    track = source.audio().read().numpy()[0]
    with av.open(str(path), "w") as container:
        shown = container.add_stream("mjpeg", rate=24)
        shown.width, shown.height, shown.pix_fmt = 96, 64, "yuvj420p"
        heard = container.add_stream(audio, rate=RATE, layout="mono")
        for number, image in enumerate((source.read(0, len(source)).numpy() * 255).astype(np.uint8)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(shown.encode(frame))
            if number % 24 == 0:
                _mux_second(container, heard, track, number // 24, (), Fraction(0))
        container.mux(shown.encode(None))
        container.mux(heard.encode(None))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_gap_in_the_audio_is_silent_and_moves_nothing(tmp_path, suffix):
    path = tmp_path / f"gap{suffix}"
    write_flashes(path, 5, missing=(2,))
    found = offsets(path)
    assert len(found) == 4 and max(map(abs, found)) < 21


CHANNELS = """
import sys, av, numpy as np
from fractions import Fraction
from streaming_core.frames import AudioTrack
for path, layout in zip(sys.argv[1::2], sys.argv[2::2]):
    channels = len(av.AudioLayout(layout).channels)
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout=layout)
        wave = np.repeat((np.arange(channels) + 1) * 1000, 8000).reshape(channels, 8000).T.astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave).reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for _ in range(3):
        track = AudioTrack.from_file(path)
        levels = (track.read()[:, 4000] * 32768 / 1000).round().int().tolist()
        assert sorted(levels) == list(range(1, channels + 1)), (layout, track.layout, levels)
print("whole")
"""


@pytest.mark.parametrize("suffix", [".mov", ".caf", ".wav", ".mkv"])
def test_channels_in_an_order_of_the_files_own_do_not_end_the_process(tmp_path, suffix):
    """QuickTime stores the sides of 6.1 and 7.1 before the backs. PyAV frees what says so twice."""
    pairs = [text for layout in ("6.1", "7.1", "5.1", "5.0") for text in (str(tmp_path / (layout + suffix)), layout)]
    command = [sys.executable, "-c", CHANNELS, *pairs]
    run = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == "whole", run.stdout + run.stderr


# Colors and shapes


def write_tagged(path: Path, frames: np.ndarray, pixel_format: str, codec="ffv1", ratio=None, **tags) -> None:
    """RGB frames, uint8 or uint16, in any format, with any color tags; `colorspace` is used for the conversion too."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if ratio is not None:
            stream.options = {"x264-params": f"sar={ratio.numerator}/{ratio.denominator}", "crf": "4"}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, image in enumerate(frames):
            source = av.VideoFrame.from_ndarray(image, format="rgb48le" if image.dtype == np.uint16 else "rgb24")
            accurate = 4 | 0x40000 | 0x2000 | 0x4000
            matrix = {"dst_colorspace": tags.get("colorspace", 5), "src_colorspace": 4}
            frame = source.reformat(format=pixel_format, interpolation=accurate, **matrix)
            if image.dtype == np.uint16 and tags.get("colorspace") == 1:
                frame = to_video_frame(image, pixel_format)  # swscale makes more than eight bits too bright
            frame.pts, frame.time_base = number, Fraction(1, 24)
            for name, value in tags.items():
                if hasattr(frame, name):
                    setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("ratio", "size"), [(Fraction(64, 45), (576, 1024)), (Fraction(8, 9), (648, 720))])
def test_pixels_that_are_not_square_are_made_so(tmp_path, ratio, size):
    frames = np.full((2, 576, 720, 3), 90, np.uint8)
    write_tagged(tmp_path / "dv.mp4", frames, "yuv420p", "libx264", ratio=ratio)
    stream = VideoFrames.open(tmp_path / "dv.mp4")
    assert (stream.height, stream.width) == size and "not square" in stream.notes[0]
    assert (stream.read(0, 1) * 255 - 90).abs().max() < 2


@pytest.mark.parametrize("colorspace", [9, 1, 5])
def test_the_matrix_of_wide_gamut_is_known(tmp_path, colorspace):
    chart = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    write_tagged(tmp_path / "wide.mkv", chart, "yuv444p", colorspace=colorspace)
    read = VideoFrames.open(tmp_path / "wide.mkv").read(0, 1).numpy() * 255
    assert np.abs(read - chart).mean() < 1


@pytest.mark.parametrize(("height", "matrix"), [(576, 5), (720, 1)])
def test_untagged_video_is_taken_as_players_take_it(tmp_path, height, matrix):
    frames = np.full((1, height, 64, 3), (200, 40, 40), np.uint8)
    write_tagged(tmp_path / "plain.mkv", frames, "yuv444p", colorspace=matrix)
    path = tmp_path / "untagged.mkv"
    with av.open(str(tmp_path / "plain.mkv")) as source, av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv444p"
        for frame in source.decode(video=0):
            frame.colorspace = 2
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 2
    assert np.abs(VideoFrames.open(path).read(0, 1).numpy() * 255 - (200, 40, 40)).max() < 2


def test_hdr_is_tone_mapped_and_says_so(tmp_path):
    """Gray at reference white is near white in SDR, what is brighter is brighter still; nothing is tinted."""
    nits = np.array([0.0, 1, 10, 50, 100, 203, 1000, 4000])
    levels = ((nits / 10000) ** 0.1593017578125 * 18.8515625 + 0.8359375) / (
        1 + 18.6875 * (nits / 10000) ** 0.1593017578125
    )
    signal = np.round(levels**78.84375 * 65535).astype(np.uint16)
    frames = signal.repeat(8)[None, None, :, None].repeat(16, 1).repeat(3, 3)
    tags = {"colorspace": 9, "color_trc": 16, "color_primaries": 9}
    write_tagged(tmp_path / "hdr.mp4", frames, "yuv420p10le", "libx265", **tags)
    stream = VideoFrames.open(tmp_path / "hdr.mp4")
    assert any("HDR (PQ)" in note for note in stream.notes)
    shown = stream.read(0, 1)[0, 8, 4::8]
    assert (shown.amax(1) - shown.amin(1)).max() < 0.01, "gray stays gray"
    assert (shown[1:, 1] > shown[:-1, 1]).all() and shown[0].max() < 0.02
    assert 0.5 < float(shown[5, 1]) < 0.75 and float(shown[7, 1]) > 0.9


def test_wide_gamut_is_converted(tmp_path):
    """The red of BT.709, written in BT.2020 primaries, is that red again; white stays white."""
    light = np.array([[0.6274, 0.0691, 0.0164], [1.0, 1, 1], [0.2, 0.2, 0.2]])
    signal = np.round(light ** (1 / 2.4) * 65535).astype(np.uint16)
    frames = signal[None, None].repeat(16, 1).repeat(16, 2)
    tags = {"colorspace": 9, "color_trc": 14, "color_primaries": 9}
    write_tagged(tmp_path / "wide.mkv", frames, "yuv444p10le", **tags)
    stream = VideoFrames.open(tmp_path / "wide.mkv")
    shown = stream.read(0, 1)[0, 8, 8::16]
    assert any("gamut" in note for note in stream.notes)
    assert torch.allclose(shown[0], torch.tensor([1.0, 0, 0]), atol=0.06)
    assert (shown[1] - 1).abs().max() < 0.01 and (shown[2] - 0.2 ** (1 / 2.4)).abs().max() < 0.01


def test_transparent_parts_are_black_and_said(tmp_path):
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[..., :3] = (0, 255, 0)
    rgba[16:48, 24:72] = (200, 30, 30, 255)
    with av.open(str(tmp_path / "cutout.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "argb"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="argb")))
        container.mux(stream.encode(None))
    opened = VideoFrames.open(tmp_path / "cutout.mov")
    shown = opened.stored(0, 1)[0]
    assert shown[4, 4].tolist() == [0, 0, 0] and shown[32, 48].tolist() == [200, 30, 30]
    assert any("transparent" in note for note in opened.notes)


def test_interlaced_video_is_named_and_can_be_deinterlaced(tmp_path):
    moving = (torch.linspace(0, 40, 96)[None, None, :] - torch.arange(48)[:, None, None]).sin().mul(0.5).add(0.5)
    fields = (moving.expand(48, 64, 96).unsqueeze(-1).expand(-1, -1, -1, 3) * 255).to(torch.uint8).numpy()
    path = tmp_path / "dv.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "crf": "6", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
        for number in range(24):
            woven = fields[2 * number].copy()
            woven[1::2] = fields[2 * number + 1][1::2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    combed, clean = VideoFrames.open(path), VideoFrames.open(path, deinterlace=True)
    assert any("interlaced" in note for note in combed.notes) and not clean.notes
    whole = clean.read(0, 24)
    assert len(clean) == 24 and combs(whole) < 0.4 * combs(combed.read(0, 24))
    for number in (23, 8, 7, 9, 0, 16):
        assert torch.equal(clean.read(number, number + 1), whole[number : number + 1]), "wherever reading begins"


def combs(frames: torch.Tensor) -> float:
    gray = frames.mean(-1)
    between = (gray[:, 1:-1] - (gray[:, :-2] + gray[:, 2:]) / 2).abs() - (gray[:, :-2] - gray[:, 2:]).abs()
    return float(between.clamp(min=0).mean())


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "nv12"])
def test_reading_neither_darkens_nor_tints(tmp_path, pixel_format):
    chart = np.random.default_rng(1).integers(0, 256, (1, 5, 8, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    deep = "10" in pixel_format
    codec = "rawvideo" if pixel_format == "nv12" else "ffv1"
    path = tmp_path / "chart.mkv"
    write_tagged(path, chart.astype(np.uint16) * 257 if deep else chart, pixel_format, codec, colorspace=1)
    error = VideoFrames.open(path).read(0, 1).numpy() * 255 - chart
    inner = error.reshape(5, 16, 8, 16, 3)[:, 4:-4, :, 4:-4]
    assert np.abs(inner.mean((0, 1, 2, 3))).max() < 0.3 and np.abs(inner).mean() < 1.2


def test_ten_bits_are_kept(tmp_path):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16)[None, None, :, None].repeat(32, 1).repeat(3, 3)
    write_tagged(tmp_path / "deep.mkv", ramp, "yuv444p10le", colorspace=1)
    stream = VideoFrames.open(tmp_path / "deep.mkv")
    assert len(stream.read(0, 1)[0, 16, :, 1].unique()) > 700
    assert stream.stored(0, 1).dtype == torch.float32
    assert JoinedFrames((stream.trimmed(0, 1), TensorFrames(torch.zeros(1, 32, 1024, 3), 24))).bits == 10


def test_stored_frames_are_those_that_are_read(tmp_path):
    write_video(TensorFrames(smooth_video(8, 32, 48), 24), tmp_path / "video.mp4")
    stream = VideoFrames.open(tmp_path / "video.mp4")
    stored = stream.trimmed(1, 7).stored(1, 4)
    assert stored.dtype == torch.uint8
    assert torch.equal(stored.float() / 255, stream.read(2, 5))


# Damage


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("seed", [1, 5, 7])
def test_damage_in_the_middle_is_held_over_and_named(tmp_path, caplog, suffix, seed):
    video = smooth_video(96, 64, 96)
    whole = tmp_path / f"whole{suffix}"
    encoder = "mpeg4" if suffix == ".avi" else "libx264"
    write_at_times(
        whole, video, range(96), encoder, ticks=24, g=24, **({"crf": 10} if encoder == "libx264" else {"b": 8_000_000})
    )
    content, chance = bytearray(whole.read_bytes()), random.Random(seed)
    at = int(len(content) * chance.uniform(0.35, 0.65))
    content[at : at + 200] = chance.randbytes(200)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    stream = as_it_comes(path)
    with caplog.at_level(logging.WARNING, read_log.name):
        read = torch.cat(list(stream.slices(7)))
    assert abs(len(stream) - 96) <= 2
    assert psnr(read[:24], video[:24]) > 28 and psnr(read[-12:], video[-12:]) > 28, "the rest is whole"
    for record in caplog.records:
        assert str(path) in record.getMessage() and "whole one is shown" in record.getMessage()


def test_a_damaged_frame_shows_the_last_whole_one(tmp_path, caplog):
    """Every frame is a keyframe here, so that damage touches one frame alone."""
    path = tmp_path / "video.mkv"
    write_at_times(path, counted_video(24, 64, 96), range(24), "ffv1", ticks=24, g=1, level=3, slicecrc=1)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for number in (9, 10, 17):
        at, size = places[number]
        content[at + size // 2 : at + size] = bytes(size - size // 2)
    path.write_bytes(content)
    stream = VideoFrames.open(path)
    expected = [8 if number in (9, 10) else 16 if number == 17 else number for number in range(24)]
    with caplog.at_level(logging.WARNING, read_log.name):
        assert all_numbers(stream) == expected
    assert "9 to 10, 17 cannot be decoded" in caplog.text
    assert numbers_in(stream.read(10, 11)) == [8] and numbers_in(stream.read(17, 19)) == [16, 18]


def test_a_file_that_is_cut_off_is_whole_or_refused_in_a_sentence(tmp_path):
    write_video(TensorFrames(counted_video(48, 64, 96), 24), tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    for share in (0.3, 0.7, 0.98):
        path = tmp_path / "cut.mp4"
        path.write_bytes(content[: int(len(content) * share)])
        try:
            assert all_numbers(VideoFrames.open(path)) == list(range(48)) and share > 0.9
        except VideoReadError as error:
            assert "\n" not in str(error) and str(path) in str(error)
