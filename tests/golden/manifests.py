"""`python -m tests.golden.manifests PATH [--strict]`: compare full-size architectures with the official key lists.

Each family module registers a builder; it makes the architecture at full size on the meta device through the same
code that loads weights and returns every key of the official file with its shape.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class KeyList:
    """One list of keys to agree on: `built` is ours, `official` the manifest's, both key -> shape."""

    name: str
    built: Shapes
    official: Shapes


Builder = Callable[[Any], Iterator[KeyList]]
_BUILDERS: dict[str, Builder] = {}


def manifest(name: str) -> Callable[[Builder], Builder]:
    """Register a builder for the manifest file `<name>.json.gz`; it gets the file's parsed content."""

    def register(build: Builder) -> Builder:
        _BUILDERS[name] = build
        return build

    return register


def difference(keys: KeyList) -> str:
    """Empty when both lists agree, else one sentence with counts and first names."""
    built = {key: tuple(shape) for key, shape in keys.built.items()}
    official = {key: tuple(shape) for key, shape in keys.official.items()}
    missing, extra = sorted(official.keys() - built.keys()), sorted(built.keys() - official.keys())
    wrong = sorted(key for key in built.keys() & official.keys() if built[key] != official[key])
    parts = []
    for word, found in (("not built", missing), ("not official", extra)):
        if found:
            parts.append(f"{len(found)} {word} (first {', '.join(found[:3])})")
    if wrong:
        first = wrong[0]
        parts.append(f"{len(wrong)} of another shape (first {first}: built {built[first]}, official {official[first]})")
    return "; ".join(parts)


def check(path: Path) -> list[tuple[str, str]]:
    """`[(name, "" or what differs)]` for one manifest file; an unknown one gives no rows."""
    build = _BUILDERS.get(path.name.removesuffix(".json.gz"))
    if build is None:
        return []
    with gzip.open(path, "rt") as file:
        content = json.load(file)
    return [(f"{keys.name} ({len(keys.official)} keys)", difference(keys)) for keys in build(content)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.manifests", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folder or .json.gz file of key lists")
    parser.add_argument("--strict", action="store_true", help="a list that no builder covers is a failure")
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("tests.golden.manifests")
    # The registry that the family modules fill is the imported module's, not the one running as __main__.
    from . import manifests
    from .replay import load_families

    load_families()
    files = [file for path in args.paths for file in (sorted(path.rglob("*.json.gz")) if path.is_dir() else [path])]
    failed = uncovered = 0
    for file in files:
        rows = manifests.check(file)
        uncovered += not rows
        if not rows:
            print(f"{file.name}: not covered")
        for name, problem in rows:
            failed += bool(problem)
            print(f"{file.name}: {name}: {'FAIL ' + problem if problem else 'ok'}", flush=True)
    print(f"{len(files)} lists: {failed} FAIL, {uncovered} not covered")
    return int(bool(failed or not files or (args.strict and uncovered)))


if __name__ == "__main__":
    sys.exit(main())
