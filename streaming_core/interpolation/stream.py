"""A video with more frames: pair by pair, in constant memory, with any interpolation network.

Networks are those of the host's `INTERP_MODEL` (reference: comfyui-host, section 17.2). A video is a stream like any
other: frames are made when they are read, so it never sits in memory, and reading it twice makes them twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import SettingsError
from ..frames.scene_cuts import is_cut, is_static
from ..frames.sinks import read_ahead
from ..frames.slices import checked, frames_per_slice
from ..frames.stream import DerivedFrames, FrameStream, TensorFrames
from . import timeline as timelines
from .timeline import Span, Timeline

CUT_THRESHOLD = 0.5
READ_AHEAD = 8
"""Source frames read in one go, at most."""
USABLE_MEMORY = 0.8
"""Part of the free memory that batches are made for; the rest is for what an estimate cannot know."""


class InterpolationNetwork(Protocol):
    """What a network must offer; `pad_align` (default 1) and `forward_multi_timestep` are optional."""

    def memory_used_forward(self, shape: Sequence[int], dtype: torch.dtype) -> int: ...

    def extract_features(self, img: Tensor) -> Any: ...

    def __call__(self, img0: Tensor, img1: Tensor, timestep: Tensor, cache: MutableMapping[str, Any]) -> Tensor: ...


def _nothing(*_: Any) -> None:
    return None


def _is_torchs(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


@dataclass(frozen=True)
class InterpolationModel:
    """A network where it can run, and what to ask of the one who owns the machine.

    Args:
        network: see `InterpolationNetwork`.
        device, dtype: of the frames it gets.
        prepare: called with the IMAGE shape `(1, H, W, 3)` before each pair; brings the weights to `device`.
        free_bytes: memory left on `device`, or None where batches do not pay (a CPU is slower with them).
        recover: called after out-of-memory, before the next attempt.
        is_out_of_memory: whether an exception means it; default torch's own.
        check_cancel: called before each pair; raises whatever means Cancel.
    """

    network: InterpolationNetwork
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    prepare: Callable[[tuple[int, int, int, int]], None] = _nothing
    free_bytes: Callable[[], int | None] = _nothing
    recover: Callable[[], None] = _nothing
    is_out_of_memory: Callable[[Exception], bool] = _is_torchs
    check_cancel: Callable[[], None] = _nothing


@dataclass(frozen=True, eq=False)
class InterpolatedFrames(DerivedFrames):
    """`source` as seen on `timeline`.

    Args:
        cut_threshold: pairs that change more (0..1, see `scene_cuts`) are held, the nearer frame each; 0: never.
        copy_static: pairs that differ by no more than a byte step are held as well.
        byte_steps: made frames are cut down to steps of 1/255, as StreamingSVD stores them.
    """

    source: FrameStream
    timeline: Timeline
    model: InterpolationModel = field(repr=False)
    cut_threshold: float = CUT_THRESHOLD
    copy_static: bool = True
    byte_steps: bool = False
    _rested: list[_Worker] = field(default_factory=list, init=False, repr=False)

    @property
    def decodes(self) -> bool:
        return False  # runs a model

    def __post_init__(self) -> None:
        if self.timeline.last >= len(self.source):
            raise SettingsError(
                f"the timeline needs {self.timeline.last + 1} source frames, the stream has {len(self.source)}"
            )
        if not 0 <= self.cut_threshold <= 1:
            raise SettingsError(f"the scene-cut threshold is 0 (off) to 1, not {self.cut_threshold}")
        if isinstance(self.source, TensorFrames):
            checked(self.source.images)  # now, not when half of the video has been made

    @property
    def fps(self) -> Fraction:
        return self.timeline.fps

    def __len__(self) -> int:
        return len(self.timeline)

    def _read(self, start: int, stop: int) -> Tensor:
        # Readers in several threads each find a worker of their own; taking from a list is atomic.
        worker = self._rested.pop() if self._rested else _Worker(self)
        frames = worker.make(start, stop)
        worker.rest()
        self._rested[:] = [worker]
        return frames

    def slices(
        self, size: int | None = None, start: int = 0, stop: int | None = None, *, stored: bool = False
    ) -> Generator[Tensor, None, None]:
        """Slices of at most `size` frames; each also ends with its source pair, so that progress moves pair by pair."""
        size = frames_per_slice(self.height, self.width) if size is None else size
        if size < 1:
            raise SettingsError(f"slices need at least one frame, got {size}")
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            self.read(start, stop)
        if start == stop:
            return
        worker, horizon = _Worker(self), self.timeline.last_needed(stop)
        with contextlib.closing(self._decoded(start, horizon)) as worker.ahead:
            for span in self.timeline.spans(start, stop):
                for first in range(0, len(span.times), size):
                    count = min(size, len(span.times) - first)
                    yield checked(worker.make(start, start + count, horizon), start)
                    start += count

    def _decoded(self, start: int, horizon: int) -> Generator[tuple[int, Tensor], None, None]:
        """Source frames from the first that frame `start` needs up to `horizon`, decoded while the network works.

        Nothing for sources that are quick to read or run a model, and where most source frames are left out.
        """
        if not self.source.decodes or self.timeline.step > 1:
            return
        first = next(self.timeline.spans(start, start + 1)).left
        size = frames_per_slice(self.height, self.width, READ_AHEAD // 2)
        slices = self.source.slices(size, first, horizon + 1)
        with contextlib.closing(read_ahead(slices, depth=1)) as ahead:
            for frames in ahead:
                yield first, frames
                first += len(frames)


class _Worker:
    """Makes frames of one video in order; keeps what the next pair shares with this one."""

    def __init__(self, video: InterpolatedFrames):
        self.video, self.model = video, video.model
        self.frames: dict[int, Tensor] = {}
        self.sent: dict[int, Tensor] = {}
        self.seen: dict[int, tuple[Tensor, Any]] = {}
        self.cache: dict[str, Any] = {}
        self.held: tuple[int, bool] = (-1, False)
        self.batch: int | None = None
        self.multi = getattr(self.model.network, "forward_multi_timestep", None)
        self.ahead: Iterator[tuple[int, Tensor]] = iter(())

    def rest(self) -> None:
        """Forget what lies on the device; a video that is kept must not keep that."""
        self.sent, self.seen, self.cache = {}, {}, {}

    def make(self, start: int, stop: int, horizon: int | None = None) -> Tensor:
        """Frames `start` to `stop`. Source frames up to `horizon` (default: the last needed now) may be read ahead."""
        out = torch.empty(stop - start, self.video.height, self.video.width, 3)
        horizon = self.video.timeline.last_needed(stop) if horizon is None else horizon
        done = 0
        # The result is made outside, so that it can be written to in any mode.
        with torch.inference_mode():
            for span in self.video.timeline.spans(start, stop):
                self._fill(out[done : done + len(span.times)], span, horizon)
                done += len(span.times)
        return out

    def _fill(self, out: Tensor, span: Span, horizon: int) -> None:
        first = self._frame(span.left, horizon)
        between = [index for index, time in enumerate(span.times) if time]
        for index in range(len(span.times)):
            if index not in between:
                out[index] = first
        if not between:
            return
        self.model.check_cancel()
        second = self._frame(span.left + 1, horizon)
        if self._is_held(span.left):
            for index in between:
                out[index] = first if span.times[index] < Fraction(1, 2) else second
            return
        made = self._between(span.left, [float(span.times[index]) for index in between])
        for index, image in zip(between, made, strict=True):
            out[index] = image

    def _frame(self, index: int, horizon: int) -> Tensor:
        """Source frame `index` `[H, W, 3]`; read in slices up to `horizon`, forwards, each frame once."""
        if index not in self.frames:
            kept = {number: frame for number, frame in self.frames.items() if number == index - 1}
            start, read = next(self.ahead, (index, None))
            if read is None:
                count = frames_per_slice(self.video.height, self.video.width, READ_AHEAD)
                last = max(index, min(horizon, index + count - 1))
                read = checked(self.video.source.read(index, last + 1), index)
            self.frames = kept | dict(enumerate(read, start=start))
        for number in [number for number in self.frames if number < index - 1]:
            del self.frames[number]
        return self.frames[index]

    def _sent(self, index: int) -> Tensor:
        """A source frame on the model's device, `[H, W, 3]`."""
        if index not in self.sent:
            self.sent = {number: frame for number, frame in self.sent.items() if number == index - 1}
            self.sent[index] = self.frames[index].to(self.model.device)
        return self.sent[index]

    def _is_held(self, left: int) -> bool:
        if self.held[0] != left:
            first, second = self._sent(left), self._sent(left + 1)
            static = self.video.copy_static and is_static(first, second)
            self.held = (left, static or is_cut(first, second, self.video.cut_threshold))
        return self.held[1]

    def _between(self, left: int, times: list[float]) -> Tensor:
        """Frames `[len(times), H, W, 3]` between source frames `left` and `left + 1`, on the CPU."""
        shape = (1, self.video.height, self.video.width, 3)
        self.model.prepare(shape)
        if self.batch is None:
            self.batch = self._fitting(shape)
        self.seen = {index: known for index, known in self.seen.items() if index in (left, left + 1)}
        (first, at_first), (second, at_second) = self._look(left), self._look(left + 1)
        self.cache.update(img0=at_first, img1=at_second, next=at_second)
        made: list[Tensor] = []
        done = 0
        while done < len(times):
            part = times[done : done + self.batch]
            frames = self._attempt(first, second, part)
            if frames is None:
                continue
            made.append(self._image(frames))
            done += len(part)
        return torch.cat(made)

    def _fitting(self, shape: tuple[int, int, int, int]) -> int:
        """How many times of a pair fit into the memory at hand; at least one is tried."""
        free = self.model.free_bytes()
        if free is None:
            return 1
        each = self.model.network.memory_used_forward(shape, self.model.dtype)
        return max(1, int(free * USABLE_MEMORY) // max(1, each))

    def _look(self, index: int) -> tuple[Tensor, Any]:
        """A source frame as the network wants it, and its features; computed once for both of its pairs."""
        if index not in self.seen:
            frame = self._sent(index).movedim(-1, 0)[None].to(self.model.dtype)
            frame = _aligned(frame, getattr(self.model.network, "pad_align", 1))
            self.seen[index] = (frame, self.model.network.extract_features(frame))
        return self.seen[index]

    def _attempt(self, first: Tensor, second: Tensor, times: list[float]) -> Tensor | None:
        """Frames `[len(times), 3, H, W]`, or None after out-of-memory when a smaller attempt is possible."""
        try:
            if self.multi is not None:
                return self.multi(first, second, times, cache=self.cache)
            steps = torch.tensor(times, device=first.device, dtype=first.dtype).view(-1, 1, 1, 1)
            steps = steps.expand(-1, 1, *first.shape[-2:])
            img0, img1 = (frame.expand(len(times), -1, -1, -1) for frame in (first, second))
            return self.model.network(img0, img1, timestep=steps, cache=self.cache)
        except Exception as error:
            if not self.model.is_out_of_memory(error):
                raise
            if len(times) > 1:
                self.batch = len(times) // 2
            elif self.multi is not None:
                self.multi = None
            else:
                raise
        self.model.recover()
        return None

    def _image(self, frames: Tensor) -> Tensor:
        frames = frames[..., : self.video.height, : self.video.width].float().clamp(0, 1)
        if self.video.byte_steps:
            frames = (frames * 255).floor() / 255
        return frames.movedim(1, -1).cpu()


def _aligned(frame: Tensor, multiple: int) -> Tensor:
    """Padded at the bottom and on the right to a multiple, mirrored where the frame is large enough for that."""
    height, width = frame.shape[-2:]
    pad = (0, (-width) % multiple, 0, (-height) % multiple)
    if not any(pad):
        return frame
    mirrored = pad[1] < width and pad[3] < height
    return functional.pad(frame, pad, mode="reflect" if mirrored else "replicate")


def official_interpolation(
    source: FrameStream, num_frames: int, model: InterpolationModel, output_fps: Fraction | float = 24
) -> InterpolatedFrames:
    """StreamingSVD's last step for a requested length (reference: ema-vfi, section 7): its counts and its numbers.

    `model` should be `ours` with fast test-time augmentation. Every pair is computed, cuts and stills included.
    """
    timeline = timelines.official(len(source), num_frames, output_fps)
    return InterpolatedFrames(source, timeline, model, cut_threshold=0, copy_static=False, byte_steps=True)
