"""Audio for written videos, from a file or a waveform: cut or padded to the length of the video, read in blocks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Stream

from ..errors import SettingsError, VideoReadError, VideoWriteError
from .audio_layouts import MOST_CHANNELS, USUAL_LAYOUTS, decoder_of, layout_of, takes
from .media import RecordingClock, audio_stream, decoded, open_media, time_base, video_stream

_SAMPLES = "flt"
"""Frames are packed: PyAV reads beyond planar frames of eight channels and more, which kills the process."""
_SPECIAL_RATES = {"libopus": (48000,)}
_GAP = Fraction(1, 100)
"""From so many seconds on, times that leave the line of the samples are a gap or an overlap, not rounding."""
_LONGEST_GAP = 600
"""A silence longer than this, in seconds, comes from a damaged time and not from a pause."""


@dataclass(frozen=True, eq=False)
class AudioTrack:
    """Audio to go with a video; a cheap handle. Make it with `from_file` or `from_waveform`.

    Attributes:
        sample_rate: samples per second of the source.
        layout: name of the channel layout ("mono", "stereo", "5.1" ...).
        start: seconds of the file that are left out.
        seconds: where the audio ends at the latest, counted from there; None: with the file.
        origin: the file's time that `start` is counted from, in seconds; None: that of its first video frame.
        jumps: of recordings whose clock starts anew, see `VideoIndex.jumps`.
    """

    sample_rate: int
    layout: str
    path: str | None = None
    start: Fraction = Fraction(0)
    seconds: Fraction | None = None
    waveform: torch.Tensor | None = field(default=None, repr=False)
    origin: Fraction | None = None
    jumps: tuple[Fraction, ...] = ()

    @classmethod
    def from_waveform(cls, waveform: torch.Tensor, sample_rate: int) -> AudioTrack:
        """Audio from a tensor `[C, T]` or `[1, C, T]` in -1..1, as in the host's AUDIO.

        Raises:
            SettingsError: another shape, a batch of several, or more than 8 channels.
        """
        if waveform.ndim == 3 and waveform.shape[0] == 1:
            waveform = waveform[0]
        if waveform.ndim != 2 or waveform.shape[0] not in USUAL_LAYOUTS:
            raise SettingsError(
                f"audio must be one waveform [channels, samples] with 1 to {MOST_CHANNELS} channels, got shape "
                f"{tuple(waveform.shape)}"
            )
        if sample_rate < 1:
            raise SettingsError(f"audio needs a positive sample rate, got {sample_rate}")
        return cls(int(sample_rate), USUAL_LAYOUTS[waveform.shape[0]], waveform=waveform)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        start_seconds: float | Fraction = 0,
        seconds: float | Fraction | None = None,
    ) -> AudioTrack:
        """Audio of a media file from `start_seconds` on, counted from its first video frame (or its first sample).

        seconds: how much of it at most; default up to its end.

        Raises:
            VideoReadError: not readable, or without audio.
        """
        try:
            with open_media(os.fspath(path)) as container:
                audio = _audio_stream(container, path)
                context, limit = audio.codec_context, None if seconds is None else Fraction(seconds)
                layout = layout_of(context, path)
                return cls(context.sample_rate, layout.name, os.fspath(path), Fraction(start_seconds), limit)
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(f"the audio of {path} cannot be read: {error}") from error

    def rate_for(self, encoder: str) -> int:
        """The sample rate an encoder gets: the source's own if it can, else 48000."""
        allowed = _SPECIAL_RATES.get(encoder) or av.Codec(encoder, "w").audio_rates
        return self.sample_rate if not allowed or self.sample_rate in allowed else 48000

    def layout_for(self, encoder: str) -> str:
        """The channel layout an encoder gets: the source's own if it can, else the usual one of as many channels, else
        stereo.
        """
        own = [self.layout, USUAL_LAYOUTS[len(av.AudioLayout(self.layout).channels)]]
        return next((layout for layout in own if takes(encoder, layout, self.rate_for(encoder))), "stereo")

    def blocks(self, sample_rate: int, layout: str | None = None) -> Generator[np.ndarray, None, None]:
        """The samples at `sample_rate` as float32 blocks `[C, n]`; ends where the source or `seconds` ends.

        `layout`: the channels, mixed from the source's; default the source's own.
        """
        left = None if self.seconds is None else round(self.seconds * sample_rate)
        with contextlib.closing(self._resampled(sample_rate, layout or self.layout)) as blocks:
            for block in blocks:
                if left is not None:
                    block = block[:, :left]
                    left -= block.shape[1]
                if block.shape[1]:
                    yield block
                if left == 0:
                    return

    def read(self) -> torch.Tensor:
        """All samples as `[C, T]`, float32 on the CPU: the one use whose memory grows with the length."""
        blocks = [torch.from_numpy(block.copy()) for block in self.blocks(self.sample_rate)]
        return torch.cat(blocks, dim=1) if blocks else torch.zeros(len(av.AudioLayout(self.layout).channels), 0)

    def _resampled(self, sample_rate: int, layout: str) -> Generator[np.ndarray, None, None]:
        resampler = av.AudioResampler(format=_SAMPLES, layout=layout, rate=sample_rate)
        with contextlib.closing(self._source()) as frames:
            for frame in frames:
                for piece in resampler.resample(frame):
                    yield _samples_of(piece)
        for piece in resampler.resample(None):
            yield _samples_of(piece)

    def _source(self) -> Generator[av.AudioFrame, None, None]:
        if self.path is not None:
            return self._file_frames(self.path)
        if self.waveform is not None:
            return self._waveform_frames(self.waveform)
        raise SettingsError("audio comes from a file or a waveform; make it with from_file or from_waveform")

    def _waveform_frames(self, waveform: torch.Tensor) -> Generator[av.AudioFrame, None, None]:
        position = 0
        for block in torch.split(waveform, self.sample_rate, dim=1):
            samples = np.ascontiguousarray(block.to(torch.float32).clamp(-1, 1).cpu().numpy())
            yield self._frame(samples, position)
            position += samples.shape[1]

    def _frame(self, samples: np.ndarray, position: int) -> av.AudioFrame:
        return _frame_of(samples, self.layout, self.sample_rate, position)

    def _file_frames(self, path: str) -> Generator[av.AudioFrame, None, None]:
        """Frames from the start on; silence where the file has none, samples before the start and overlaps cut off."""
        try:
            with open_media(path) as container:
                audio = _audio_stream(container, path)
                begin = (_start_of(container, audio, path) if self.origin is None else self.origin) + self.start
                if self.start > 0 and not self.jumps:
                    container.seek(int(begin / time_base(audio)), stream=audio)
                layout = layout_of(audio.codec_context, path)
                decoder = decoder_of(audio.codec_context, layout)
                clock = RecordingClock(container, time_base(audio), self.jumps)
                form: tuple[str, str, int] | None = None
                position = 0
                for frame in decoded(container, audio, context=decoder):
                    if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                        # Broadcasts change between stereo and surround.
                        to_float = av.AudioResampler(format=_SAMPLES, layout=self.layout, rate=self.sample_rate)
                    start = position
                    if frame.pts is not None:
                        start = round((clock.seconds(frame.pts) - begin) * self.sample_rate)
                    for piece in to_float.resample(frame):
                        samples = layout.sorted(_samples_of(piece))
                        gap = start - position
                        rounding = position > 0 and abs(gap) < _GAP * self.sample_rate
                        if rounding or gap > _LONGEST_GAP * self.sample_rate:
                            gap = 0
                        start += samples.shape[1]
                        for length in _seconds_of(gap, self.sample_rate):
                            yield self._frame(np.zeros((len(samples), length), np.float32), position)
                            position += length
                        samples = samples[:, max(0, -gap) :]
                        if samples.shape[1]:
                            yield self._frame(np.ascontiguousarray(samples), position)
                            position += samples.shape[1]
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(f"the audio of {path} cannot be read: {error}") from error


def _seconds_of(gap: int, rate: int) -> Iterator[int]:
    """A gap of so many samples in parts of a second."""
    for first in range(0, gap, rate):
        yield min(rate, gap - first)


def _audio_stream(container: InputContainer, path: str | os.PathLike[str]) -> av.AudioStream:
    audio = audio_stream(container)
    if audio is None:
        raise VideoReadError(f"{path} has no audio to carry over")
    return audio


def _samples_of(frame: av.AudioFrame) -> np.ndarray:
    """Samples `[C, n]` of a packed frame."""
    samples: np.ndarray = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).T
    return samples


def _frame_of(samples: np.ndarray, layout: str, rate: int, position: int) -> av.AudioFrame:
    """A packed frame of samples `[C, n]` that begins at sample `position`."""
    packed = np.ascontiguousarray(samples.T, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format=_SAMPLES, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
    return frame


def _start_of(container: InputContainer, audio: av.AudioStream, path: str) -> Fraction:
    """The time of the first video frame, or of the audio where there is no video."""
    try:
        first: Stream = video_stream(container, path)
    except VideoReadError:
        first = audio
    return Fraction(0) if first.start_time is None else first.start_time * time_base(first)


class AudioFeed:
    """Feeds a track to an encoder just as far as the video has come, so that both end together to the sample."""

    def __init__(self, track: AudioTrack, container: OutputContainer, encoder: str) -> None:
        self.rate = track.rate_for(encoder)
        self._layout = track.layout_for(encoder)
        stream = container.add_stream(encoder, rate=self.rate, layout=self._layout)
        if not isinstance(stream, av.AudioStream):
            raise VideoWriteError(f"{encoder} is no audio encoder")
        self.stream = stream
        self._container = container
        self._blocks = track.blocks(self.rate, self._layout)
        self._rest = np.zeros((len(av.AudioLayout(self._layout).channels), 0), np.float32)
        self._position = 0

    def advance(self, seconds: Fraction) -> None:
        """Encode samples until the track is `seconds` long; silence once the source has ended."""
        wanted = round(seconds * self.rate) - self._position
        if wanted <= 0:
            return
        samples = np.zeros((self._rest.shape[0], wanted), np.float32)
        filled = 0
        while filled < wanted:
            if self._rest.shape[1] == 0:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = block
            taken = self._rest[:, : wanted - filled]
            samples[:, filled : filled + taken.shape[1]] = taken
            self._rest = self._rest[:, taken.shape[1] :]
            filled += taken.shape[1]
        frame = _frame_of(samples, self._layout, self.rate, self._position)
        self._position += wanted
        self._container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        """Take the last packets out of the encoder."""
        self._container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Let go of the source file."""
        self._blocks.close()
