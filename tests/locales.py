"""`python -m tests.locales [--write]`: node names and texts for ComfyUI's languages.

English comes from the nodes themselves; other languages are translated by hand, and this says what of them is missing,
stale, or names other numbers than the English text.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import dev

FOLDER = dev.ROOT / "locales"
TRANSLATED = ("zh",)
FILE = "nodeDefs.json"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def english() -> dict[str, Any]:
    """What the page shows of every node, in the host's layout for languages."""
    from tests.help_pages import node_schemas

    found = {}
    for schema in node_schemas():
        found[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {each.id: {"name": each.id, "tooltip": each.tooltip} for each in schema.inputs},
            "outputs": {
                str(number): {"name": each.display_name, "tooltip": each.tooltip}
                for number, each in enumerate(schema.outputs)
            },
        }
    return found


def texts(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a language with its place; names of inputs and outputs are left out, they may stay as they are."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from texts(value, f"{path}{key}.")
        elif key != "name":
            yield f"{path}{key}", value


def complaints(source: Mapping[str, Any], translated: Mapping[str, Any]) -> list[str]:
    """What is wrong with a translation, in sentences."""
    wanted, found = dict(texts(source)), dict(texts(translated))
    sentences = [f"{place} is not translated" for place in wanted.keys() - found.keys()]
    sentences += [f"{place} belongs to nothing" for place in found.keys() - wanted.keys()]
    for place in wanted.keys() & found.keys():
        numbers = [sorted(set(NUMBER.findall(text))) for text in (wanted[place], found[place])]
        if numbers[0] != numbers[1]:
            sentences.append(f"{place} names {', '.join(numbers[1])} where English names {', '.join(numbers[0])}")
    return sorted(sentences)


def read(language: str) -> dict[str, Any]:
    path = FOLDER / language / FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="bring English up to date")
    args = parser.parse_args(argv)
    dev.ensure_environment("tests.locales")
    source = english()
    stale = source != read("en")
    if args.write:
        (FOLDER / "en").mkdir(parents=True, exist_ok=True)
        (FOLDER / "en" / FILE).write_text(json.dumps(source, indent=1, ensure_ascii=False) + "\n", "utf-8")
    elif stale:
        print("English is stale: run with --write")
    wrong = [f"{language}: {each}" for language in TRANSLATED for each in complaints(source, read(language))]
    print("\n".join(wrong))
    return int(bool(wrong) or (stale and not args.write))


if __name__ == "__main__":
    sys.exit(main())
