"""`python -m tests.node_forms [--write]`: what saved workflows rely on, frozen.

Workflows store node ids, widget values by position, and links by the place of their socket. Changing any of these
breaks what users have saved. Adding is allowed: new nodes, and new inputs and outputs behind the old ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

import dev

PATH = dev.ROOT / "tests" / "host" / "node_forms.json"
Forms = Mapping[str, Mapping[str, list[str]]]


def forms() -> Forms:
    """Widgets, link inputs and outputs of every node, in order, each as "name: type"."""
    from tests.help_pages import describe, node_schemas

    found = {}
    for node in map(describe, node_schemas()):
        found[node.id] = {
            "widgets": [f"{each.name}: {each.type}" for each in node.inputs if not each.is_link],
            "links": [f"{each.name}: {each.type}" for each in node.inputs if each.is_link],
            "outputs": [f"{each.name}: {each.type}" for each in node.outputs],
        }
    return found


def broken(frozen: Forms, now: Forms) -> list[str]:
    """What workflows saved with `frozen` would lose with `now`, in sentences."""
    sentences = []
    for node, parts in frozen.items():
        if node not in now:
            sentences.append(f"{node} is gone")
            continue
        for part, names in parts.items():
            kept = now[node][part][: len(names)]
            if kept != names:
                sentences.append(f"{node}: {part} were {', '.join(names)} and are {', '.join(kept)}")
    return sentences


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="freeze the forms of today")
    args = parser.parse_args(argv)
    dev.ensure_environment("tests.node_forms")
    now = forms()
    frozen = json.loads(PATH.read_text("utf-8")) if PATH.is_file() else {}
    for sentence in broken(frozen, now):
        print(sentence)
    if args.write:
        PATH.write_text(json.dumps(now, indent=1) + "\n", "utf-8")
    return int(now != frozen and not args.write)


if __name__ == "__main__":
    sys.exit(main())
