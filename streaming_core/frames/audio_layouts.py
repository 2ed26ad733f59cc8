"""Channel layouts: of files, of waveforms, and those that encoders take."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from ..errors import VideoReadError

USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
MOST_CHANNELS = max(USUAL_LAYOUTS)
_OF_THE_CONTAINER = "pcm_"
"""Codecs that leave their layout to the container."""


@dataclass(frozen=True)
class FileLayout:
    """How the channels of a file are laid out.

    Attributes:
        name: the name of the layout.
        order: for each channel of that layout, which of the file's it is; None where the file has that order itself.
    """

    name: str
    order: tuple[int, ...] | None = None

    def sorted(self, samples: np.ndarray) -> np.ndarray:
        """Samples `[C, n]` of the file in the order of the layout."""
        return samples if self.order is None else samples[list(self.order)]


def layout_of(context: av.AudioCodecContext, path: object) -> FileLayout:
    """The layout of a file's audio; files that only count their channels have the usual one of as many.

    Raises:
        VideoReadError: more channels than any layout that is written, or an order that cannot be decoded safely.
    """
    layout = context.layout
    # PyAV shares an order of the file's own with FFmpeg, and both free it, which ends the process. So PyAV never does.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    names = [channel.name for channel in layout.channels]
    if len(names) > MOST_CHANNELS:
        raise VideoReadError(f"{path} has audio with {len(names)} channels; convert it to at most {MOST_CHANNELS}")
    if not names:
        raise VideoReadError(f"{path} has audio without channels; it is damaged")
    usual = USUAL_LAYOUTS[len(names)]
    name = _name(layout)
    if name is not None:
        # FFmpeg takes channels without names for its own usual layout of as many.
        return FileLayout(av.AudioLayout(f"{len(names)}c").name if name.endswith(" channels") else name)
    if not context.name.startswith(_OF_THE_CONTAINER):
        raise VideoReadError(f"{path} has audio with its channels in an unusual order; convert it to {usual}")
    known = [channel.name for channel in av.AudioLayout(usual).channels]
    if sorted(names) == sorted(known):
        return FileLayout(usual, tuple(names.index(name) for name in known))
    return FileLayout(usual, tuple(range(len(names))))


def decoder_of(context: av.AudioCodecContext, layout: FileLayout) -> av.AudioCodecContext:
    """What decodes a file's audio: its own context, or one that knows nothing of an order of the file's own."""
    if layout.order is None:
        return context
    fresh = av.CodecContext.create(context.name, "r")
    if not isinstance(fresh, av.AudioCodecContext):
        raise VideoReadError(f"{context.name} is no audio decoder")
    fresh.sample_rate, fresh.layout = context.sample_rate, layout.name
    return fresh


def takes(encoder: str, layout: str, rate: int) -> bool:
    """Whether an encoder opens with this layout. Not every codec lists what it takes, so it is asked."""
    try:
        context = av.CodecContext.create(encoder, "w")
        if not isinstance(context, av.AudioCodecContext):
            return False
        formats = context.codec.audio_formats or [av.AudioFormat("fltp")]
        context.layout, context.sample_rate, context.format = layout, rate, formats[0]
        context.time_base = Fraction(1, rate)
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _name(layout: av.AudioLayout) -> str | None:
    """The name of a layout; None for an order of the file's own, which has only a description, if any."""
    try:
        name = layout.name
    except UnicodeDecodeError:
        return None
    return None if "+" in name else name
