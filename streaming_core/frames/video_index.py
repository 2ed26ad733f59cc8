"""Which frames a video file holds: how many, when each is shown, and where decoding can begin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet

from ..errors import VideoReadError
from .media import RecordingClock, Watch, decoded, format_names, open_media, packets, time_base, video_stream
from .rates import rate_of

# Containers that know no order but that of decoding; where a codec changes the order, only the decoded frames tell.
_ORDER_OF_DECODING = {"avi"}
_PROBED_FRAMES = 48
# Containers that say in their head how long each stream is; elsewhere the length is an estimate.
_HONEST_CONTAINERS = {"mov", "mp4", "matroska", "webm", "avi"}
_HELD, _KNOWN = Fraction(3, 2), Fraction(1, 2)
"""From so many frames on, the time that the last frame is shown counts as a pause, and as known at all."""
_DEFAULT_FPS = Fraction(24)


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """Which frames a video file holds; made once by `VideoFrames.open`.

    Attributes:
        num_frames: stored frames, from the first one that decodes on.
        pts: their times in `time_base`, ascending.
        keys: which of them decoding can begin at.
        rate: of constant rates the exact one, else the usual one between frames; see `rates.rate_of`.
        variable: whether the frames are unevenly spaced.
        seconds: length, the time of the last frame included.
        sequential: whether frames are known by their order only, so that each read decodes from the start.
        jumps: seconds to add to the file's times from each place on where its clock starts anew.
    """

    num_frames: int
    pts: np.ndarray = field(repr=False)
    keys: np.ndarray = field(repr=False)
    time_base: Fraction
    rate: Fraction
    variable: bool
    seconds: Fraction
    sequential: bool = False
    jumps: tuple[Fraction, ...] = ()

    @property
    def start(self) -> Fraction:
        """The file's time of the first frame, in seconds."""
        return int(self.pts[0]) * self.time_base

    @property
    def times(self) -> np.ndarray:
        """The times from the first frame on, in `time_base`."""
        times: np.ndarray = self.pts - self.pts[0]
        return times


@dataclass(frozen=True)
class _Times:
    """When the frames of a file are shown, in ticks and in order; `last_duration` is that of the last one, if known."""

    ticks: list[int]
    keys: set[int]
    last_duration: int = 0
    sequential: bool = False
    jumps: tuple[Fraction, ...] = ()


def find_index(
    container: InputContainer, stream: av.VideoStream, path: str, first_pts: int | None, watch: Watch
) -> VideoIndex:
    """Look through a whole file, without decoding it where its packets tell enough.

    first_pts: the time of the first frame that decodes; what is stored before it refers to a part that was cut away.
    watch: called for every packet; raises whatever means Cancel.

    Raises:
        VideoReadError: no frames, or fewer than the file promises.
    """
    tick = time_base(stream)
    # What the encoder wrote into its stream comes first: containers round times, and averages with them.
    rates = (stream.codec_context.framerate, stream.guessed_rate, stream.average_rate, stream.base_rate)
    named = [Fraction(rate) for rate in rates if rate]
    times = _times_of_packets(container, stream, path, tick, watch) or _times_of_frames(path, tick, named, watch)
    if first_pts is not None and not times.sequential:
        times = _Times([time for time in times.ticks if time >= first_pts], times.keys, times.last_duration)
    if not times.ticks:
        raise VideoReadError(f"{path} has no frames; it is cut off or damaged")
    pts = np.array(times.ticks, np.int64)
    rate, variable = rate_of(pts - pts[0], tick, named)
    length = int(pts[-1] - pts[0]) * tick
    held = times.last_duration * tick
    variable = variable or held >= _HELD / rate
    last = held if variable and held >= _KNOWN / rate else 1 / rate
    seconds = length + last if variable else len(pts) / rate
    _check_length(container, stream, path, pts, tick, length + last)
    keys = np.searchsorted(pts, sorted(times.keys))
    keys = np.union1d(keys[keys < len(pts)], 0)
    return VideoIndex(len(pts), pts, keys, tick, rate, variable, seconds, times.sequential, times.jumps)


def _times_of_packets(
    container: InputContainer, stream: av.VideoStream, path: str, tick: Fraction, watch: Watch
) -> _Times | None:
    """What the packets tell; None where they do not tell when each frame is shown."""
    codec = stream.codec_context.name
    clock = RecordingClock(container, tick)
    found: list[tuple[int | None, int]] = []
    decoded_at: list[int] = []
    keys: set[int] = set()
    incomplete = False
    for packet in packets(container, stream):
        watch()
        if packet.is_discard or (codec == "vp8" and _is_hidden_vp8(packet)):
            continue
        if packet.dts is not None:
            clock.seconds(packet.dts)
            decoded_at.append(packet.dts)
        found.append((packet.pts, packet.duration or 0))
        if packet.is_keyframe and packet.pts is not None:
            keys.add(packet.pts)
        incomplete = packet.is_corrupt
    if incomplete and len(found) > 1:
        found.pop()  # a recording that was cut off within its last packet
    known = [(pts, duration) for pts, duration in found if pts is not None]
    if clock.jumps:
        return None
    if found and not known or (_knows_no_order(container, stream) and not _is_in_order(path)):
        if len(set(decoded_at)) == len(found):  # places of frames that were dropped are empty
            return _Times(sorted(decoded_at), set(), sequential=True)
        rate = stream.guessed_rate or stream.average_rate or _DEFAULT_FPS
        return _Times([round(number / (rate * tick)) for number in range(len(found))], set(), sequential=True)
    if len({pts for pts, _ in known}) != len(found):
        return None
    known.sort()
    last_duration = known[-1][1] if known else 0
    if len(known) > 1 and found[-1][0] != known[-1][0]:
        last_duration = 0  # durations of frames that are stored out of order are not those of their showing
    return _Times([pts for pts, _ in known], keys, last_duration)


def _times_of_frames(path: str, tick: Fraction, named: Sequence[Fraction], watch: Watch) -> _Times:
    """What the decoded frames tell."""
    times: list[int] = []
    with open_media(path) as container:
        clock = RecordingClock(container, tick)
        stream = video_stream(container, path)
        step = max(1, round(1 / ((named or [_DEFAULT_FPS])[0] * tick)))
        for frame in decoded(container, stream, watch):
            time = None if frame.pts is None else round(clock.seconds(frame.pts) / tick)
            after = times[-1] + 1 if times else 0
            if time is None or time < after:  # frames of their own that claim the same time
                time = times[-1] + step if times else 0
            times.append(time)
    return _Times(times, set(), sequential=True, jumps=tuple(clock.jumps))


def _is_hidden_vp8(packet: Packet[Any]) -> bool:
    """Whether a packet holds a frame that only others refer to (RFC 6386, section 9.1)."""
    return not memoryview(packet)[0] >> 4 & 1


def _knows_no_order(container: InputContainer, stream: av.VideoStream) -> bool:
    return bool(format_names(container) & _ORDER_OF_DECODING) and stream.codec_context.codec.reorder


def _is_in_order(path: str) -> bool:
    """Whether the first frames have the times at which they come out of the decoder."""
    with open_media(path) as container:
        frames = decoded(container, video_stream(container, path))
        times = [frame.pts for _, frame in zip(range(_PROBED_FRAMES), frames, strict=False)]
    known = [time for time in times if time is not None]
    return len(known) == len(times) and known == sorted(set(known))


def _check_length(
    container: InputContainer, stream: av.VideoStream, path: str, pts: np.ndarray, tick: Fraction, seconds: Fraction
) -> None:
    """Refuse a file whose head promises more than is there. Matroska promises the time of the end, not a length."""
    if not _HONEST_CONTAINERS & format_names(container):
        return
    begun = max(0.0, float(int(pts[0]) * tick))
    if stream.duration is not None:
        promised = float(stream.duration * tick)
    elif stream.metadata.get("DURATION", "").count(":") == 2:
        hours, minutes, rest = stream.metadata["DURATION"].split(":")
        promised = int(hours) * 3600 + int(minutes) * 60 + float(rest) - begun
    elif len(container.streams) == 1 and container.duration:
        promised = container.duration / av.time_base - begun
    else:
        return
    if promised - float(seconds) > max(3 * float(seconds) / len(pts), 0.02 * promised):
        raise VideoReadError(
            f"{path} is cut off: {len(pts)} frames ({float(seconds):.2f} s) of {promised:.2f} s are there; "
            "get a whole copy"
        )


def file_identity(path: str) -> tuple[int, int]:
    """What tells that a file was changed: its size and time of change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
