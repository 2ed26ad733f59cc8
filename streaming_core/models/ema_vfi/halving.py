"""Times between two frames reached by halving, for weights that only know the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

FINEST = 64
USUAL_STEP = Fraction(1, 8)
SNAP = 1e-6

Frame = TypeVar("Frame")


def dyadic_times(times: Sequence[float]) -> list[Fraction]:
    """`times` in 0..1 as multiples of 1/2, 1/4, ... 1/64 in the same order.

    Times that are such multiples stay as they are. Others go to the nearest multiple of 1/8, or of a finer step where
    they lie closer together than that, so that different times stay different down to 1/64.
    """
    exact = [Fraction(time).limit_denominator(FINEST) for time in times]
    step = Fraction(1, 2)
    if all(is_dyadic(near) and abs(near - time) < SNAP for near, time in zip(exact, times, strict=True)):
        return exact
    ordered = sorted(set(times))
    closest = min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=1.0)
    while step > USUAL_STEP or (step > closest and step > Fraction(1, FINEST)):
        step /= 2
    return [int(Fraction(time) / step + Fraction(1, 2)) * step for time in times]


def is_dyadic(time: Fraction) -> bool:
    return time.denominator & (time.denominator - 1) == 0


def by_halving(
    first: Frame, second: Frame, times: Sequence[Fraction], middle: Callable[[Frame, Frame], Frame]
) -> list[Frame]:
    """The frames at dyadic `times` between `first` (0) and `second` (1); each middle frame is made once.

    Goes from left to right, so at most one frame per halving is kept besides the results.
    """
    made: dict[Fraction, Frame] = {}

    def fill(low: Fraction, high: Fraction, at_low: Frame, at_high: Frame, wanted: list[Fraction]) -> None:
        made.update({time: at_low for time in wanted if time == low})
        made.update({time: at_high for time in wanted if time == high})
        wanted = [time for time in wanted if low < time < high]
        if wanted:
            half = (low + high) / 2
            at_half = middle(at_low, at_high)
            fill(low, half, at_low, at_half, [time for time in wanted if time <= half])
            fill(half, high, at_half, at_high, [time for time in wanted if time > half])

    fill(Fraction(0), Fraction(1), first, second, sorted(set(times)))
    return [made[time] for time in times]
