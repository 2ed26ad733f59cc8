"""One pass over a video that takes every measure in slices; memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import FrameError, SettingsError
from ..frames import FrameStream
from ..loop.chunk_layout import ChunkLayout, windows
from . import mawe as mawe_rule
from .clip_scores import ClipCurves, ClipTools, Curve, curve
from .color import ColorDrift, color_drift, frame_colors
from .cuts import CutDetector, Cuts, best_detector
from .flow import FlowEstimator, classical_flow
from .mawe import Mawe
from .seams import Seams, compensated_difference, measure_seams, motion_change
from .stagnation import Stagnation, measure_stagnation, motion_percent, still_pairs, with_refreshes

Progress = Callable[[int, int], None]
CheckCancel = Callable[[], None]


@dataclass(frozen=True)
class Measures:
    """Everything measured about one video. Pair p lies between frames p and p + 1.

    Attributes:
        num_frames, height, width, fps: the video.
        layout: its chunks.
        flow_name, clip_name: what measured motion, and CLIP where it did.
        mawe, anchor, text: None where they could not be measured; `left_out` says why.
        differences: what the flow does not explain of single pixels, gray levels (`seams.compensated_difference`).
        left_out: measure -> one sentence.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    layout: ChunkLayout
    flow_name: str
    cuts: Cuts
    color: ColorDrift
    color_means: tuple[tuple[float, ...], ...]
    seams: Seams
    stagnation: Stagnation
    differences: tuple[float, ...]
    mawe: Mawe | None = None
    anchor: Curve | None = None
    text: Curve | None = None
    clip_name: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


class PairMeasures:
    """What is measured between neighboring frames. Keeps the last frame and the last flow of a slice for the next."""

    def __init__(self, flow: FlowEstimator, check_cancel: CheckCancel | None = None, only_mawe: bool = False) -> None:
        self._flow, self._check_cancel, self._only_mawe = flow, check_cancel or (lambda: None), only_mawe
        self._frame_before: Tensor | None = None
        self._flow_before: Tensor | None = None
        self._still: list[bool] = []
        self.errors: list[float] = []
        self.lengths: list[float] = []
        self.motion: list[float] = []
        self.details: list[float] = []
        self.tones: list[float] = []
        self.changes: list[float | None] = []

    def add(self, frames: Tensor) -> None:
        """Take the next frames, `[F, 3, H, W]` in 0..1, on the device to work on."""
        frames = self._flow.working_frames(frames)
        if self._frame_before is not None:
            frames = torch.cat((self._frame_before, frames))
        self._frame_before = frames[-1:].clone()
        for start in range(0, len(frames) - 1, self._flow.pairs_per_call):
            self._check_cancel()
            stop = min(start + self._flow.pairs_per_call, len(frames) - 1)
            self._add_pairs(frames[start:stop], frames[start + 1 : stop + 1])

    def _add_pairs(self, left: Tensor, right: Tensor) -> None:
        flow = self._flow.estimate(left, right)
        still = still_pairs(left, right, flow)
        self._still += still.tolist()
        self.motion += motion_percent(flow).tolist()
        if self._flow.is_raft:
            errors, lengths = mawe_rule.pair_errors(left, right, flow)
            self.errors += errors.tolist()
            self.lengths += lengths.tolist()
        if self._only_mawe:
            return
        # Where nothing changes, whatever flow was found is noise.
        flow = flow.masked_fill(still.view(-1, 1, 1, 1), 0)
        detail, tone = compensated_difference(left, right, flow)
        self.details += detail.tolist()
        self.tones += tone.tolist()
        if self._flow_before is None:
            self.changes += [None, *motion_change(flow[:-1], flow[1:]).tolist()]
        else:
            self.changes += motion_change(torch.cat((self._flow_before, flow[:-1])), flow).tolist()
        self._flow_before = flow[-1:].clone()

    @property
    def still(self) -> list[bool]:
        return with_refreshes(self._still, self.motion)

    def mawe(self) -> Mawe | None:
        return mawe_rule.summarize(self.errors, self.lengths, self.still) if self._flow.is_raft else None


def watched(stream: FrameStream, progress: Progress | None, check_cancel: CheckCancel | None) -> Iterator[Tensor]:
    """The slices of a video of at least two frames, with Cancel before and progress after each."""
    if len(stream) < 2:
        raise FrameError(f"a video needs at least 2 frames to be measured, got {len(stream)}")
    done = 0
    for frames in stream.slices():
        if check_cancel is not None:
            check_cancel()
        yield frames
        done += len(frames)
        if progress is not None:
            progress(done, len(stream))


def reasons(flow: FlowEstimator, clip: ClipTools | None) -> dict[str, str]:
    """Why measures are missing that need what is not there."""
    found = {}
    if not flow.is_raft:
        found["mawe"] = "MAWE is defined on RAFT-large; its weights were not given (docs/checkpoints.md)"
    if clip is None:
        found["anchor"] = "no CLIP vision model was given"
    if clip is None or clip.text is None:
        found["text"] = "no CLIP model or no text was given"
    return found


@torch.inference_mode()
def measure(
    stream: FrameStream,
    layout: ChunkLayout | None = None,
    flow: FlowEstimator | None = None,
    clip: ClipTools | None = None,
    detector: CutDetector | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    check_cancel: CheckCancel | None = None,
) -> Measures:
    """Measure a video in one pass.

    Args:
        stream: at least two frames.
        layout: how the video was cut into chunks; equal windows if None.
        flow: what estimates motion; the weight-free fallback if None. MAWE is measured only with RAFT.
        clip: gives the anchor curve and, with a text, the text curve.
        detector: counts cuts; PySceneDetect if None and installed, else our own.
        device: where pixels are worked on.
        progress: called with (frames done, frames in all) after every slice.
        check_cancel: called before every slice; raises whatever means Cancel.

    Raises:
        FrameError: fewer than two frames.
    """
    layout = layout or windows(len(stream))
    flow, detector = flow or classical_flow(), detector or best_detector()
    pairs, curves = PairMeasures(flow, check_cancel), ClipCurves(clip) if clip else None
    # One place for all frames from the start: small tensors kept between large ones would hold on to the memory around.
    means, spreads, start = torch.empty(len(stream), 3), torch.empty(len(stream), 3), 0
    for frames in watched(stream, progress, check_cancel):
        detector.add(frames)
        if curves is not None:
            curves.add(frames)
        frames = frames.to(device)
        stop = start + len(frames)
        means[start:stop], spreads[start:stop] = frame_colors(frames)
        start = stop
        pairs.add(frames.movedim(-1, 1))
    cuts = detector.cuts()
    return Measures(
        num_frames=len(stream),
        height=stream.height,
        width=stream.width,
        fps=float(stream.fps),
        layout=layout,
        flow_name=flow.name,
        cuts=cuts,
        color=color_drift(means, spreads, layout),
        color_means=tuple(map(tuple, means.tolist())),
        seams=measure_seams(pairs.details, pairs.tones, pairs.changes, layout, cuts.frames),
        stagnation=measure_stagnation(pairs.motion, pairs.still, layout, cuts.frames),
        differences=tuple(pairs.details),
        mawe=pairs.mawe(),
        anchor=curve(curves.anchor, layout) if curves else None,
        text=curve(curves.text, layout) if curves and curves.text else None,
        clip_name=clip.name if clip else None,
        left_out=reasons(flow, clip),
    )


@torch.inference_mode()
def measure_mawe(
    stream: FrameStream,
    flow: FlowEstimator,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    check_cancel: CheckCancel | None = None,
) -> Mawe:
    """MAWE alone; arguments and errors as for `measure`, and `SettingsError` where `flow` is not RAFT."""
    if not flow.is_raft:
        raise SettingsError(f"MAWE is defined on the flow of RAFT, not on {flow.name}; load RAFT")
    pairs = PairMeasures(flow, check_cancel, only_mawe=True)
    for frames in watched(stream, progress, check_cancel):
        pairs.add(frames.to(device).movedim(-1, 1))
    return mawe_rule.summarize(pairs.errors, pairs.lengths, pairs.still)
