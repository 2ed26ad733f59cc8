"""Windows that cover a video, and the frames that neighboring windows share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SettingsError


@dataclass(frozen=True)
class Window:
    """Frames `start` to `stop` (not included) of a video."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Windows = tuple[Window, ...]


def check_window(window_frames: int, overlap_frames: int) -> None:
    """Check that windows of this length and overlap, both in frames, can cover a video.

    Raises:
        SettingsError: a window without frames, or an overlap that is negative or not shorter than the window.
    """
    if window_frames < 1:
        raise SettingsError(f"a window needs at least 1 frame, got {window_frames}")
    if overlap_frames < 0:
        raise SettingsError(f"an overlap cannot be negative, got {overlap_frames} frames")
    if overlap_frames >= window_frames:
        raise SettingsError(
            f"an overlap of {overlap_frames} frames does not fit a window of {window_frames}: "
            f"choose an overlap of at most {window_frames - 1} or a longer window"
        )


def plan_windows(num_frames: int, window_frames: int, overlap_frames: int) -> Windows:
    """Windows of `window_frames` that cover `num_frames`, neighbors sharing at least `overlap_frames`.

    All have the same length. The last one moves back to end on the last frame, so its overlap may be longer than
    requested. A video no longer than one window is one window.

    Raises:
        SettingsError: no frames, or lengths that `check_window` refuses.
    """
    check_window(window_frames, overlap_frames)
    if num_frames < 1:
        raise SettingsError(f"there are no frames to cover: got {num_frames}, at least 1 is needed")
    if num_frames <= window_frames:
        return (Window(0, num_frames),)
    last = num_frames - window_frames
    starts = [*range(0, last, window_frames - overlap_frames), last]
    return tuple(Window(start, start + window_frames) for start in starts)


def plan_official_windows(num_frames: int, window_frames: int, overlap_frames: int) -> Windows:
    """The official layout: only whole strides, so up to a stride of frames at the end is dropped.

    Reference: enhancer, section 5.

    Raises:
        SettingsError: a video shorter than a window, where the official code fails, or lengths that `check_window`
            refuses.
    """
    check_window(window_frames, overlap_frames)
    if num_frames < window_frames:
        raise SettingsError(
            f"the official layout needs at least one window of {window_frames} frames, got {num_frames}: "
            "turn the official layout off, or give more frames"
        )
    starts = range(0, num_frames - window_frames + 1, window_frames - overlap_frames)
    return tuple(Window(start, start + window_frames) for start in starts)


def overlaps(windows: Sequence[Window]) -> tuple[int, ...]:
    """Number of frames that each window shares with the one before it, counted on the windows themselves."""
    pairs = zip(windows, windows[1:], strict=False)
    return tuple(before.stop - after.start for before, after in pairs)


def keyframes(windows: Sequence[Window]) -> tuple[int, ...]:
    """The frame that represents each window: its first."""
    return tuple(window.start for window in windows)
