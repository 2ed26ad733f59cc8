"""Nodes of frame streams inside a real host: its images, videos and audio, in and out."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import FrameMismatchError, FrameRangeError, NotNumbersError, SettingsError, VideoReadError
from streaming_core.frames import AudioTrack, FrameStream, TensorFrames, VideoFrames, write_video
from tests.unit.frame_videos import LazyVideo, counted_video, numbers_in, write_at_times

import_host()
import_pack()

import comfy.model_management as mm  # noqa: E402
import folder_paths  # noqa: E402
from comfy.cli_args import args  # noqa: E402
from comfy_api.latest import InputImpl, Types  # noqa: E402
from comfyui_streamingt2v.nodes import extend, metrics, save  # noqa: E402
from comfyui_streamingt2v.nodes import frames as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host.video import streams  # noqa: E402
from comfyui_streamingt2v.nodes.host.video.audio import FileAudio, to_track  # noqa: E402

RATE = 48000
trims = pytest.mark.skipif(
    not hasattr(InputImpl.VideoFromFile, "get_active_trim_window"), reason="this host trims no videos"
)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    with torch.inference_mode():
        yield


def clicks(seconds: float) -> torch.Tensor:
    """AUDIO samples `[1, 2, T]` with a click in the middle of every second, louder from one to the next."""
    wave = torch.zeros(1, 2, round(seconds * RATE))
    for second in range(int(seconds)):
        wave[..., second * RATE + RATE // 2 : second * RATE + RATE // 2 + 100] = 0.2 + 0.1 * second
    return wave


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Four seconds at 12 fps, every frame shows its number, with clicks; lossless."""
    path = tmp_path_factory.mktemp("video") / "video.mkv"
    audio = AudioTrack.from_waveform(clicks(4), RATE)
    write_video(TensorFrames(counted_video(48), 12), path, codec="ffv1", audio=audio)
    return path


def video(path: Path, **trim):
    return InputImpl.VideoFromFile(str(path), **trim)


def from_video(value, fps: float = 0.0):
    return nodes.StreamFromVideo.execute(value, fps).result


def numbers(stream: FrameStream) -> list[int]:
    return numbers_in(stream.read(0, len(stream)))


def hidden(node):
    """The node's class with what the host hides in it: a prompt and a workflow."""
    behind = SimpleNamespace(prompt={"1": {"class_type": "X"}}, extra_pnginfo={"workflow": {"a": 1}})
    return type(node.__name__, (node,), {"hidden": behind})


def saved(stream: FrameStream, node=save.SaveStream, **values):
    given = {"codec": "h264", "crf": 18.0, "bitrate_mbps": 0.0} if node is save.SaveStream else {}
    chosen = {"filename_prefix": "video/test"} | given | values
    return hidden(node).execute(stream, **chosen)


def samples(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


# -- in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_kind_are_a_stream(channels):
    images = torch.rand(1, 5, 7, channels)
    [stream] = nodes.StreamFromImages.execute(images, 23.976).result
    assert (len(stream), stream.height, stream.width, stream.fps) == (1, 5, 7, Fraction(24000, 1001))
    assert torch.equal(stream.read(0, 1), images[..., :3].expand(1, 5, 7, 3))


def test_video_files_are_read_in_slices_with_their_audio(source):
    stream, audio, count, fps = from_video(video(source))
    assert isinstance(stream, VideoFrames) and (count, fps) == (48, 12.0)
    assert numbers(stream) == list(range(48))
    assert isinstance(audio, FileAudio) and "waveform" not in vars(audio), "not decoded before a node asks for it"
    # Older hosts give packed samples of lossless audio back as they are, so the truth is what was written.
    assert dict(audio).keys() == {"waveform", "sample_rate"} and audio["sample_rate"] == RATE
    assert audio["waveform"].shape == (1, 2, 4 * RATE)
    assert torch.allclose(audio["waveform"], clicks(4), atol=1e-4)


def test_the_host_s_nodes_take_the_audio(source):
    _, audio, *_ = from_video(video(source))
    components = Types.VideoComponents(images=counted_video(24), audio=audio, frame_rate=Fraction(12))
    path = source.with_name("theirs.mp4")
    InputImpl.VideoFromComponents(components).save_to(str(path))
    assert np.abs(samples(path)).max() > 0.1


def test_a_rate_keeps_the_length_in_seconds(source):
    stream, _, count, fps = from_video(video(source), 30.0)
    assert (count, fps) == (120, 30.0)
    assert numbers(stream) == [int((number + 0.499) * 12 / 30) for number in range(120)], "the nearest one"
    components = Types.VideoComponents(images=counted_video(48), frame_rate=Fraction(12))
    from_memory, audio, count, fps = from_video(InputImpl.VideoFromComponents(components), 30.0)
    assert (count, fps) == (120, 30.0) and audio is None
    assert numbers(from_memory) == numbers(stream)
    assert numbers(from_video(InputImpl.VideoFromComponents(components))[0]) == list(range(48))


def test_a_variable_rate_becomes_an_even_one(tmp_path):
    times = [0, 33, 66, 200, 233, 266, 300, 900, 933, 1000]
    path = tmp_path / "phone.mp4"
    write_at_times(path, counted_video(len(times)), times)
    stream, audio, count, fps = from_video(video(path))
    assert audio is None, "it has no audio"
    assert fps == 30 and count == len(stream) == 31, "one second and the last frame"
    assert numbers(stream) == [
        max(number for number, time in enumerate(times) if time < 1000 * (index + 0.5) / fps) for index in range(count)
    ]
    direct = streams.as_stream(video(path), 24.0)
    assert float(direct.fps) == fps and numbers(direct) == numbers(stream), "wired to a node that takes any frames"


@trims
@pytest.mark.parametrize(("start", "seconds"), [(0.5, 1.0), (1.0, 0.0), (-2.0, 1.0), (0.25, 0.01)])
def test_a_trimmed_video_is_that_part_audio_included(source, start, seconds):
    value = video(source, start_time=start, duration=seconds)
    stream, audio, *_ = from_video(value)
    theirs = value.get_components()
    assert numbers(stream) == numbers_in(theirs.images)
    first = round((start % 4) * RATE)
    expected = clicks(4)[..., first : first + round(seconds * RATE) if seconds else None]
    assert torch.allclose(audio["waveform"], expected, atol=1e-4), "to the sample"
    assert to_track(audio).path == str(source), "and is read from the file when saved"


@trims
def test_a_trim_beyond_the_end_is_refused(source):
    with pytest.raises(FrameRangeError, match="48"):
        from_video(video(source, start_time=9.0))


def test_what_shows_something_else_than_its_file_is_not_read_from_it(source):
    class Cropped(InputImpl.VideoFromFile):
        def get_dimensions(self):
            return 24, 32

        def get_components(self):
            whole = super().get_components()
            return Types.VideoComponents(images=whole.images[:, :, :24], audio=None, frame_rate=whole.frame_rate)

    stream, *_ = from_video(Cropped(str(source)))
    assert isinstance(stream, TensorFrames) and (stream.width, len(stream)) == (24, 48)


@pytest.mark.parametrize("cut", [0.5, 0.0])
def test_half_a_file_is_refused_before_any_work(tmp_path, cut):
    path = tmp_path / "half.mp4"
    write_video(LazyVideo(48, 32, 48), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(VideoReadError, match=r"half\.mp4") as caught:
        from_video(video(path))
    assert "\n" not in str(caught.value)


# -- out ---------------------------------------------------------------------------------------------------------------


def test_images_come_back_from_a_stream(source):
    images, fps = nodes.StreamToImages.execute(from_video(video(source))[0]).result
    assert numbers_in(images) == list(range(48)) and images.dtype == torch.float32 and fps == 12.0


def test_what_does_not_fit_into_memory_is_refused_with_numbers(monkeypatch):
    source = LazyVideo(4000, 720, 1280)
    monkeypatch.setattr(mm, "get_free_memory", lambda device: 2 * 2**30)
    with pytest.raises(SettingsError, match=r"4000 frames as IMAGE need 41\.2 GiB but 2\.0 GiB are free.*Trim Stream"):
        nodes.StreamToImages.execute(source)
    images, _ = nodes.StreamToImages.execute(source.trimmed(0, 2)).result
    assert images.shape == (2, 720, 1280, 3)


def test_collecting_ends_with_cancel(monkeypatch):
    seen = []

    def canceled():
        seen.append(1)
        if len(seen) == 3:
            raise mm.InterruptProcessingException()

    monkeypatch.setattr(streams, "check_cancel", canceled)
    with pytest.raises(mm.InterruptProcessingException):
        nodes.StreamToImages.execute(LazyVideo(1000, 8, 8))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 0, range(48)),
        (5, 3, range(5, 8)),
        (47, 1, [47]),
        (-3, 0, [45, 46, 47]),
        (-48, 2, [0, 1]),
        (40, 0, range(40, 48)),
    ],
)
def test_trim_takes_the_frames_named(source, start, length, expected):
    [part] = nodes.TrimStream.execute(from_video(video(source))[0], start, length).result
    assert numbers(part) == list(expected) and part.fps == 12


@pytest.mark.parametrize(("start", "length"), [(48, 0), (-49, 0), (40, 9), (0, 49)])
def test_trim_refuses_what_is_not_there(start, length):
    with pytest.raises(FrameRangeError, match=r"the video has 48 \(0 to 47\)"):
        nodes.TrimStream.execute(LazyVideo(48, 8, 8), start, length)


def test_join_puts_one_after_the_other(source):
    whole = from_video(video(source))[0]
    tail, middle, head = whole.trimmed(40), whole.trimmed(10, 12), whole.trimmed(0, 3)
    [joined] = nodes.JoinStreams.execute(tail, middle, frames_4=head).result
    assert numbers(joined) == [*range(40, 48), 10, 11, 0, 1, 2] and joined.fps == 12


@pytest.mark.parametrize(("other", "words"), [((8, 10, 24), "10x8 at 24"), ((8, 8, 25), "8x8 at 25")])
def test_join_refuses_another_size_or_rate(other, words):
    height, width, fps = other
    with pytest.raises(FrameMismatchError, match=f"8x8 at 24 fps.*{words}"):
        nodes.JoinStreams.execute(LazyVideo(3, 8, 8), LazyVideo(3, height, width, Fraction(fps)))


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", save.SUFFIXES)
@pytest.mark.parametrize(("size", "count"), [((65, 67), 1), ((64, 96), 5)])
def test_every_codec_writes_a_file_that_the_host_reads(codec, size, count):
    result = saved(LazyVideo(count, *size, Fraction(24000, 1001)), codec=codec)
    path = Path(result.result[0].get_stream_source())
    assert path.is_file() and path.name == f"test_00001_{save.SUFFIXES[codec]}"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert stream.average_rate == Fraction(24000, 1001) or stream.guessed_rate == Fraction(24000, 1001)
        assert len(list(container.decode(stream))) == count
        assert container.duration / av.time_base == pytest.approx(count * 1001 / 24000, abs=2e-3)
    assert tags["workflow"] == '{"a": 1}' and "class_type" in tags["prompt"]
    width, height = result.result[0].get_dimensions()
    assert (height, width) == (size if codec == "ffv1" else tuple(side + side % 2 for side in size))
    [shown] = result.ui.as_dict()["images"]
    assert (shown["filename"], shown["subfolder"], shown["type"]) == (path.name, "video", "output")


def test_metadata_stays_out_where_the_host_forbids_it(monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    path = saved(LazyVideo(2, 32, 32)).result[0].get_stream_source()
    with av.open(path) as container:
        assert not {"workflow", "prompt"} & {key.lower() for key in container.metadata}


@pytest.mark.parametrize("frames", [24, 48, 72])
def test_audio_is_carried_cut_and_padded(source, frames):
    stream, audio, *_ = from_video(video(source))
    longer = nodes.JoinStreams.execute(stream, stream).result[0].trimmed(0, frames)
    path = saved(longer, codec="ffv1", audio=audio).result[0].get_stream_source()
    assert "waveform" not in vars(audio), "read from the file in blocks"
    found = samples(path).reshape(-1, 2)[:, 0].astype(float)
    assert abs(len(found) - frames * RATE // 12) <= 1
    found /= np.abs(found).max()
    heard = [second for second in range(frames // 12) if np.abs(found[second * RATE : (second + 1) * RATE]).max() > 0.1]
    assert heard == list(range(min(4, frames // 12)))
    assert int(np.abs(found[:RATE]).argmax()) == pytest.approx(RATE // 2, abs=100)


@trims
def test_audio_of_a_trimmed_video_does_not_go_on_behind_it(source):
    stream, audio, *_ = from_video(video(source, start_time=1.0, duration=1.0))
    slow = TensorFrames(stream.read(0, len(stream)), 4)
    path = saved(slow, codec="ffv1", audio=audio).result[0].get_stream_source()
    found = np.abs(samples(path).reshape(-1, 2)[:, 0].astype(float))
    assert abs(len(found) - 3 * RATE) <= 1
    assert int(found.argmax()) == pytest.approx(RATE // 2, abs=100) and found[RATE:].max() == 0


def test_any_audio_of_the_host_will_do():
    audio = {"waveform": clicks(2)[:, :1], "sample_rate": RATE}
    path = saved(LazyVideo(24, 32, 32, Fraction(12)), audio=audio).result[0].get_stream_source()
    assert samples(path).shape[1] == pytest.approx(2 * RATE, abs=2048)
    for wrong in ("audio", {"waveform": torch.zeros(2, 1, 100), "sample_rate": RATE}):
        with pytest.raises(SettingsError):
            saved(LazyVideo(2, 32, 32), audio=wrong)


def test_a_bitrate_takes_the_place_of_crf():
    noise = TensorFrames(torch.rand(48, 64, 96, 3, generator=torch.Generator().manual_seed(0)), 24)
    sizes = {}
    for mbps in (0.0, 0.5, 2.0):
        path = saved(noise, bitrate_mbps=mbps).result[0].get_stream_source()
        sizes[mbps] = Path(path).stat().st_size
    assert sizes[0.5] * 8 / 2 == pytest.approx(0.5e6, rel=0.3)
    assert 2.5 < sizes[2.0] / sizes[0.5] < 5.5 and sizes[0.0] not in (sizes[0.5], sizes[2.0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"codec": "h264", "crf": 60.0, "bitrate_mbps": 0.0}, "0 (best) .. 51"),
        ({"codec": "h264", "crf": 18.0, "bitrate_mbps": 0.0001}, "too low"),
        ({"codec": "vp9", "crf": 18.0, "bitrate_mbps": 0.0}, "vp9"),
        ({"codec": "av1", "crf": 60.0, "bitrate_mbps": 0.0}, None),
        ({"codec": "ffv1", "crf": 60.0, "bitrate_mbps": 3.0}, None),
        ({"codec": None, "crf": 60.0, "bitrate_mbps": 0.0}, None),
        ({"codec": "h264", "crf": 18.0, "bitrate_mbps": 0.0, "bit_depth": "10"}, None),
        ({"codec": "h264", "crf": 18.0, "bitrate_mbps": 0.0, "bit_depth": None}, None),
        ({"codec": "h265", "crf": 18.0, "bitrate_mbps": 0.0, "bit_depth": "16"}, "8 or 10 bits per value, not 16"),
        ({"codec": "av1", "crf": 18.0, "bitrate_mbps": 0.0, "bit_depth": "deep"}, "not deep"),
        ({"codec": "ffv1", "crf": 18.0, "bitrate_mbps": 0.0, "bit_depth": "16"}, None),
    ],
)
def test_quality_is_checked_before_anything_runs(values, words):
    answer = save.SaveStream.validate_inputs(**values)
    assert answer is True if words is None else words in answer


@pytest.mark.parametrize(
    ("codec", "bits", "pixels"),
    [
        ("h264", "8", "yuv420p"),
        *((codec, "10", "yuv420p10le") for codec in ("h264", "h265", "av1")),
        *(("ffv1", bits, f"gbrp{bits}le") for bits in ("10", "16")),
    ],
)
def test_bit_depth_is_that_of_the_file(codec, bits, pixels):
    path = saved(LazyVideo(3, 64, 64), codec=codec, bit_depth=bits).result[0].get_stream_source()
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == pixels
        assert len(list(container.decode(video=0))) == 3
    with pytest.raises(SettingsError, match="not 12"):  # linked, so it comes when the node runs
        saved(LazyVideo(3, 64, 64), codec=codec, bit_depth="12")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("number", [0, 5, 11])
def test_values_that_are_no_numbers_are_refused_by_frame(value, number, tmp_path):
    images = torch.rand(12, 64, 96, 3)
    images[number, 3, 3, 0] = value
    stream = nodes.StreamFromImages.execute(images, 24.0).result[0]
    extended = {"new_frames": 10, "tail_frames": 4, "anchor_frame": 2, "fps": 24.0, "width": 96, "height": 64}
    for attempt in (
        lambda: saved(stream),
        lambda: saved(stream, save.SaveStreamAsPngs, compress_level=4),
        lambda: hidden(metrics.VideoReport).execute(images, "", "", 24.0, "report/v"),
        lambda: hidden(extend.ExtendVideo).execute(frames=images, fit="crop", **extended),
        lambda: nodes.StreamToImages.execute(stream),
    ):
        with pytest.raises(NotNumbersError, match=f"^frame {number}, counted from 0, holds values"):
            attempt()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_images_are_written_into_a_folder(source, tmp_path):
    stream = from_video(video(source))[0].trimmed(3, 15)
    chosen = {"filename_prefix": "frames/test", "compress_level": 1}
    result = hidden(save.SaveStreamAsPngs).execute(stream, **chosen)
    folder = Path(result.result[0])
    assert folder.parent == tmp_path / "output" / "frames"
    names = [f"frame_{number:05d}.png" for number in range(12)]
    assert sorted(path.name for path in folder.iterdir()) == names
    images = [torch.from_numpy(np.array(Image.open(folder / name))) for name in names]
    assert numbers_in(torch.stack(images).float() / 255) == list(range(3, 15))
    assert Image.open(folder / names[0]).text["workflow"] == '{"a": 1}'
    shown = result.ui["images"]
    assert [item["filename"] for item in shown] == [names[number] for number in (0, 3, 6, 8, 11)]
    assert {item["subfolder"] for item in shown} == {f"frames/{folder.name}"}
    again = hidden(save.SaveStreamAsPngs).execute(stream.trimmed(0, 1), **chosen)
    assert again.result[0] != str(folder) and len(again.ui["images"]) == 1


def test_cancel_leaves_neither_file_nor_folder(monkeypatch, tmp_path):
    seen = []

    def canceled():
        seen.append(1)
        if len(seen) == 5:
            raise mm.InterruptProcessingException()

    monkeypatch.setattr("comfyui_streamingt2v.nodes.host.video.files.check_cancel", canceled)
    for node, values in (
        (save.SaveStream, {}),
        (save.SaveStreamAsPngs, {"filename_prefix": "video/test", "compress_level": 1}),
    ):
        seen.clear()
        with pytest.raises(mm.InterruptProcessingException):
            if values:
                hidden(node).execute(LazyVideo(1000, 32, 32), **values)
            else:
                saved(LazyVideo(1000, 32, 32))
        assert not list((tmp_path / "output" / "video").iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]
