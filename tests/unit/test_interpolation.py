"""Interpolated streams: what is computed, held and shared, pair by pair, with any network."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import Cancelled, FrameError, FrameRangeError, SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.frames.stream import FrameStream
from streaming_core.interpolation import timeline
from streaming_core.interpolation.stream import InterpolatedFrames, InterpolationModel, official_interpolation


class Full(Exception):
    """Out of memory, as the test's machine says it."""


class Mixer(torch.nn.Module):
    """An interpolation network that mixes frames by time, and counts what it is asked."""

    def __init__(self, fits: int = 1000, pad_align: int = 1):
        super().__init__()
        self.fits, self.pad_align = fits, pad_align
        self.looked, self.batches, self.sizes = 0, [], set()

    def memory_used_forward(self, shape, dtype):
        return 1000

    def extract_features(self, img):
        self.looked += 1
        self.sizes.add(tuple(img.shape[-2:]))
        return img * 2

    def forward(self, img0, img1, timestep, cache):
        self.batches.append(len(img0))
        if len(img0) > self.fits:
            raise Full
        assert torch.equal(cache["img0"], img0[:1] * 2) and torch.equal(cache["img1"], img1[:1] * 2)
        assert timestep.shape == (len(img0), 1, *img0.shape[-2:])
        return img0 * (1 - timestep) + img1 * timestep


class MultiMixer(Mixer):
    """Offers several times at once, too; they need more memory."""

    def __init__(self, multi_fits: int = 1000, **options):
        super().__init__(**options)
        self.multi_fits, self.multi_batches = multi_fits, []

    def forward_multi_timestep(self, img0, img1, ts, cache):
        self.multi_batches.append(len(ts))
        if len(ts) > self.multi_fits:
            raise Full
        return torch.cat([img0 * (1 - t) + img1 * t for t in ts])


@dataclass(frozen=True)
class WatchedFrames(FrameStream):
    """A source that says what was read."""

    inner: FrameStream
    reads: list[tuple[int, int]] = field(default_factory=list)

    height = property(lambda self: self.inner.height)
    width = property(lambda self: self.inner.width)
    fps = property(lambda self: self.inner.fps)

    def __len__(self):
        return len(self.inner)

    def _read(self, start, stop):
        self.reads.append((start, stop))
        return self.inner.read(start, stop)


def ramp(num_frames: int, height: int = 6, width: int = 10) -> TensorFrames:
    """Frame k is k * 0.9 / num_frames everywhere: what lies at position p is known."""
    level = torch.arange(num_frames) * 0.9 / num_frames
    return TensorFrames(level.view(-1, 1, 1, 1).expand(-1, height, width, 3), 8)


def video(source: FrameStream, line: timeline.Timeline, network: Any = None, **options) -> InterpolatedFrames:
    chosen = {name: options.pop(name) for name in ("cut_threshold", "copy_static", "byte_steps") if name in options}
    chosen = {"cut_threshold": 0, "copy_static": False} | chosen
    model = InterpolationModel(network or Mixer(), is_out_of_memory=lambda error: isinstance(error, Full), **options)
    return InterpolatedFrames(source, line, model, **chosen)


def count(num_source: int, num_frames: int) -> timeline.Timeline:
    return timeline.with_count(num_source, 8, num_frames, output_fps=24)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 9), st.sampled_from([Mixer, MultiMixer]))
def test_frames_are_those_of_the_timeline_in_any_slices(num_source, num_frames, size, network):
    line = count(num_source, num_frames)
    made = video(ramp(num_source), line, network())
    whole = made.read(0, num_frames)
    positions = torch.tensor([float(line.snapped(index)) for index in range(num_frames)])
    want = (positions * 0.9 / num_source).view(-1, 1, 1, 1).expand_as(whole)
    torch.testing.assert_close(whole, want, atol=1e-6, rtol=0)
    slices = list(made.slices(size))
    assert all(0 < len(part) <= size for part in slices)
    assert torch.equal(torch.cat(slices), whole)
    if num_frames > 2:
        assert torch.equal(made.read(1, num_frames - 1), whole[1:-1])
        assert torch.equal(torch.cat(list(made.slices(size, 1, num_frames - 1))), whole[1:-1])


def test_frames_between_are_looked_at_once_for_both_pairs_and_all_times():
    network, source = Mixer(), WatchedFrames(ramp(30))
    made = video(source, timeline.multiplied(30, 8, 4), network)
    assert len(torch.cat(list(made.slices()))) == 117
    assert network.looked == 30
    assert sorted(index for start, stop in source.reads for index in range(start, stop)) == list(range(30))
    assert max(stop - start for start, stop in source.reads) <= 8


def test_reading_on_reads_no_source_frame_twice():
    source = WatchedFrames(ramp(20))
    made = video(source, timeline.multiplied(20, 8, 2))
    for start in range(0, 39, 13):
        made.read(start, start + 13)
    assert sorted(index for start, stop in source.reads for index in range(start, stop)) == list(range(20))


@dataclass(frozen=True)
class SlowFile(WatchedFrames):
    """A source that takes its time to decode."""

    seconds: float = 0.0
    fails_at: int = 10**9
    decodes = True

    def _read(self, start, stop):
        time.sleep(self.seconds * (stop - start))
        if stop > self.fails_at:
            raise FrameError("the file is damaged")
        return super()._read(start, stop)


@pytest.mark.parametrize(("num_source", "num_frames"), [(1, 3), (2, 9), (9, 17), (20, 77), (20, 20), (20, 7), (30, 31)])
def test_reading_ahead_changes_nothing_and_reads_nothing_twice(num_source, num_frames):
    ahead, direct = SlowFile(ramp(num_source)), WatchedFrames(ramp(num_source))
    line = count(num_source, num_frames)
    for start, stop in ((0, num_frames), (num_frames // 2, num_frames), (1, 2)):
        made = [torch.cat(list(video(source, line).slices(5, start, stop))) for source in (ahead, direct)]
        assert torch.equal(*made)
        read = sorted(index for start, stop in ahead.reads for index in range(start, stop))
        assert len(read) == len(set(read)) and set(read) <= set(range(num_source))
        assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]
        ahead.reads.clear()


def test_the_source_is_decoded_while_the_network_works():
    class Slow(Mixer):
        def forward(self, *args, **options):
            time.sleep(0.02)
            return super().forward(*args, **options)

    source = SlowFile(ramp(40), seconds=0.02)
    begin = time.perf_counter()
    assert len(list(video(source, timeline.multiplied(40, 8, 2), Slow()).slices())) == 40
    assert time.perf_counter() - begin < 1.45, "0.8 s of decoding and 0.78 s of work, not one after the other"


def test_a_video_that_is_given_up_leaves_no_thread_and_errors_of_the_file_come_through():
    slices = video(SlowFile(ramp(40), seconds=0.01), timeline.multiplied(40, 8, 2)).slices()
    next(slices)
    slices.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]
    with pytest.raises(FrameError, match="damaged"):
        list(video(SlowFile(ramp(40), fails_at=20), timeline.multiplied(40, 8, 2)).slices())
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def test_source_frames_pass_through_untouched():
    generator = torch.Generator().manual_seed(0)
    source = TensorFrames(torch.rand(4, 6, 10, 3, generator=generator), 8)
    made = video(source, timeline.multiplied(4, 8, 3), Mixer(pad_align=4), dtype=torch.bfloat16)
    assert torch.equal(made.read(0, 10)[::3], source.images)


def test_networks_get_frames_padded_to_their_multiple():
    network = Mixer(pad_align=8)
    made = video(ramp(3, 6, 10), timeline.multiplied(3, 8, 2), network)
    assert made.read(0, 5).shape == (5, 6, 10, 3)
    assert network.sizes == {(8, 16)}
    tiny = video(ramp(2, 1, 1), timeline.multiplied(2, 8, 2), network)
    assert tiny.read(0, 3).shape == (3, 1, 1, 3)


def test_batches_fit_into_the_memory_at_hand():
    network = Mixer()
    video(ramp(2), timeline.multiplied(2, 8, 11), network, free_bytes=lambda: 5100).read(0, 11)
    assert network.batches == [4, 4, 2]  # four fifths of 5100 bytes, 1000 bytes each
    one_by_one = Mixer()
    video(ramp(2), timeline.multiplied(2, 8, 5), one_by_one).read(0, 5)
    assert one_by_one.batches == [1, 1, 1, 1]


def test_batch_is_halved_on_out_of_memory_and_stays_halved():
    network, recovered = Mixer(fits=3), []
    options = {"free_bytes": lambda: 10**9, "recover": lambda: recovered.append(1)}
    made = video(ramp(3), timeline.multiplied(3, 8, 11), network, **options)
    frames = torch.cat(list(made.slices(100)))
    assert network.batches == [10, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert len(recovered) == 2
    torch.testing.assert_close(frames, video(ramp(3), timeline.multiplied(3, 8, 11)).read(0, 23))


def test_several_times_at_once_are_tried_first_then_given_up():
    network = MultiMixer(multi_fits=0)
    made = video(ramp(3), timeline.multiplied(3, 8, 5), network, free_bytes=lambda: 10**9)
    torch.cat(list(made.slices()))
    assert network.multi_batches == [4, 2, 1]
    assert network.batches == [1] * 8


def test_out_of_memory_with_one_frame_is_the_users_to_know():
    with pytest.raises(Full):
        video(ramp(2), timeline.multiplied(2, 8, 3), Mixer(fits=0)).read(0, 3)


def test_cancel_is_asked_before_every_pair():
    asked = []

    def cancel_at_third():
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled

    network = Mixer()
    made = video(ramp(9), timeline.multiplied(9, 8, 2), network, check_cancel=cancel_at_third)
    seen = []
    with pytest.raises(Cancelled):
        seen.extend(made.slices(1))
    assert len(network.batches) == 2
    assert len(seen) == 5


def test_weights_are_asked_for_before_every_pair():
    shapes = []
    video(ramp(4), timeline.multiplied(4, 8, 3), prepare=shapes.append).read(0, 10)
    assert shapes == [(1, 6, 10, 3)] * 3


def scenes() -> torch.Tensor:
    """Frames 0 and 1 of one scene, 2 and 3 of another, 4 like 3."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.rand(2, 8, 8, 3, generator=generator).movedim(-1, 1)
    a, b = (torch.nn.functional.interpolate(x[None], (48, 80), mode="bilinear")[0].movedim(0, -1) for x in (a, b))
    return torch.stack((a, a.roll(2, 1), b, b.roll(2, 1), b.roll(2, 1) + 1 / 300)).clamp(0, 1)


def test_cuts_are_held_and_stills_copied():
    frames, network = scenes(), Mixer()
    made = video(TensorFrames(frames, 8), timeline.multiplied(5, 8, 4), network, cut_threshold=0.5, copy_static=True)
    out = made.read(0, 17)
    assert torch.equal(out[4:9], frames[[1, 1, 2, 2, 2]])  # t = 1/2 already shows the new scene
    assert torch.equal(out[12:17], frames[[3, 3, 4, 4, 4]])
    assert len(network.batches) == 6  # pairs 0-1 and 2-3 only
    smeared = video(TensorFrames(frames, 8), timeline.multiplied(5, 8, 4)).read(0, 17)
    assert not torch.equal(smeared[5], frames[1])


def test_official_steps_are_bytes_cut_off():
    made = official_interpolation(ramp(5), 9, InterpolationModel(Mixer()))
    bytes_ = made.read(0, 9) * 255
    made_ones = bytes_[1::2]
    torch.testing.assert_close(made_ones, made_ones.round(), atol=1e-4, rtol=0)
    exact = video(ramp(5), timeline.multiplied(5, 8, 2)).read(0, 9)[1::2] * 255
    assert ((exact - made_ones) >= -1e-4).all() and ((exact - made_ones) < 1).all()
    assert made.fps == Fraction(24)


def test_official_length_repeats_the_last_frame():
    made = official_interpolation(ramp(5), 10, InterpolationModel(Mixer()))
    assert len(made) == 10
    frames = made.read(0, 10)
    assert torch.equal(frames[9], frames[8])
    assert torch.equal(made.read(9, 10), frames[9:])


def test_single_frame_video():
    made = video(ramp(1), count(1, 5))
    assert torch.equal(made.read(0, 5), ramp(1).read(0, 1).expand(5, -1, -1, -1))


def test_results_can_be_written_to_in_any_mode():
    made = video(ramp(3), timeline.multiplied(3, 8, 2))
    made.read(0, 5).mul_(0.5)
    next(iter(made.slices())).mul_(0.5)
    with torch.inference_mode():
        made.read(0, 5).mul_(0.5)
    assert not made.read(0, 5).is_inference()


def test_stream_keeps_nothing_on_the_device_between_reads():
    made = video(ramp(6), timeline.multiplied(6, 8, 2))
    made.read(0, 4)
    (worker,) = made._rested
    assert worker.sent == worker.seen == worker.cache == {}


def test_readers_in_threads_do_not_disturb_each_other():
    made = video(ramp(12), timeline.multiplied(12, 8, 3))
    whole = made.read(0, len(made))
    with ThreadPoolExecutor(4) as pool:
        starts = [7, 0, 20, 13, 3, 27, 9, 1] * 3
        parts = list(pool.map(lambda start: made.read(start, start + 6), starts))
    for start, part in zip(starts, parts, strict=True):
        assert torch.equal(part, whole[start : start + 6])


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="needs 6 source frames, the stream has 5"):
        video(ramp(5), timeline.multiplied(6, 8, 2))
    with pytest.raises(SettingsError, match="threshold"):
        video(ramp(5), timeline.multiplied(5, 8, 2), cut_threshold=2)
    made = video(ramp(5), timeline.multiplied(5, 8, 2))
    for wrong in (partial(made.read, 0, 10), lambda: list(made.slices(2, 3, 12))):
        with pytest.raises(FrameRangeError):
            wrong()
    with pytest.raises(SettingsError):
        list(made.slices(0))
