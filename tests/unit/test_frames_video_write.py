"""Video files as they are written: what players will find in them, and what is left behind when it goes wrong."""

from __future__ import annotations

import json
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from streaming_core.errors import FrameError, FrameMismatchError, SettingsError, VideoReadError, VideoWriteError
from streaming_core.frames import CODECS, AudioTrack, TensorFrames, VideoFrames, VideoWriter, check_quality, write_video
from tests.unit.frame_videos import LazyVideo, psnr, smooth_video

NTSC = Fraction(24000, 1001)
EVERY_KIND = [(codec, suffix) for codec, choice in CODECS.items() for suffix in choice.suffixes]


class Stop(Exception):
    """Cancel."""


def probe(path):
    """What is in a file: facts of the streams, decoded images, decoded samples `[C, n]`."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        context = video.codec_context
        facts = {
            "codec": context.codec.canonical_name,
            "profile": context.profile,
            "pixels": context.pix_fmt,
            "rate": video.average_rate,
            "size": (context.width, context.height),
            "tags": (context.colorspace, context.color_primaries, context.color_trc, context.color_range),
            "seconds": container.duration / av.time_base,
            "metadata": {key.lower(): value for key, value in container.metadata.items()},
            "audio": len(container.streams.audio),
        }
        times = [frame.time for frame in container.decode(video)]
    return facts, times


def audio(path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1), rate


def tone(seconds: float, rate: int = 48000, channels: int = 2) -> AudioTrack:
    wave = 0.5 * torch.sin(torch.arange(round(seconds * rate)) * (2 * torch.pi * 440 / rate))
    return AudioTrack.from_waveform(wave.expand(1, channels, -1), rate)


def nothing_left(folder) -> bool:
    return not list(folder.iterdir())


@pytest.mark.parametrize(("codec", "suffix"), EVERY_KIND)
@pytest.mark.parametrize("num_frames", [1, 26])
def test_every_kind_of_file_plays(tmp_path, codec, suffix, num_frames):
    video = smooth_video(num_frames, 66, 98)
    path = tmp_path / f"video{suffix}"
    info = write_video(
        TensorFrames(video, NTSC), path, codec=codec, audio=tone(0.4), metadata={"workflow": {"nodes": [1]}}
    )
    facts, times = probe(path)
    assert (info.num_frames, info.height, info.width, info.fps) == (num_frames, 66, 98, NTSC)
    assert info.seconds == num_frames / NTSC
    assert len(times) == num_frames
    assert facts["rate"] == NTSC
    assert np.allclose(times, [float(number / NTSC) for number in range(num_frames)], atol=0.001)
    assert facts["seconds"] == pytest.approx(num_frames / NTSC, abs=0.05)
    assert facts["codec"] == {"h265": "hevc"}.get(codec, codec)
    assert json.loads(facts["metadata"]["workflow"]) == {"nodes": [1]}
    assert facts["audio"] == 1
    if codec != "ffv1":
        assert facts["pixels"] == "yuv420p"
        assert facts["tags"] == (1, 1, 1, 1)
    if codec == "h264":
        assert facts["profile"] == "High"
    read = VideoFrames.open(path).read(0, num_frames)
    if codec == "ffv1":
        assert torch.equal(read, (video * 255).round() / 255), "lossless, and rounded instead of truncated"
    else:
        assert psnr(read, video) > 38


@pytest.mark.parametrize(
    "fps", [8, 24, 25, 30, NTSC, Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25, 2), 144]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rates_are_exact_in_the_file(tmp_path, fps, suffix):
    path = tmp_path / f"video{suffix}"
    write_video(TensorFrames(smooth_video(9, 32, 32), fps), path)
    facts, times = probe(path)
    # Matroska keeps the duration of a frame, in whole nanoseconds; what that means is found again when it is read.
    assert facts["rate"] == (fps if suffix == ".mp4" else pytest.approx(float(fps), rel=1e-6))
    assert VideoFrames.open(path).fps == fps
    assert np.allclose(
        times, [float(number / Fraction(fps)) for number in range(9)], atol=0.00051 if suffix == ".mkv" else 1e-9
    )


@pytest.mark.parametrize(
    ("pixel_format", "codec", "size", "stored"),
    [
        ("yuv420p", "h264", (33, 51), (34, 52)),
        ("yuv420p", "h264", (32, 51), (32, 52)),
        ("yuv422p", "h264", (33, 51), (33, 52)),
        ("yuv444p", "h264", (33, 51), (33, 51)),
        ("yuv420p", "h265", (65, 71), (66, 72)),
        ("yuv420p", "av1", (65, 67), (66, 68)),
        ("bgr0", "ffv1", (33, 51), (33, 51)),
        ("yuv420p", "h264", (1, 1), (2, 2)),
    ],
)
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path, pixel_format, codec, size, stored):
    video = smooth_video(3, *size)
    path = tmp_path / ("video.mkv" if codec == "ffv1" else "video.mp4")
    info = write_video(TensorFrames(video, 24), path, codec=codec, pixel_format=pixel_format)
    stream = VideoFrames.open(path)
    assert (info.height, info.width) == (stream.height, stream.width) == stored
    read = stream.read(0, 3)
    assert psnr(read[:, : size[0], : size[1]], video) > 35
    padded = torch.nn.functional.pad(
        video.movedim(-1, 1), (0, stored[1] - size[1], 0, stored[0] - size[0]), mode="replicate"
    )
    assert psnr(read, padded.movedim(1, -1)) > 35


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("h264", "yuv420p10le"), ("h265", "yuv420p10le"), ("ffv1", "gbrp16le")]
)
def test_deep_color_is_kept(tmp_path, codec, pixel_format):
    ramp = torch.linspace(0.4, 0.42, 64).expand(3, 64, 64).unsqueeze(-1).expand(-1, -1, -1, 3)
    path = tmp_path / ("video.mkv" if codec == "ffv1" else "video.mp4")
    write_video(
        TensorFrames(ramp, 24), path, codec=codec, pixel_format=pixel_format, crf=None if codec == "ffv1" else 1
    )
    read = VideoFrames.open(path).read(0, 3)
    assert len(torch.unique(read[0, 32, :, 1])) > 12, "eight bits have six steps here"
    assert (read - ramp).abs().max() < (1e-4 if codec == "ffv1" else 3 / 1023)


def test_flat_colors_come_back(tmp_path):
    """Matrix and range of writing and reading fit each other; a wrong one is off by up to 40 of 255."""
    colors = torch.rand(12, 1, 1, 3, generator=torch.Generator().manual_seed(4))
    video = (colors * 255).round().div(255).expand(-1, 32, 32, -1)
    path = tmp_path / "video.mp4"
    write_video(TensorFrames(video, 24), path, crf=1)
    assert (VideoFrames.open(path).read(0, 12) - video).abs().max() <= 4 / 255


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_bitrates_decide_the_size_of_every_codec(tmp_path, codec):
    noise = torch.rand(60, 96, 128, 3, generator=torch.Generator().manual_seed(0))
    sizes = []
    for bitrate in (400_000, 1_600_000):
        write_video(TensorFrames(noise, 30), tmp_path / "video.mp4", codec=codec, bitrate=bitrate)
        sizes.append((tmp_path / "video.mp4").stat().st_size * 8 / 2)
    assert 0.5 < sizes[0] / 400_000 < 2.5 and 2 < sizes[1] / sizes[0] < 8, sizes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("h264", ".mp4", 52, None), "0 (best) .. 51"),
        (("h265", ".mp4", 18, 2_000_000), "exclude each other"),
        (("ffv1", ".mkv", 18, None), "lossless"),
        (("av1", ".mov", 18, None), ".webm"),
        (("av1", ".mp4", 63, None), None),
        (("ffv1", ".mkv", None, None), None),
    ],
)
def test_quality_can_be_checked_without_frames(given, words):
    if words is None:
        check_quality(*given)
        return
    with pytest.raises(SettingsError) as caught:
        check_quality(*given)
    assert words in str(caught.value)


def test_bitrate_is_kept(tmp_path):
    noise = torch.rand(48, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    for bitrate in (200_000, 800_000):
        write_video(TensorFrames(noise, 24), tmp_path / f"{bitrate}.mp4", bitrate=bitrate)
        actual = (tmp_path / f"{bitrate}.mp4").stat().st_size * 8 / 2
        assert 0.5 * bitrate < actual < 2 * bitrate


def test_crf_is_kept(tmp_path):
    video = TensorFrames(smooth_video(12, 64, 96), 24)
    sizes = [
        (write_video(video, tmp_path / f"{crf}.mp4", crf=crf), (tmp_path / f"{crf}.mp4").stat().st_size)[1]
        for crf in (8, 20, 35)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_slices_make_the_same_file_as_one_write(tmp_path):
    video = smooth_video(21, 32, 48)
    with VideoWriter(tmp_path / "a.mkv", 24, codec="ffv1") as writer:
        writer.write(video)
    with VideoWriter(tmp_path / "b.mkv", 24, codec="ffv1") as writer:
        for start, stop in ((0, 1), (1, 1), (1, 12), (12, 21)):
            writer.write(video[start:stop])
    assert writer.num_frames == 21
    a, b = (VideoFrames.open(tmp_path / name).read(0, 21) for name in ("a.mkv", "b.mkv"))
    assert torch.equal(a, b)


def test_inference_tensors_and_views_can_be_written(tmp_path):
    with torch.inference_mode(), VideoWriter(tmp_path / "video.mp4", 24) as writer:
        writer.write(smooth_video(5, 32, 48).half())
        writer.write((smooth_video(5, 48, 32) * 255).to(torch.uint8).transpose(1, 2))
        writer.write(torch.rand(2, 32, 48))
        writer.write(torch.rand(2, 32, 48, 4))
    assert len(VideoFrames.open(tmp_path / "video.mp4")) == 14


def test_frames_written_are_frames_given_even_if_they_change_afterwards(tmp_path):
    video = (smooth_video(8, 32, 48) * 255).round() / 255
    buffer = torch.empty(2, 32, 48, 3)
    with VideoWriter(tmp_path / "video.mkv", 24, codec="ffv1", queue_frames=8) as writer:
        for start in range(0, 8, 2):
            buffer.copy_(video[start : start + 2])
            writer.write(buffer)
            buffer.zero_()
    assert torch.equal(VideoFrames.open(tmp_path / "video.mkv").read(0, 8), video)


# Audio


@pytest.mark.parametrize(
    ("given_seconds", "channels", "rate"), [(0.3, 1, 44100), (5.0, 2, 48000), (1.0, 2, 22050), (1.0, 6, 48000)]
)
def test_audio_ends_with_the_video(tmp_path, given_seconds, channels, rate):
    path = tmp_path / "video.mkv"
    write_video(LazyVideo(24, 32, 32, NTSC), path, codec="ffv1", audio=tone(given_seconds, rate, channels))
    samples, found = audio(path)
    video_seconds = 24 / float(NTSC)
    assert samples.shape[0] in (1, channels)  # packed formats decode to one row
    count = samples.size // channels
    assert found == rate and abs(count - video_seconds * rate) <= 1, "to the sample"
    flat = samples.reshape(channels, -1) if samples.shape[0] == channels else samples.reshape(-1, channels).T
    level = np.abs(flat / np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else flat)
    heard = int(min(given_seconds, video_seconds) * rate)
    assert level[:, : heard - 100].mean() > 0.25
    if heard + 10 < count:
        assert level[:, heard + 10 :].max() == 0, "silence after the end of the source"


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 11025), (".mp4", 96000), (".webm", 44100)])
def test_audio_in_lossy_containers(tmp_path, suffix, rate):
    path = tmp_path / f"video{suffix}"
    write_video(LazyVideo(24, 64, 64), path, codec="av1" if suffix == ".webm" else "h264", audio=tone(2, rate))
    samples, found = audio(path)
    assert samples.shape[1] / found == pytest.approx(1, abs=1100 / found)
    peak = np.abs(np.fft.rfft(samples[0, : found // 2])).argmax() * 2
    assert peak == pytest.approx(440, abs=4), "the tone is neither faster nor slower"


def test_audio_is_carried_from_a_video(tmp_path):
    clicks = torch.zeros(1, 48000 * 3)
    for second in (0, 1, 2):
        clicks[0, second * 48000 + 24000 : second * 48000 + 24100] = 0.9
    source = tmp_path / "source.mkv"
    write_video(LazyVideo(72, 32, 32), source, codec="ffv1", audio=AudioTrack.from_waveform(clicks, 48000))
    for start in (0, 1, 1.25):
        write_video(
            LazyVideo(36, 32, 32), tmp_path / "cut.mkv", codec="ffv1", audio=AudioTrack.from_file(source, start)
        )
        samples, _ = audio(tmp_path / "cut.mkv")
        assert abs(samples.size - 72000) <= 1
        expected = round((np.ceil(start - 0.5) + 0.5 - start) * 48000)
        assert int(np.abs(samples).ravel().argmax()) == pytest.approx(expected, abs=110)


@pytest.mark.parametrize("start", [0, 0.5, 1.25])
@pytest.mark.parametrize("seconds", [0.001, 0.75, 10])
def test_a_part_of_a_audio_ends_where_it_shall(tmp_path, start, seconds):
    wave = torch.rand(2, 48000 * 3, generator=torch.Generator().manual_seed(0)) * 0.9
    write_video(LazyVideo(72, 32, 32), tmp_path / "a.mkv", codec="ffv1", audio=AudioTrack.from_waveform(wave, 48000))
    part = AudioTrack.from_file(tmp_path / "a.mkv", start, seconds)
    expected = wave[:, round(start * 48000) : round((start + seconds) * 48000)]
    assert torch.allclose(part.read(), expected, atol=1e-4)
    write_video(LazyVideo(72, 32, 32), tmp_path / "b.mkv", codec="ffv1", audio=part)
    written = AudioTrack.from_file(tmp_path / "b.mkv").read()
    assert torch.allclose(written[:, : expected.shape[1]], expected, atol=2e-4)
    assert written.shape[1] == 3 * 48000 and not written[:, expected.shape[1] :].any(), "then silence"


def test_audio_from_what_has_none(tmp_path):
    write_video(LazyVideo(3, 32, 32), tmp_path / "mute.mp4")
    with pytest.raises(VideoReadError, match="no audio"):
        AudioTrack.from_file(tmp_path / "mute.mp4")
    with pytest.raises(VideoReadError, match="cannot be read"):
        AudioTrack.from_file(tmp_path / "missing.mp4")
    with pytest.raises(SettingsError, match="9, 100"):
        AudioTrack.from_waveform(torch.zeros(9, 100), 48000)
    with pytest.raises(SettingsError, match="2, 2, 100"):
        AudioTrack.from_waveform(torch.zeros(2, 2, 100), 48000)


# What is left behind


def test_cancel_leaves_nothing(tmp_path):
    for calls in (1, 2, 7, 20):
        left = [calls]

        def check_cancel(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Stop

        with pytest.raises(Stop):
            write_video(LazyVideo(400, 64, 64), tmp_path / "video.mp4", check_cancel=check_cancel, slice_frames=4)
        assert nothing_left(tmp_path)


def test_cancel_while_the_encoder_finishes(tmp_path):
    """All frames are written and the end of the block waits for a slow encoder; Cancel must still come through."""
    video = torch.rand(20, 64, 64, 3)
    options = {"codec": "h265", "preset": "veryslow", "queue_frames": 64}
    began = time.monotonic()
    with VideoWriter(tmp_path / "video.mp4", 24, **options) as writer:
        writer.write(video)
    whole = time.monotonic() - began
    (tmp_path / "video.mp4").unlink()
    canceled = threading.Event()

    def check_cancel():
        if canceled.is_set():
            raise Stop

    began = time.monotonic()
    with pytest.raises(Stop):
        with VideoWriter(tmp_path / "video.mp4", 24, check_cancel=check_cancel, **options) as writer:
            writer.write(video)
            canceled.set()
    assert time.monotonic() - began < 0.5 * whole + 0.3
    assert nothing_left(tmp_path)


def test_an_error_of_the_source_leaves_nothing_and_no_thread(tmp_path):
    def frames():
        yield torch.rand(5, 32, 32, 3)
        raise RuntimeError("the model broke")

    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the model broke"):
            write_video(frames(), tmp_path / "video.mp4", 24)
    assert nothing_left(tmp_path)
    assert threading.active_count() == before


def test_an_earlier_file_stays_when_the_next_run_fails(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(LazyVideo(3, 32, 32), path)
    before = path.read_bytes()
    with pytest.raises(FrameError):
        write_video(iter([torch.rand(2, 32, 32, 3), torch.full((1, 32, 32, 3), float("nan"))]), path, 24)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_there_until_it_is_whole(tmp_path):
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 24) as writer:
        writer.write(torch.rand(30, 32, 32, 3))
        assert not path.exists()
        assert writer.info is None
    assert path.exists() and writer.info.path == path


def test_a_failing_encoder_is_reported_and_does_not_hang(tmp_path, monkeypatch):
    def broken(image, pixel_format):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streaming_core.frames.video_write.to_video_frame", broken)
    with pytest.raises(VideoWriteError, match="No space left"):
        write_video(LazyVideo(500, 32, 32), tmp_path / "video.mp4")
    assert nothing_left(tmp_path)


def test_a_file_is_decoded_ahead_of_the_encoder_and_closed_in_the_end(tmp_path):
    source, copy = tmp_path / "source.mkv", tmp_path / "copy.mkv"
    write_video(LazyVideo(50, 32, 48), source, codec="ffv1")
    stream = VideoFrames.open(source)
    seen = []
    write_video(stream.trimmed(3), copy, codec="ffv1", progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(VideoFrames.open(copy).read(0, 47), stream.read(3, 50))
    assert seen[-1] == (47, 47) and seen == sorted(seen)

    def stop():
        seen.append(None)
        if len(seen) > 30:
            raise Stop

    with pytest.raises(Stop):
        write_video(stream, copy, codec="ffv1", check_cancel=stop)
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]
    assert len(VideoFrames.open(copy)) == 47, "the earlier file stays"


def test_progress_counts_frames(tmp_path):
    seen = []
    write_video(LazyVideo(21, 32, 32), tmp_path / "video.mp4", slice_frames=8, progress=lambda *done: seen.append(done))
    assert seen == [(8, 21), (16, 21), (21, 21)]


def test_encoding_overlaps_with_the_making_of_frames(tmp_path):
    """The queue takes frames while the encoder is busy, and no more than it has room for."""
    gate = threading.Event()
    made = []

    def check_cancel():
        if len(made) >= 9:
            gate.set()

    def frames():
        for number in range(30):
            made.append(number)
            yield torch.rand(1, 32, 32, 3)

    from streaming_core.frames import video_write

    original = video_write.to_video_frame

    def slow(image, pixel_format):
        gate.wait(20)
        return original(image, pixel_format)

    video_write.to_video_frame = slow
    try:
        writer = VideoWriter(tmp_path / "video.mp4", 24, queue_frames=8, check_cancel=check_cancel)
        with writer:
            for part in frames():
                if not gate.is_set():
                    assert len(made) <= 10, "one is encoded, eight wait, one is offered"
                writer.write(part)
    finally:
        video_write.to_video_frame = original
    assert gate.is_set() and writer.info.num_frames == 30


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("video.mp4", {"codec": "mpeg9"}, "mpeg9"),
        ("video.mp4", {"codec": "ffv1"}, ".mkv"),
        ("video.webm", {"codec": "h264"}, ".mp4"),
        ("video", {}, "suffix"),
        ("video.mp4", {"crf": 52}, "0 .best. .. 51"),
        ("video.mp4", {"crf": -1}, "0 .best. .. 51"),
        ("video.mp4", {"crf": 20, "bitrate": 100000}, "exclude"),
        ("video.mp4", {"bitrate": 10}, "too low"),
        ("video.mkv", {"codec": "ffv1", "crf": 3}, "lossless"),
        ("video.mp4", {"pixel_format": "rgb24"}, "yuv420p"),
        ("video.mp4", {"fps": 0}, "0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, name, options, words):
    with pytest.raises(SettingsError, match=words):
        VideoWriter(tmp_path / name, **{"fps": 24, **options})
    assert nothing_left(tmp_path)


def test_frames_that_do_not_fit(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(FrameMismatchError, match="frame 2 is 32x33.*32x32"):
        write_video(iter([torch.rand(2, 32, 32, 3), torch.rand(2, 33, 32, 3)]), path, 24)
    with pytest.raises(VideoWriteError, match="no frames"):
        write_video(iter([]), path, 24)
    with pytest.raises(FrameError, match="not numbers"):
        write_video(iter([torch.full((1, 32, 32, 3), float("nan"))]), path, 24)
    with pytest.raises(SettingsError, match="frame rate"):
        write_video(iter([torch.rand(1, 32, 32, 3)]), path)
    with pytest.raises(FrameError, match="shape"):
        write_video(iter([torch.rand(32, 32)]), path, 24)
    for size in ((32, 80), (80, 48), (63, 63)):
        for codec in ("h265", "av1"):
            with pytest.raises(SettingsError, match="at least 64x64.*h264"):
                write_video(LazyVideo(3, *size), tmp_path / "small.mp4", codec=codec)
    assert nothing_left(tmp_path)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoWriteError, match="cannot be written"):
        write_video(LazyVideo(3, 32, 32), tmp_path / "file" / "video.mp4")


def test_a_writer_is_used_once(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 24)
    with pytest.raises(VideoWriteError, match="with block"):
        writer.write(torch.rand(1, 32, 32, 3))
    with writer:
        writer.write(torch.rand(1, 32, 32, 3))
    with pytest.raises(VideoWriteError, match="used already"), writer:
        pass
