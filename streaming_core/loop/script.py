"""What changes from chunk to chunk of one video: seeds, prompts, strengths; and the one way to write that down as text.

    0: a dog runs        from chunk 0 on (0 is the first chunk)
    4: it jumps          from chunk 4 on
    00:05: it sleeps     from the chunk on that shows second 5

Lines without a number belong to one chunk after the other; an empty one repeats the line above.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import SettingsError

_KEY = re.compile(r"(?:(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d\d(?:\.\d+)?)|(?P<chunk>\d+)):(?:\s+|$)")
MAX_SEED = 2**64 - 1
_MAX_CHUNKS = 1_000_000


@dataclass(frozen=True)
class Cue:
    """A value that holds from chunk `chunk`, or from the chunk that shows second `seconds`, until the next cue."""

    value: Any
    chunk: int | None = None
    seconds: Fraction | None = None

    @property
    def place(self) -> int | Fraction:
        """Where it begins: at a second where it has one, else with a chunk."""
        if self.seconds is not None:
            return self.seconds
        if self.chunk is None:
            raise SettingsError("a cue needs a chunk or a time")
        return self.chunk

    def has_begun(self, index: int, stop: int, fps: Fraction | None) -> bool:
        """Whether it holds for chunk `index`, whose last frame in the video is `stop - 1`."""
        if self.seconds is None:
            return self.place <= index
        if fps is None:
            raise SettingsError("times need a frame rate; use chunk numbers here, or Chunk Plan")
        return int(self.seconds * fps) < stop

    def to_dict(self) -> dict[str, Any]:
        at = {"chunk": self.chunk} if self.seconds is None else {"seconds": str(self.seconds)}
        return {"value": self.value, **at}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cue:
        seconds = data.get("seconds")
        return cls(data["value"], data.get("chunk"), None if seconds is None else Fraction(seconds))


def parse_cues(text: str, what: str = "prompt", example: str = "a dog runs") -> tuple[Cue, ...]:
    """The cues of a text, in the order of the video; none for a text without words.

    `what` the values are and an `example` of one go into what is said of a line without a value.

    Raises:
        SettingsError: chunk numbers and times together, a chunk or time twice, a number without a value.
    """
    cues: list[Cue] = []
    following = 0
    for line in text.strip().splitlines():
        line = line.strip()
        key = _KEY.match(line)
        value = line[key.end() :].strip() if key else line
        if key and not value:
            raise SettingsError(f"line {line!r} has no {what} after its number; write for example '{line} {example}'")
        if key and key["chunk"] is None:
            hours, minutes = int(key["hours"] or 0), int(key["minutes"])
            cues.append(Cue(value, seconds=3600 * hours + 60 * minutes + Fraction(key["seconds"])))
            continue
        index = int(key["chunk"]) if key else following
        following = index + 1
        if value:
            cues.append(Cue(value, chunk=index))
    return _in_order(cues)


def _in_order(cues: list[Cue]) -> tuple[Cue, ...]:
    if any(cue.seconds is not None for cue in cues):
        if cues[0].chunk == 0:
            cues[0] = Cue(cues[0].value, seconds=Fraction(0))
        if numbered := [cue for cue in cues if cue.seconds is None]:
            raise SettingsError(
                f"chunk {numbered[0].chunk} and times such as 00:05 cannot be mixed; use either chunk numbers or times"
            )
    places = [cue.place for cue in cues]
    if twice := {place for place in places if places.count(place) > 1}:
        unit = "chunk" if cues[0].seconds is None else "second"
        raise SettingsError(f"{unit} {min(twice)} is given twice; keep one of the lines")
    return tuple(sorted(cues, key=lambda cue: cue.place))


def chunk_prompts(text: str) -> tuple[str, ...]:
    """The prompts of a text for chunk 0, 1, ... up to its last cue.

    Raises:
        SettingsError: none for chunk 0, times, or more than a video can have.
    """
    cues = parse_cues(text)
    if not cues:
        raise SettingsError("there is no prompt; write one line per chunk, or a single line for the whole video")
    starts = [cue.chunk for cue in cues if cue.chunk is not None]
    if len(starts) < len(cues):
        raise SettingsError("times need a frame rate; number the prompts by chunk here, or use Chunk Plan")
    if starts[0] != 0 or starts[-1] > _MAX_CHUNKS:
        raise SettingsError(f"prompts begin with chunk 0 and end before {_MAX_CHUNKS}, got chunk {starts[0]} first")
    stops = [*starts[1:], starts[-1] + 1]
    return tuple(cue.value for cue, start, stop in zip(cues, starts, stops, strict=True) for _ in range(start, stop))


def parse_numbers(text: str, name: str, low: float, high: float, kind: type = float) -> tuple[Cue, ...]:
    """Cues as in `parse_cues`, for numbers from `low` to `high`, with commas or line breaks between them: `1, 4: 0.5`.

    Raises:
        SettingsError: something that is not such a number; `name` says which setting it is for.
    """
    expected = f"{name} must be a number from {low} to {high} per chunk"
    return _number_cues(text, kind, lambda number: low <= number <= high, expected)


def parse_positive_numbers(text: str, name: str) -> tuple[Cue, ...]:
    """Cues as in `parse_numbers`, for finite numbers above 0.

    Raises:
        SettingsError: something that is not such a number; `name` says which setting it is for.
    """
    expected = f"{name} must be a finite number above 0 per chunk"
    return _number_cues(text, float, lambda number: 0 < number <= sys.float_info.max, expected)


def _number_cues(text: str, kind: type, is_allowed: Callable[[Any], bool], expected: str) -> tuple[Cue, ...]:
    cues = []
    for cue in parse_cues(text.replace(",", "\n"), "value", "1"):
        try:
            number = kind(cue.value)
        except ValueError:
            number = None
        if number is None or not is_allowed(number):
            raise SettingsError(f"{expected}, got {cue.value!r}")
        cues.append(Cue(number, cue.chunk, cue.seconds))
    return tuple(cues)


def parse_chunk_list(text: str) -> tuple[int, ...]:
    """Chunk numbers such as `3, 5-7`, ascending, each once.

    Raises:
        SettingsError: no number, or something else than numbers and ranges.
    """
    found: set[int] = set()
    for part in filter(None, re.split(r"[\s,;]+", re.sub(r"\s*-\s*", "-", text.strip()))):
        range_ = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", part)
        first, last = (int(range_[1]), int(range_[2] or range_[1])) if range_ else (1, 0)
        if last < first:
            raise SettingsError(f"{part!r} is not a chunk number or range; write for example 3, 5-7")
        found.update(range(first, last + 1))
    if not found:
        raise SettingsError("no chunk is given; write for example 3, 5-7 (0 is the first)")
    return tuple(sorted(found))


CUES = {"prompt": "prompts", "cam_strength": "cam_strength", "anchor_strength": "anchor_strength", "motion": "motion"}
"""What a script can set besides seeds: fields of a chunk, each with the field of the script that holds its cues."""


@dataclass(frozen=True)
class Script:
    """What differs from chunk to chunk; the empty one changes nothing.

    Attributes:
        seeds: a chunk's own seed instead of the video's.
        increment: add the chunk's number to its seed.
        prompts: texts; before the first cue the family's own prompt holds.
        cam_strength, anchor_strength: factors on short-term and long-term memory, 1 where no cue holds.
        motion: numbers above 0, lower is stronger; before the first cue the family's own setting holds.
        fps: frames per second that times are counted in.
    """

    seeds: tuple[Cue, ...] = ()
    increment: bool = False
    prompts: tuple[Cue, ...] = ()
    cam_strength: tuple[Cue, ...] = ()
    anchor_strength: tuple[Cue, ...] = ()
    motion: tuple[Cue, ...] = ()
    fps: Fraction | None = None

    @property
    def used(self) -> frozenset[str]:
        """Names of the chunk fields that it sets, seeds left out."""
        return frozenset(name for name, cues in CUES.items() if getattr(self, cues))

    def value(self, name: str, default: Any, index: int, stop: int) -> Any:
        """What the cues `name` say for chunk `index`, whose last frame in the video is `stop - 1`."""
        begun = [cue.value for cue in getattr(self, name) if cue.has_begun(index, stop, self.fps)]
        return begun[-1] if begun else default

    def seed(self, video_seed: int, index: int, stop: int) -> int:
        """The seed of a chunk."""
        seed: int = self.value("seeds", video_seed, index, stop)
        return (seed + index) & MAX_SEED if self.increment else seed

    def to_dict(self) -> dict[str, Any]:
        cues = {name: [cue.to_dict() for cue in getattr(self, name)] for name in ("seeds", *CUES.values())}
        return {**cues, "increment": self.increment, "fps": None if self.fps is None else str(self.fps)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Script:
        stored = {"motion": (), **data}  # manifests from before there was motion
        cues = {name: tuple(Cue.from_dict(cue) for cue in stored[name]) for name in ("seeds", *CUES.values())}
        return cls(**cues, increment=data["increment"], fps=None if data["fps"] is None else Fraction(data["fps"]))
