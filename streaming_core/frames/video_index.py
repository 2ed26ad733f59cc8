"""Which frames a video file holds: how many, when each is shown, and where decoding can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer

from ..errors import SettingsError, VideoReadError
from .media import time_base, video_stream
from .stream import as_rate, usual_rate

_DEFAULT_FPS = Fraction(24)
# Only decoding tells how many frames there are, and when, where packets may hold frames that are never shown (VP8) and
# where the container knows no order but that of decoding (AVI).
_COUNT_BY_DECODING = {"vp8", "avi"}
# Containers that say in their head how long each stream is; elsewhere the length is an estimate.
_HONEST_CONTAINERS = {"mov", "mp4", "matroska", "webm", "avi"}


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """Which frames a video file holds; made once by `VideoFrames.open`.

    Attributes:
        num_frames: stored frames.
        pts: their times in `time_base`, ascending; empty when the file has none (then it is read from the start only).
        keys: which of them decoding can begin at.
        rate: exact for constant rates, else the average.
        variable: whether the frames are unevenly spaced.
        seconds: length, the last frame included.
    """

    num_frames: int
    pts: np.ndarray = field(repr=False)
    keys: np.ndarray = field(repr=False)
    time_base: Fraction
    rate: Fraction
    variable: bool
    seconds: Fraction


def find_index(container: InputContainer, stream: av.VideoStream, path: str) -> VideoIndex:
    """Look through a whole file, without decoding it where its packets tell enough.

    Raises:
        VideoReadError: no frames, or fewer than the file promises.
    """
    times: list[int | None] = []
    keys: set[int | None] = set()
    last_duration = 0
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise VideoReadError(f"{path} is cut off or damaged after {len(times)} frames; get a whole copy")
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.add(packet.pts)
        last_duration = packet.duration or 0
    named = {stream.codec_context.name, container.format.name}
    by_decoding = bool(_COUNT_BY_DECODING & named) or _distinct(times) is None
    if by_decoding:
        with av.open(path) as fresh:
            times = [frame.pts for frame in fresh.decode(video_stream(fresh, path))]
    if not times:
        raise VideoReadError(f"{path} has no frames; it is cut off or damaged")
    distinct, tick = _distinct(times), time_base(stream)
    if distinct is None or (by_decoding and distinct != sorted(distinct)):
        rate = stream.average_rate or stream.guessed_rate or _DEFAULT_FPS
        nothing = np.zeros(0, np.int64)
        return VideoIndex(len(times), nothing, nothing, tick, rate, False, len(times) / Fraction(rate))
    pts = np.sort(np.array(distinct, np.int64))
    rate, variable = _rate(pts, stream)
    length = Fraction(int(pts[-1] - pts[0])) * tick
    last = 1 / rate
    if variable and last_duration and distinct[-1] == pts[-1]:
        last = last_duration * tick
    elif variable:  # durations of frames that are stored out of order are not those of their showing
        last = Fraction(int(np.median(np.diff(pts)))) * tick
    seconds = length + last if variable else len(pts) / rate
    _check_length(container, stream, path, len(pts), length + last)
    key_numbers = np.searchsorted(pts, sorted(time for time in keys if time is not None))
    key_numbers = np.union1d(key_numbers[key_numbers < len(pts)], 0)
    return VideoIndex(len(pts), pts, key_numbers, tick, rate, variable, seconds)


def _distinct(times: Sequence[int | None]) -> list[int] | None:
    """The times, where every frame has one of its own."""
    known = [time for time in times if time is not None]
    return known if len(set(known)) == len(times) else None


def _rate(pts: np.ndarray, stream: av.VideoStream) -> tuple[Fraction, bool]:
    """The rate of a file, and whether its frames leave the even grid of that rate by more than rounding."""
    named = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    named = [usual_rate(rate) for rate in named if Fraction(1, 1000) <= rate <= 1000]
    if len(pts) == 1:
        return (named or [_DEFAULT_FPS])[0], False
    tick = time_base(stream)
    average = as_rate(float((len(pts) - 1) / (Fraction(int(pts[-1] - pts[0])) * tick)))
    for rate in [*named, usual_rate(average)]:
        step = 1 / (rate * tick)
        grid = np.arange(len(pts)) * float(step)
        if np.abs(pts - pts[0] - grid).max() <= max(1.0, float(step) / 20):
            return rate, False
    return average, True


def _check_length(
    container: InputContainer, stream: av.VideoStream, path: str, num_frames: int, seconds: Fraction
) -> None:
    """Refuse a file whose head promises more than is there."""
    if not _HONEST_CONTAINERS & set(container.format.name.split(",")):
        return
    if stream.duration is not None:
        promised = float(stream.duration * time_base(stream))
    elif stream.metadata.get("DURATION", "").count(":") == 2:
        hours, minutes, rest = stream.metadata["DURATION"].split(":")
        promised = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    elif len(container.streams) == 1 and container.duration:
        promised = container.duration / av.time_base
    else:
        return
    if promised - float(seconds) > max(3 * float(seconds) / num_frames, 0.02 * promised):
        raise VideoReadError(
            f"{path} is cut off: {num_frames} frames ({float(seconds):.2f} s) of {promised:.2f} s are there; "
            "get a whole copy"
        )


def without_head(index: VideoIndex, first_pts: int) -> VideoIndex:
    """What is left from the frame at `first_pts` on."""
    cut = int(np.searchsorted(index.pts, first_pts))
    left = index.num_frames - cut
    if left < 1:
        raise SettingsError("the first frame that decodes comes after the last one that is stored")
    seconds = index.seconds - Fraction(int(index.pts[cut] - index.pts[0])) * index.time_base
    keys = np.union1d(index.keys[index.keys >= cut] - cut, 0)
    return VideoIndex(left, index.pts[cut:], keys, index.time_base, index.rate, index.variable, seconds)
