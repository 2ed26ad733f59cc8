"""Registering replays and judging them.

A family module writes one generator per kind of case:

    @replay("streamingsvd", "cam_merger", atol=1e-5)
    def cam_merger(case: Case) -> Iterator[Comparison]:
        yield Comparison("sample", got, case.output("sample"))
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .cases import Case

NOT_COVERED, COMPANION, OK, FAIL = "not covered", "companion", "ok", "FAIL"


@dataclass(frozen=True)
class Comparison:
    """A computed value beside the recorded one. Tolerances left out are those of the replay.

    A comparison holds when the largest error is within `atol`, or within `rtol` of the largest recorded magnitude.
    """

    name: str
    got: Any
    want: Any
    atol: float | None = None
    rtol: float | None = None


Replay = Callable[[Case], Iterator[Comparison]]


@dataclass(frozen=True)
class _Entry:
    run: Replay | None
    atol: float | None
    rtol: float | None


_REPLAYS: dict[tuple[str, str], _Entry] = {}


def replay(family: str, case: str, atol: float | None = None, rtol: float | None = None) -> Callable[[Replay], Replay]:
    """Register a replay of the cases called `case` in `family`; at least one tolerance is needed."""
    if atol is None and rtol is None:
        raise ValueError(f"{family}/{case}: a replay needs a tolerance")

    def register(run: Replay) -> Replay:
        _REPLAYS[family, case] = _Entry(run, atol, rtol)
        return run

    return register


def companion(family: str, case: str) -> None:
    """Register a case that only carries weights for another one and has nothing of its own to check."""
    _REPLAYS[family, case] = _Entry(None, None, None)


def load_families() -> None:
    from . import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")


def identify(case: Case) -> tuple[str, str] | None:
    """The registered (family, case) a recorded case belongs to.

    The family is the nearest folder around the file that has the name of one, or else the `family` the case names; the
    case's name may carry a suffix (`latent_prep_2`). A name that only one family knows is enough where neither names
    the family.
    """
    known = {family for family, _ in _REPLAYS}
    named = [part.lower() for part in reversed(case.path.resolve().parts[:-1])]
    found = next((name for name in [*named, str(case.meta.get("family", "")).lower()] if name in known), None)
    families = known if found is None else {found}
    for name in dict.fromkeys([case.name, case.path.stem]):
        hits = [
            (family, stem)
            for family, stem in _REPLAYS
            if family in families and re.fullmatch(re.escape(stem) + r"([._-].*)?", name)
        ]
        longest = max((len(stem) for _, stem in hits), default=0)
        hits = [hit for hit in hits if len(hit[1]) == longest]
        if len(hits) == 1:
            return hits[0]
    return None


@dataclass(frozen=True)
class Verdict:
    """What a replay came to. Errors are those of the comparison nearest to failing, or furthest past it."""

    label: str
    status: str
    absolute: float = 0.0
    relative: float = 0.0
    tolerance: str = "-"
    detail: str = ""

    def line(self) -> str:
        if self.status in (NOT_COVERED, COMPANION):
            return f"{self.label}: {self.status}"
        errors = f"abs {self.absolute:.3g} rel {self.relative:.3g} tolerance {self.tolerance}"
        return f"{self.label}: {errors} {self.status}" + (f" ({self.detail})" if self.detail else "")


def _errors(got: Any, want: Any) -> tuple[float, float]:
    got, want = (torch.as_tensor(value).detach().to("cpu", torch.float64) for value in (got, want))
    if got.shape != want.shape:
        raise ValueError(f"got shape {list(got.shape)}, recorded {list(want.shape)}")
    if not want.numel():
        raise ValueError("nothing was recorded to compare with")
    # An infinity recorded where one was computed is agreement; anything else not finite is not.
    difference = torch.where(got == want, 0.0, (got - want).abs())
    absolute = float(difference.max()) if not difference.isnan().any() else float("inf")
    scale = float(want.abs().max())
    return absolute, absolute / scale if scale else (0.0 if absolute == 0 else float("inf"))


def judge(case: Case, label: str | None = None) -> Verdict:
    """Replay one case. Exceptions are failures with the exception in words."""
    which = identify(case)
    label = label or "/".join(case.path.with_suffix("").parts[-2:])
    if which is None:
        return Verdict(label, NOT_COVERED)
    entry = _REPLAYS[which]
    if entry.run is None:
        return Verdict(label, COMPANION)
    worst: tuple[float, Verdict] | None = None
    try:
        with torch.inference_mode():
            for comparison in entry.run(case):
                margin, verdict = _compare(label, comparison, entry)
                if worst is None or margin > worst[0]:
                    worst = margin, verdict
    except Exception as error:  # every failure of a replay is a result to report, not a crash of the runner
        return Verdict(label, FAIL, float("nan"), float("nan"), "-", f"{type(error).__name__}: {error}")
    if worst is None:
        return Verdict(label, FAIL, detail="the replay compared nothing")
    return worst[1]


def _compare(label: str, comparison: Comparison, entry: _Entry) -> tuple[float, Verdict]:
    own = comparison.atol is not None or comparison.rtol is not None
    atol, rtol = (comparison.atol, comparison.rtol) if own else (entry.atol, entry.rtol)
    try:
        absolute, relative = _errors(comparison.got, comparison.want)
    except ValueError as error:
        return float("inf"), Verdict(label, FAIL, float("nan"), float("nan"), "-", f"{comparison.name}: {error}")
    ratios = []
    for error, bound in ((absolute, atol), (relative, rtol)):
        if bound is not None:
            ratios.append(error / bound if bound else (0.0 if error == 0 else float("inf")))
    margin = min(ratios)
    bounds = " or ".join(f"{bound:g} {kind}" for bound, kind in ((atol, "abs"), (rtol, "rel")) if bound is not None)
    return margin, Verdict(label, OK if margin <= 1 else FAIL, absolute, relative, bounds, comparison.name)
