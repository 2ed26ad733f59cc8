"""Frame rates of files: the even grid that their times follow, and which stored frame is shown when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from .stream import as_rate, nearest_tolerance, usual_rate

_DEFAULT_FPS = Fraction(24)
_HIGHEST = 240
"""Intervals shorter than this rate's are taken for stray times, not for a rate."""
_NEAR = Fraction(1, 200)
"""How far, in parts of a rate, a measured one may be from the usual rate that was meant."""
_SHARES = (0.5, 0.25, 0.1, 0.03, 0.01, 0.0)
"""Which intervals are tried as the usual one: the median first, then shorter ones, for bursts between pauses."""
_ALIKE = ((0.8, 1.25), (0.4, 1.6))
"""What counts as an interval like it: with little jitter, and with much."""
_ALL = 0.999
"""The share of the frames that a rate has to show to be the one of a file."""


def shown_at(times: np.ndarray, tick: Fraction, rate: Fraction, fps: Fraction, numbers: Iterable[int]) -> list[int]:
    """Which stored frame is shown by each frame of a constant rate: the last one that begins before it, or less than
    half a frame after it. Times that jitter by less lose no frame.

    times: those of the stored frames in ticks from the first one, ascending. rate: the usual one of the file.
    """
    tolerance = nearest_tolerance(rate, fps)
    limits = [math.ceil((number / fps + tolerance) / tick) for number in numbers]
    return [max(int(number), 0) for number in np.searchsorted(times, limits, side="left") - 1]


def rate_of(times: np.ndarray, tick: Fraction, named: Sequence[Fraction]) -> tuple[Fraction, bool]:
    """The rate of a file, and whether its frames leave the even grid of that rate by more than rounding.

    Where they do, it is the usual rate between its frames: pauses and lost frames do not slow it down, and where frames
    come in bursts it is that of the bursts, so that none of them is lost.

    times: in ticks from the first frame, ascending. named: rates that the container knows, most trusted first.
    """
    named = [usual_rate(rate) for rate in named if Fraction(1, 1000) <= rate <= 1000]
    if len(times) < 2:
        return (named or [_DEFAULT_FPS])[0], False
    average = (len(times) - 1) / (int(times[-1]) * tick)
    usual = [rate for rate in named if rate == _nearest_usual(rate)]
    for rate in (*usual, _nearest_usual(average), *named, _clamped(average)):
        if _fits(times, tick, rate):
            return rate, False
    return _rate_of_uneven(times, tick, usual), True


def _fits(times: np.ndarray, tick: Fraction, rate: Fraction) -> bool:
    step = float(1 / (rate * tick))
    allowed = min(max(1.0, step / 20), step * 0.45)
    return bool(np.abs(times - np.arange(len(times)) * step).max() <= allowed)


def _rate_of_uneven(times: np.ndarray, tick: Fraction, usual: Sequence[Fraction]) -> Fraction:
    gaps = np.diff(times)
    most, best = -1.0, _clamped((len(times) - 1) / (int(times[-1]) * tick))
    for share, (low, high) in itertools.product(_SHARES, _ALIKE):
        typical = np.quantile(gaps, share, method="lower")
        alike = gaps[(gaps >= typical * low) & (gaps <= typical * high)]
        measured = Fraction(float(1 / (alike.mean() * float(tick)))).limit_denominator(1_000_000)
        if measured > _HIGHEST:
            continue
        rounding = float(1 / alike.mean()) / math.sqrt(len(alike))  # of the times to ticks, in parts of an interval
        allowed = max(float(_NEAR), min(rounding, 0.02)) * float(measured)
        near = [rate for rate in (*usual, _nearest_usual(measured)) if abs(rate - measured) < allowed]
        rate = min(near, key=lambda rate: abs(rate - measured)) if near else _clamped(measured)
        shown = _share_shown(times, tick, rate)
        if shown >= _ALL:
            return rate
        if shown > most:
            most, best = shown, rate
    return best


def _share_shown(times: np.ndarray, tick: Fraction, rate: Fraction) -> float:
    """How many of the stored frames a constant rate shows. Frame n is shown unless the next one is there in time."""
    step = float(1 / (rate * tick))
    slots = np.floor(times / step + 0.5)  # the first frame of the grid that may show each of them
    return float(np.mean(np.append(slots[1:] > slots[:-1], True)))


def _nearest_usual(rate: Fraction) -> Fraction:
    """The whole or NTSC rate that is nearest."""
    whole = Fraction(max(1, round(rate)))
    return min(whole, whole * 1000 / 1001, key=lambda usual: abs(usual - rate))


def _clamped(rate: Fraction) -> Fraction:
    return as_rate(float(min(max(rate, Fraction(1, 1000)), Fraction(1000))))
