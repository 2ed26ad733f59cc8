"""Descriptions short enough to be stored: a long part stands once, a long row of plain values as its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from .plain import Plain, to_json

_LONG = 600
_MOST_SHOWN = 256


class _Sizes:
    """Digest and length of every part of a description, each part looked at once."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[str, int]] = {}

    def of(self, value: Plain) -> tuple[str, int]:
        if not isinstance(value, (dict, list)):
            text = to_json(value)
            return text, len(text)
        if id(value) not in self.known:
            if isinstance(value, dict):
                pairs = [(to_json(key), *self.of(item)) for key, item in sorted(value.items())]
                text = "{" + ",".join(f"{key}:{item}" for key, item, _ in pairs) + "}"
                length = sum(len(key) + size for key, _, size in pairs)
            else:
                items = [self.of(item) for item in value]
                text, length = "[" + ",".join(item for item, _ in items) + "]", sum(size for _, size in items)
            self.known[id(value)] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), length
        return self.known[id(value)]


def _items(value: list[Plain] | dict[str, Plain]) -> Iterable[Plain]:
    return value.values() if isinstance(value, dict) else value


def tree_digest(value: Plain) -> str:
    """Stands for a description; quick also where parts are shared."""
    return _Sizes().of(value)[0]


def share(value: Plain) -> Plain:
    """The description with every later copy of a long part replaced by `{"same as": path of the first}`.

    Tables and lists of many plain values become `{"entries": number, "digest": ...}`.

    It depends on the content alone, not on which parts are the same object in memory.
    """
    sizes = _Sizes()
    seen: dict[str, str] = {}

    def walk(part: Plain, path: str) -> Plain:
        if not isinstance(part, (dict, list)):
            return part
        digest, size = sizes.of(part)
        if len(part) > _MOST_SHOWN and not any(isinstance(item, (dict, list)) for item in _items(part)):
            return {"entries": len(part), "digest": digest}
        if size > _LONG:
            if digest in seen:
                return {"same as": seen[digest]}
            seen[digest] = path or "the whole"
        if isinstance(part, list):
            return [walk(item, f"{path}.{index}".lstrip(".")) for index, item in enumerate(part)]
        return {key: walk(part[key], f"{path}.{key}".lstrip(".")) for key in sorted(part)}

    return walk(value, "")
