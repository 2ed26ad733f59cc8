"""Audio for written videos, from a file or a waveform: cut or padded to the length of the video, read in blocks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Stream

from ..errors import SettingsError, VideoReadError, VideoWriteError
from .media import audio_stream, time_base

_LAYOUTS = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}
_SPECIAL_RATES = {"libopus": (48000,)}


@dataclass(frozen=True, eq=False)
class AudioTrack:
    """Audio to go with a video; a cheap handle. Make it with `from_file` or `from_waveform`.

    Attributes:
        sample_rate: samples per second of the source.
        layout: name of the channel layout ("mono", "stereo", "5.1" ...).
        start: seconds of the file that are left out.
        seconds: where the audio ends at the latest, counted from there; None: with the file.
    """

    sample_rate: int
    layout: str
    path: str | None = None
    start: Fraction = Fraction(0)
    seconds: Fraction | None = None
    waveform: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def from_waveform(cls, waveform: torch.Tensor, sample_rate: int) -> AudioTrack:
        """Audio from a tensor `[C, T]` or `[1, C, T]` in -1..1, as in the host's AUDIO.

        Raises:
            SettingsError: another shape, a batch of several, or a number of channels without a common layout.
        """
        if waveform.ndim == 3 and waveform.shape[0] == 1:
            waveform = waveform[0]
        if waveform.ndim != 2 or waveform.shape[0] not in _LAYOUTS:
            raise SettingsError(
                "audio must be one waveform [channels, samples] with 1, 2, 4, 6 or 8 channels, got shape "
                f"{tuple(waveform.shape)}"
            )
        if sample_rate < 1:
            raise SettingsError(f"audio needs a positive sample rate, got {sample_rate}")
        return cls(int(sample_rate), _LAYOUTS[waveform.shape[0]], waveform=waveform)

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
            with av.open(os.fspath(path)) as container:
                audio = _audio_stream(container, path)
                context, limit = audio.codec_context, None if seconds is None else Fraction(seconds)
                return cls(context.sample_rate, context.layout.name, os.fspath(path), Fraction(start_seconds), limit)
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(f"the audio of {path} cannot be read: {error}") from error

    def rate_for(self, encoder: str) -> int:
        """The sample rate an encoder gets: the source's own if it can, else 48000."""
        allowed = _SPECIAL_RATES.get(encoder) or av.Codec(encoder, "w").audio_rates
        return self.sample_rate if not allowed or self.sample_rate in allowed else 48000

    def blocks(self, sample_rate: int) -> Generator[np.ndarray, None, None]:
        """The samples at `sample_rate` as planar float32 blocks `[C, n]`; ends where the source or `seconds` ends."""
        left = None if self.seconds is None else round(self.seconds * sample_rate)
        with contextlib.closing(self._resampled(sample_rate)) as blocks:
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

    def _resampled(self, sample_rate: int) -> Generator[np.ndarray, None, None]:
        resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=sample_rate)
        with contextlib.closing(self._source()) as frames:
            for frame in frames:
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray()
        for piece in resampler.resample(None):
            yield piece.to_ndarray()

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
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.sample_rate, position, Fraction(1, self.sample_rate)
        return frame

    def _file_frames(self, path: str) -> Generator[av.AudioFrame, None, None]:
        """Frames from the start on; silence before a late first sample, samples before the start cut off."""
        try:
            with av.open(path) as container:
                audio = _audio_stream(container, path)
                origin = _start_of(container.streams.video[0] if container.streams.video else audio)
                begin = origin + self.start
                if self.start > 0:
                    container.seek(int(begin / time_base(audio)), stream=audio)
                to_planar = av.AudioResampler(format="fltp", layout=self.layout, rate=self.sample_rate)
                position = 0
                late: int | None = None
                for frame in container.decode(audio):
                    if late is None and frame.pts is not None:
                        late = round((frame.pts * time_base(frame) - begin) * self.sample_rate)
                        if late > 0:
                            yield self._frame(np.zeros((len(audio.codec_context.layout.channels), late), np.float32), 0)
                            position = late
                    for piece in to_planar.resample(frame):
                        samples = piece.to_ndarray()
                        if late is not None and late < 0:
                            cut = min(-late, samples.shape[1])
                            samples, late = samples[:, cut:], late + cut
                        if samples.shape[1]:
                            yield self._frame(np.ascontiguousarray(samples), position)
                            position += samples.shape[1]
        except (av.FFmpegError, OSError) as error:
            raise VideoReadError(f"the audio of {path} cannot be read: {error}") from error


def _audio_stream(container: InputContainer, path: str | os.PathLike[str]) -> av.AudioStream:
    audio = audio_stream(container)
    if audio is None:
        raise VideoReadError(f"{path} has no audio to carry over")
    return audio


def _start_of(stream: Stream) -> Fraction:
    return Fraction(0) if stream.start_time is None else stream.start_time * time_base(stream)


class AudioFeed:
    """Feeds a track to an encoder just as far as the video has come, so that both end together to the sample."""

    def __init__(self, track: AudioTrack, container: OutputContainer, encoder: str) -> None:
        self.rate = track.rate_for(encoder)
        stream = container.add_stream(encoder, rate=self.rate, layout=track.layout)
        if not isinstance(stream, av.AudioStream):
            raise VideoWriteError(f"{encoder} is no audio encoder")
        self.stream = stream
        self._container = container
        self._layout = track.layout
        self._blocks = track.blocks(self.rate)
        self._rest = np.zeros((len(av.AudioLayout(track.layout).channels), 0), np.float32)
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
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self._position, Fraction(1, self.rate)
        self._position += wanted
        self._container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        """Take the last packets out of the encoder."""
        self._container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Let go of the source file."""
        self._blocks.close()
