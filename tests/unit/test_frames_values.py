"""Frames with values that are no numbers: named by their number and refused wherever frames are taken in."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
import torch

from streaming_core.errors import NotNumbersError, SettingsError
from streaming_core.frames import (
    AudioTrack,
    JoinedFrames,
    TensorFrames,
    to_rgb,
    to_tensor,
    write_png_folder,
    write_video,
)
from streaming_core.frames.pixels import quantize
from streaming_core.frames.slices import SLICE_BYTES, checked, frames_per_slice
from streaming_core.interpolation.stream import InterpolatedFrames, InterpolationModel
from streaming_core.interpolation.timeline import with_count
from tests.unit.frame_videos import LazyVideo

VALUES = (float("nan"), float("inf"), -float("inf"))


def spoiled(number: int, value: float = float("nan"), num_frames: int = 40, channels: int = 3) -> torch.Tensor:
    images = torch.rand(num_frames, 8, 12, channels)
    images[number, 3, 5, 1] = value
    return images


def overflowing(number: int) -> LazyVideo:
    """A stream that makes its frames, as models do; one of them is spoiled."""

    class Overflowing(LazyVideo):
        def _read(self, start, stop):
            frames = super()._read(start, stop)
            if start <= number < stop:
                frames[number - start, 0, 0, 0] = float("nan")
            return frames

    return Overflowing(40, 8, 12)


SINKS = {
    "video": lambda stream, folder: write_video(stream, folder / "video.mp4"),
    "deep video": lambda stream, folder: write_video(
        stream, folder / "video.mkv", codec="ffv1", pixel_format="gbrp16le"
    ),
    "folder of images": lambda stream, folder: write_png_folder(stream, folder / "images"),
    "tensor": lambda stream, folder: to_tensor(stream),
}


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("value", VALUES)
def test_every_sink_names_the_frame_and_leaves_nothing(tmp_path, sink, value):
    for number in (0, 5, 21, 39):
        with pytest.raises(NotNumbersError, match=f"^frame {number}, counted from 0, holds values") as caught:
            SINKS[sink](TensorFrames(spoiled(number, value), 24), tmp_path)
        assert caught.value.number == number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sink", SINKS)
def test_frames_that_a_model_makes_are_named_too(tmp_path, sink):
    with pytest.raises(NotNumbersError, match="frame 21,"):
        SINKS[sink](overflowing(21), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sink", ["video", "folder of images"])
def test_frames_of_an_iterator_are_counted_through(tmp_path, sink):
    parts = iter([torch.rand(7, 8, 12, 3), spoiled(3, num_frames=5)])
    with pytest.raises(NotNumbersError, match="frame 10,"):
        if sink == "video":
            write_video(parts, tmp_path / "video.mp4", 24)
        else:
            write_png_folder(parts, tmp_path / "images")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_every_kind_of_image_is_looked_at(kind, channels):
    for value in VALUES:
        with pytest.raises(NotNumbersError, match="frame 9,"):
            to_rgb(spoiled(2, value, 4, channels).to(kind), first=7)


def test_infinity_does_not_become_white():
    for value in VALUES:
        with pytest.raises(NotNumbersError, match="frame 6,"):
            quantize(spoiled(2, value, 4), first=4)


def test_large_numbers_are_numbers():
    """Their sum overflows, they do not; the frame is clamped, as ever."""
    images = torch.full((2, 8, 12, 3), 3e38)
    assert checked(images) is images
    assert to_tensor(TensorFrames(images, 24)).eq(1).all()


def test_only_what_is_read_is_looked_at():
    stream = TensorFrames(spoiled(3), 24)
    assert to_tensor(stream.trimmed(4)).shape[0] == 36
    with pytest.raises(NotNumbersError):
        to_tensor(JoinedFrames((stream.trimmed(4), stream)))


def test_interpolation_refuses_before_it_begins():
    def network(*_):
        raise AssertionError("the network was called")

    timeline = with_count(40, Fraction(24), 79)
    with pytest.raises(NotNumbersError, match="frame 39,"):
        InterpolatedFrames(TensorFrames(spoiled(39), 24), timeline, InterpolationModel(network))
    with pytest.raises(NotNumbersError, match="frame 1,"):
        InterpolatedFrames(overflowing(1), timeline, InterpolationModel(network)).read(0, 4)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_audio_is_looked_at_before_the_first_frame(tmp_path, codec, value):
    wave = torch.rand(1, 2, 8000)
    wave[0, 1, 4000] = value
    track = AudioTrack.from_waveform(wave, 8000)
    with pytest.raises(SettingsError, match="the audio holds values that are not numbers"):
        write_video(overflowing(0), tmp_path / "video.mkv", codec=codec, audio=track)
    assert not list(tmp_path.iterdir())


def test_the_error_survives_a_process():
    error = pickle.loads(pickle.dumps(NotNumbersError(5)))
    assert error.number == 5 and str(error) == str(NotNumbersError(5))


def test_slices_hold_a_number_of_bytes():
    assert [frames_per_slice(*size) for size in ((256, 256), (720, 1280), (2160, 3840), (4320, 7680))] == [16, 8, 1, 1]
    assert frames_per_slice(64, 64, 4) == 4
    for height, width in ((720, 1280), (1080, 1920), (1440, 2560)):
        assert frames_per_slice(height, width) * height * width * 12 <= SLICE_BYTES


def test_streams_are_read_in_slices_of_their_size():
    class Counting(LazyVideo):
        def _read(self, start, stop):
            sizes.append(stop - start)
            return torch.zeros(stop - start, 1, 1, 3)  # the size is only said

    for height, width, expected in ((720, 1280, [8, 2]), (2160, 3840, [1] * 10)):
        sizes: list[int] = []
        assert len(list(Counting(10, height, width).slices())) == len(expected)
        assert sizes == expected
