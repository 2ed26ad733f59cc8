"""What changed between two descriptions, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from .plain import Plain, to_json

_SHORT = 40
_GROUPS = frozenset({"values", "defaults", "attributes"})
_UNSAID = _GROUPS | {"self", "function"}
"""Names of parts that say nothing to a reader; those in groups have names that a pack gave."""
_OF_TENSORS = frozenset({"tensor", "dtype", "digest", "numbers"})


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""Stands on the side where a part is not."""


@dataclass(frozen=True)
class Change:
    """One difference. `path`: dotted names from the outside in; `old` or `new` is `MISSING` where there is none.

    `name`: the last names of the path, from the function or object that the part belongs to.
    """

    path: str
    old: Plain | _Missing
    new: Plain | _Missing
    name: str = ""

    def __str__(self) -> str:
        name = self.name or self.path
        if isinstance(self.old, _Missing):
            return f"{name} was added"
        if isinstance(self.new, _Missing):
            return f"{name} was removed"
        old, new = _shown(self.old), _shown(self.new)
        return f"{name} has other values" if old is None or new is None else f"{name} changed {old} -> {new}"


def _shown(value: Plain) -> str | None:
    """A value as a reader wants to see it, or None for what only a machine reads."""
    if isinstance(value, dict):
        return _label(value)
    if isinstance(value, str):
        return value if len(value) <= _SHORT and not _is_digest(value) else None
    text = to_json(value)
    return text if len(text) <= _SHORT else None


def _is_digest(text: str) -> bool:
    return len(text) in (16, 32) and all(letter in "0123456789abcdef" for letter in text)


def _label(value: Plain) -> str | None:
    """What a described function or object is called: `RescaleCFG` of `RescaleCFG.patch.<locals>.rescale_cfg`."""
    if not isinstance(value, dict):
        return None
    for key in ("function", "class"):
        name = value.get(key)
        if isinstance(name, dict):
            return _label(name)
        if isinstance(name, str):
            parts = name.split(".")
            first = parts[1] if len(parts) > 1 and not parts[1].startswith("<") else parts[0]
            return first if first != "<lambda>" else "lambda"
    return None


@dataclass(frozen=True)
class _Place:
    names: tuple[str, ...] = ()
    start: int = 0

    def inside(self, name: str) -> _Place:
        return self if name in _UNSAID else _Place((*self.names, name), self.start)

    def labelled(self, label: str | None) -> _Place:
        if label is None or self.names[-1:] == (label,):
            return self
        return _Place((*self.names, label), len(self.names))

    def change(self, old: Plain | _Missing, new: Plain | _Missing) -> Change:
        return Change(".".join(self.names), old, new, ".".join(self.names[self.start :]))


def differences(old: Plain, new: Plain) -> tuple[Change, ...]:
    """All differences, in the order of their paths; none if and only if the descriptions are equal.

    A part that was replaced by another kind of function or object is one difference.
    """
    return tuple(_differences(old, new, _Place()))


def _differences(old: Plain, new: Plain, place: _Place, group: bool = False) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _of_group(old, new, place) if group else _of_mappings(old, new, place)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, place)
    elif type(old) is not type(new) or old != new:
        yield place.change(old, new)


def _of_mappings(old: dict[str, Plain], new: dict[str, Plain], place: _Place) -> Iterator[Change]:
    label, other = _label(old), _label(new)
    if label != other:
        yield place.change(old, new)
        return
    if old.keys() | new.keys() <= _OF_TENSORS and "tensor" in old and "tensor" in new:
        if to_json(old) != to_json(new):
            yield place.change(old, new)
        return
    yield from _of_group(old, new, place.labelled(label))


def _of_group(old: dict[str, Plain], new: dict[str, Plain], place: _Place) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        inner = place.inside(name)
        if name not in new:
            yield from (each.change(part, MISSING) for each, part in _named_parts(old[name], inner))
        elif name not in old:
            yield from (each.change(MISSING, part) for each, part in _named_parts(new[name], inner))
        else:
            yield from _differences(old[name], new[name], inner, name in _GROUPS)


def _of_lists(old: list[Plain], new: list[Plain], place: _Place) -> Iterator[Change]:
    if len(old) == len(new):
        blocks = [("replace", 0, len(old), 0, len(new))]
    else:
        before, after = [to_json(item) for item in old], [to_json(item) for item in new]
        blocks = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    for kind, start, stop, other, end in blocks:
        if kind == "equal":
            continue
        both = min(stop - start, end - other)
        for step in range(both):
            yield from _differences(old[start + step], new[other + step], place.inside(str(other + step)))
        for index in range(start + both, stop):
            yield from (each.change(part, MISSING) for each, part in _named_parts(old[index], place.inside(str(index))))
        for index in range(other + both, end):
            yield from (each.change(MISSING, part) for each, part in _named_parts(new[index], place.inside(str(index))))


def _named_parts(value: Plain, place: _Place) -> list[tuple[_Place, Plain]]:
    """The outermost functions and objects in what is on one side only, or else all of it."""
    if (label := _label(value)) is not None:
        return [(place.labelled(label), value)]
    items: list[tuple[str, Plain]] = []
    if isinstance(value, dict):
        items = sorted(value.items())
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    found = [pair for name, item in items for pair in _named_parts(item, place.inside(name)) if _label(pair[1])]
    return found or [(place, value)]


def sentence(changes: Sequence[Change], most: int = 3) -> str:
    """The first changes in words, for "... are made again because ..."; empty without changes."""
    texts = list(dict.fromkeys(map(str, changes)))
    shown = ", ".join(texts[:most])
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def undescribed(value: Plain) -> tuple[str, ...]:
    """Paths of what counts by its type only, each with the name of that type."""
    return tuple(sorted(set(_undescribed(value, _Place()))))


def _undescribed(value: Plain, place: _Place) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("undescribed") is True:
            yield f"{'.'.join(place.names)} ({value.get('class')})".strip()
            return
        inner = place.labelled(_label(value))
        for name in sorted(value):
            yield from _undescribed(value[name], inner.inside(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _undescribed(item, place.inside(str(index)))
