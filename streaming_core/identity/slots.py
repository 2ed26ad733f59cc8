"""What changes while a run samples is state; what changes in between is a setting.

Patches that count steps or keep tensors of the last step change while they work. Their objects are compared before and
after each sampling; whatever part of an object changed meanwhile is remembered with its value from before the first
time, and from then on counts with that value. Everything else counts as it is, so a node that changes an attribute
between two runs is seen. An attribute that does both (set by a node and changed by sampling) counts as state.

If a node makes an object again, that is another object, which begins with the values it has.
"""

from __future__ import annotations

import enum
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from .plain import Plain
from .share import tree_digest

Path: TypeAlias = "tuple[str, ...]"


class Absent(enum.Enum):
    """Stands for a part that was not there."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True)
class Slot:
    """A place in an object: what kind of value is in it, and its description.

    `kind`: "parts" (a dictionary), "items" (a list, `size` long), "object" (with the id `size`) or "leaf".
    """

    kind: str
    size: int
    plain: Plain

    @staticmethod
    def of(value: object, plain: Plain, own: bool) -> Slot:
        if isinstance(value, dict):
            return Slot("parts", 0, plain)
        if isinstance(value, (list, tuple, deque)):
            return Slot("items", len(value), plain)
        return Slot("object", id(value), plain) if own else Slot("leaf", 0, plain)

    def became(self, after: Slot) -> bool:
        """Whether the place itself holds something else now; parts of what it holds are places of their own."""
        if self.kind != after.kind:
            return True
        if self.kind == "parts" or self.size == after.size and self.kind != "leaf":
            return False
        return tree_digest(self.plain) != tree_digest(after.plain)


class Owners:
    """Places of all objects that were described, by object. Holds the objects, so that no id is used twice."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[object, dict[Path, Slot]]] = {}

    @staticmethod
    def can_own(value: object) -> bool:
        """Whether an object can be remembered without keeping it alive; others belong to what holds them."""
        try:
            weakref.ref(value)
        except TypeError:
            return False
        return True

    def record(self, owner: object, path: Path, slot: Slot) -> None:
        self.slots.setdefault(id(owner), (owner, {}))[1][path] = slot

    def of(self, owner: object) -> dict[Path, Slot]:
        return self.slots.get(id(owner), (owner, {}))[1]


def changed_slots(before: dict[Path, Slot], after: dict[Path, Slot]) -> dict[Path, Plain | Absent]:
    """Places that changed, the outermost only, with what was there before."""
    changed: dict[Path, Plain | Absent] = {}
    for path in sorted({*before, *after}, key=len):
        if any(path[:length] in changed for length in range(1, len(path))):
            continue
        old, new = before.get(path), after.get(path)
        if old is None:
            changed[path] = ABSENT
        elif new is None or old.became(new):
            changed[path] = old.plain
    return changed


class RunTimeState:
    """Which parts of which objects are state, with their first values; objects are held weakly."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[int, tuple[weakref.ref[object], dict[Path, Plain | Absent]]] = {}

    def recall(self, owner: object, path: Path) -> tuple[bool, Plain | Absent]:
        """Whether a part is state, and what it was before the first sampling."""
        with self._lock:
            found = self._known.get(id(owner))
            if found is None or found[0]() is not owner or path not in found[1]:
                return False, None
            return True, found[1][path]

    def remember(self, owner: object, changed: dict[Path, Plain | Absent]) -> None:
        """Take parts of an object for state. What was remembered before stays."""
        key = id(owner)

        def forget(reference: weakref.ref[object]) -> None:
            with self._lock:
                if key in self._known and self._known[key][0] is reference:
                    del self._known[key]

        with self._lock:
            found = self._known.get(key)
            if found is None or found[0]() is not owner:
                found = self._known[key] = (weakref.ref(owner, forget), {})
            for path, plain in changed.items():
                found[1].setdefault(path, plain)

    @contextmanager
    def watch(self, look: Callable[[], Owners]) -> Iterator[None]:
        """Compare what `look` describes before and after, also when sampling is canceled or fails."""
        before = look()
        try:
            yield
        finally:
            self._compare(before, look())

    def _compare(self, before: Owners, after: Owners) -> None:
        for owner, slots in before.slots.values():
            later = after.of(owner)
            if later and (changed := changed_slots(slots, later)):
                self.remember(owner, changed)

    def __len__(self) -> int:
        return len(self._known)
