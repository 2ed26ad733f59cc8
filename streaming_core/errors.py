"""Typed errors of the core.

Every error a user can cause is a `StreamingError`. Its message is one sentence that carries the numbers and the way
out, so that a node can show it unchanged. Subclasses say what kind of thing was wrong; code that reacts catches those.
"""

from __future__ import annotations


class StreamingError(ValueError):
    """Base of all errors that a wrong input, file or setting causes."""


class CheckpointError(StreamingError):
    """A weights file is not what it should be: wrong architecture, missing or unexpected keys, damaged."""


class SettingsError(StreamingError):
    """Settings that contradict each other or lie outside their range (an overlap as long as the chunk, zero frames)."""


class FrameError(StreamingError):
    """Frames of a wrong shape, size, type or rate."""


class FrameRangeError(FrameError):
    """Frames were asked for that the stream does not have."""


class NotNumbersError(FrameError):
    """A frame holds NaN or infinity. `number` is the frame's, counted from 0."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"frame {number}, counted from 0, holds values that are not numbers (NaN or infinity); what made it "
            "overflowed, run that model or VAE in float32 or bfloat16"
        )
        self.number = number

    def __reduce__(self) -> tuple[type[NotNumbersError], tuple[int]]:
        return type(self), (self.number,)  # an error is copied by its message otherwise


class FrameMismatchError(FrameError):
    """Streams that should fit together differ in size or rate."""


class VideoReadError(StreamingError):
    """A video file is missing, cut off or not readable."""


class VideoWriteError(StreamingError):
    """A video or image file could not be written."""


class RunFolderError(StreamingError):
    """A run folder cannot be used as asked."""


class RunNameError(RunFolderError):
    """A run name is empty or leads outside the run root."""


class RunLockedError(RunFolderError):
    """Another prompt or process holds the run folder."""


class RunDamagedError(RunFolderError):
    """The manifest or a chunk file is cut off, altered or missing."""


class RunMismatchError(RunFolderError):
    """The run folder belongs to another schema version, kind or size."""


class Cancelled(Exception):
    """The work was canceled on request; raised by a `check_cancel` of callers that have no exception of their own."""
