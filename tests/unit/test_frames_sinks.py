"""Streams into tensors and image folders, and reading ahead."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from streaming_core.errors import FrameError, VideoWriteError
from streaming_core.frames import TensorFrames, read_ahead, to_tensor, write_png_folder
from tests.unit.frame_videos import LazyVideo, smooth_video


class Stop(Exception):
    """Cancel."""


def stop_after(calls: int):
    left = [calls]

    def check_cancel() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return check_cancel


def test_to_tensor_is_the_video():
    video = smooth_video(11, 8, 12)
    seen = []
    images = to_tensor(TensorFrames(video, 24), slice_frames=4, progress=lambda *done: seen.append(done))
    assert torch.equal(images, video) and images.dtype == torch.float32
    assert seen == [(4, 11), (8, 11), (11, 11)]
    with pytest.raises(Stop):
        to_tensor(TensorFrames(video, 24), slice_frames=4, check_cancel=stop_after(2))


def test_images_are_the_frames_rounded(tmp_path):
    video = smooth_video(5, 9, 13)
    count = write_png_folder(TensorFrames(video, 24), tmp_path / "video", metadata={"workflow": {"a": 1}, "note": "ö"})
    names = sorted(path.name for path in (tmp_path / "video").iterdir())
    assert count == 5 and names == [f"frame_{number:05d}.png" for number in range(5)]
    for number, name in enumerate(names):
        with Image.open(tmp_path / "video" / name) as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), (video[number] * 255).round().numpy().astype(np.uint8))
            texts = dict(image.text)
        if number == 0:
            assert json.loads(texts["workflow"]) == {"a": 1} and texts["note"] == "ö"
        else:
            assert not texts
    assert list(tmp_path.iterdir()) == [tmp_path / "video"]


def test_an_iterator_and_an_empty_folder_will_do(tmp_path):
    (tmp_path / "video").mkdir()
    assert (
        write_png_folder(iter([torch.rand(2, 4, 4, 3), torch.rand(1, 4, 4)]), tmp_path / "video", prefix="", digits=2)
        == 3
    )
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == ["00.png", "01.png", "02.png"]


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "mine.txt").write_text("mine")
    with pytest.raises(VideoWriteError, match="not empty"):
        write_png_folder(LazyVideo(3, 8, 8), tmp_path / "video")
    assert [path.name for path in (tmp_path / "video").iterdir()] == ["mine.txt"]


def test_failures_leave_no_folder(tmp_path):
    with pytest.raises(Stop):
        write_png_folder(LazyVideo(40, 8, 8), tmp_path / "video", slice_frames=4, check_cancel=stop_after(5))
    with pytest.raises(FrameError, match="no frames"):
        write_png_folder(iter([]), tmp_path / "video")
    with pytest.raises(FrameError, match="not numbers"):
        write_png_folder(iter([torch.rand(2, 4, 4, 3), torch.full((1, 4, 4, 3), float("nan"))]), tmp_path / "video")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoWriteError, match="cannot be written"):
        write_png_folder(LazyVideo(3, 8, 8), tmp_path / "file" / "video")


def test_read_ahead_gives_the_same_items_in_order():
    assert list(read_ahead(range(50), depth=3)) == list(range(50))
    assert list(read_ahead([])) == []


def test_read_ahead_works_while_the_reader_does_and_not_further():
    made = []

    def source():
        for number in range(20):
            made.append(number)
            yield number

    iterator = read_ahead(source(), depth=3)
    assert next(iterator) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5, "one taken, three ready, one in the hand"
    iterator.close()


def test_read_ahead_raises_in_its_turn_and_ends_its_thread():
    before = threading.active_count()

    def source():
        yield 1
        yield 2
        raise RuntimeError("cut off")

    iterator = read_ahead(source())
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(RuntimeError, match="cut off"):
        next(iterator)
    early = read_ahead(iter(int, 1), depth=2)  # endless
    next(early)
    early.close()
    assert threading.active_count() == before
