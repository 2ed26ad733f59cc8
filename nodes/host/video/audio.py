"""The host's AUDIO and the core's audio: files are carried as handles and decoded only where samples are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.frames import AudioTrack


class FileAudio(Mapping[str, Any]):
    """An AUDIO `{"waveform": [1, C, T], "sample_rate"}` that is decoded when a node first asks for the waveform.

    Save Stream reads the file in blocks instead, so that audio too takes no more memory for longer videos.
    """

    def __init__(self, track: AudioTrack):
        self.track = track

    @cached_property
    def waveform(self) -> Tensor:
        return self.track.read().unsqueeze(0)

    def __getitem__(self, key: str) -> Tensor | int:
        if key == "waveform":
            return self.waveform
        if key == "sample_rate":
            return self.track.sample_rate
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("waveform", "sample_rate"))

    def __len__(self) -> int:
        return 2


def to_track(audio: Any) -> AudioTrack | None:
    """Any AUDIO as what the core writes; None stays None.

    Raises:
        SettingsError: no AUDIO, several audio in a batch, or channels without a common layout.
    """
    if audio is None:
        return None
    if isinstance(audio, FileAudio):
        return audio.track
    if not isinstance(audio, Mapping) or not {"waveform", "sample_rate"} <= audio.keys():
        raise SettingsError(f"audio must be AUDIO of ComfyUI, got {type(audio).__name__}")
    return AudioTrack.from_waveform(audio["waveform"], audio["sample_rate"])
