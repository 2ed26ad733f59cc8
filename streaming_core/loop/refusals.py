"""What several families refuse, in the same words."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import SettingsError


def cannot_fill(family: str) -> SettingsError:
    """What to raise for a family without `fill`."""
    return SettingsError(
        f"{family} cannot fill a gap between two frames; connect a chunk sampler that can, or an interpolation model"
    )


def refuse_size(multiple: int, height: int, width: int) -> None:
    """Raise `SettingsError` for a side that is not a multiple of so many pixels, with the nearest that is."""
    for side, value in (("width", width), ("height", height)):
        if value < multiple or value % multiple:
            nearest = max(multiple, round(value / multiple) * multiple)
            raise SettingsError(f"{side} must be a multiple of {multiple} pixels, got {value}; try {nearest}")


def refuse_cues(family: str, follows: Collection[str], cues: Collection[str]) -> None:
    """Raise `SettingsError` for the first of these cues of a plan that is not among those that a family `follows`."""
    for cue in sorted(set(cues) - set(follows)):
        words = "motion setting" if cue == "motion" else cue.replace("_", " ")
        raise SettingsError(
            f"{family} cannot follow the plan's {words}; leave it empty in Chunk Plan, or use a chunk sampler that can"
        )
