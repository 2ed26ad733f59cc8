"""Words of the text that users read: the host's own, in American spelling, without idioms of another language.

Read are the README and the other pages, help pages, notes of templates, English texts of the page, strings of the node
files, and sentences that are raised or logged. A refused word is reported with its place and with what to write.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev

ROOT = dev.ROOT

REFUSED = {
    r"[Ff]ilms?|FILMS": "video",  # FILM, all in capitals, is an interpolation model
    r"(?i:pictures?)": "image, or frame",
    r"(?i:sounds?)": "audio",
    r"(?i:first clips?)": "first chunk, or start_frames",
    r"(?i:anew|redrawn?|redraws)": "again; of chunks: reroll, or a new take",
    r"(?i:older drawings?|other drawings?|new drawings?|old drawings?)": "take",
    r"(?i:shall)": "will, or must",
    r"(?i:beside)": "in, with, or next to",
    r"(?i:behind)": "after",
    r"(?i:(?:is|are|was|were) told)": "receives, or gets",
    r"(?i:by itself|by themselves)": "automatically, or alone",
    r"(?i:goes on|go on|went on|going on)": "continues, or is used for the rest",
    r"(?i:mend|mends|mended)": "fix",
    r"(?i:in work)": "in progress, or being sampled",
    r"(?i:(?:keeps?|the|their|its|same) looks)": "appearance",
    r"(?i:a (?:image|audio|anchor|overlap|older|enhancer|intact))": "an",
    r"(?i:\w*colou?r(?<!color)\w*)": "color",
    r"(?i:behaviou?r(?<!behavior)s?)": "behavior",
    r"(?i:grey\w*)": "gray",
    r"(?i:licences?)": "license",
    r"(?i:centres?|centred)": "center",
    r"(?i:neighbour\w*)": "neighbor",
    r"(?i:artefacts?)": "artifact",
    r"(?i:(?:initial|normal|optim|(?:un)?recogn|quant|visual|synchron|organ|minim|maxim)is(?:e[drs]?|ing))": "-ize",
}
"""Whole words, as regular expressions, and what to write instead."""


WORDS = [(re.compile(rf"(?<![\w-])(?:{words})(?![\w-])"), instead) for words, instead in REFUSED.items()]
CODE = re.compile(r"```.*?```|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL)
"""What a page quotes: code, comments, addresses of links."""
BLOCK = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
"""Lines of an indented block of code."""

Place = tuple[str, int, str]
"""A file, a line and the text there."""


def blank(match: re.Match) -> str:
    """Nothing, on as many lines."""
    return "\n" * match.group().count("\n")


def pages() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "demo_models/README.md")]
    return [*found, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").glob("*.md"))]


def page_texts(path: Path) -> Iterator[tuple[int, str]]:
    text = BLOCK.sub(blank, CODE.sub(blank, path.read_text("utf-8")))
    yield from enumerate(text.splitlines(), 1)


def note_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Titles, notes and descriptions of a workflow. Widgets of other nodes are left out: prompts are the user's."""
    raw = path.read_text("utf-8")

    def read(graph: dict) -> Iterator[str]:
        yield from (str(graph.get(key) or "") for key in ("name", "description"))
        yield from (group.get("title", "") for group in graph.get("groups", ()))
        for node in graph.get("nodes", ()):
            yield node.get("title") or ""
            if "Note" in node["type"]:
                yield from map(str, node.get("widgets_values", ()))
        for each in graph.get("definitions", {}).get("subgraphs", ()):
            yield from read(each)

    for text in read(json.loads(raw)):
        stored = json.dumps(text, ensure_ascii=False)[1:-1]
        yield raw[: max(raw.find(stored), 0)].count("\n") + 1, text


def language_texts(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text("utf-8").splitlines(), 1)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings of a tree, parts of f-strings too, without what users type into the search box."""
    if isinstance(tree, ast.keyword) and tree.arg == "search_aliases":
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.lineno, tree.value
    for child in ast.iter_child_nodes(tree):
        yield from strings(child)


def is_told_to_users(node: ast.AST) -> bool:
    """Whether the strings of a node are raised or logged."""
    if isinstance(node, ast.Raise):
        return True
    function = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "logger", "logging")
    )


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text("utf-8"))
    if path.parent.name == "nodes":
        yield from strings(tree)
    else:
        for node in ast.walk(tree):
            if is_told_to_users(node):
                yield from strings(node)


def readers() -> Iterator[tuple[Path, Iterator[tuple[int, str]]]]:
    yield from ((path, page_texts(path)) for path in pages())
    for room in ("workflows", "subgraphs"):
        yield from ((path, note_texts(path)) for path in sorted((ROOT / room).glob("*.json")))
    yield from ((path, language_texts(path)) for path in sorted((ROOT / "locales" / "en").glob("*.json")))
    for room in ("nodes", "streaming_core"):
        yield from ((path, python_texts(path)) for path in sorted((ROOT / room).rglob("*.py")))


def complaints(name: str, texts: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{name}:{line}: {found.group()!r}; write {instead}"
        for line, text in texts
        for pattern, instead in WORDS
        for found in pattern.finditer(text)
    ]


def test_users_read_the_words_of_the_host():
    found = []
    for path, texts in readers():
        found += complaints(path.relative_to(ROOT).as_posix(), texts)
    assert not found, "\n".join(["words that users should not read:", *found])


def test_all_that_users_read_is_read():
    names = {path.relative_to(ROOT).as_posix() for path, _ in readers()}
    assert {"README.md", "docs/hosts.md", "nodes/stream.py", "locales/en/nodeDefs.json"} <= names
    assert not any(name.startswith("docs/reference") for name in names)
    for start in ("web/docs/", "workflows/", "subgraphs/", "streaming_core/loop/", "nodes/host/runs/"):
        assert any(name.startswith(start) for name in names), start


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("A film of any length.", "video"),
        ("Two pictures.", "image, or frame"),
        ("Its colours drift.", "color"),
        ("The frame beside it.", "in, with, or next to"),
        ("Make chunk 3 anew.", "again; of chunks: reroll, or a new take"),
        ("A image.", "an"),
        ("The first clip has 8 frames.", "first chunk, or start_frames"),
        ("The behaviour of grey", "behavior"),
        ("Unrecognised files", "-ize"),
    ],
)
def test_refused_words_are_noticed(text, instead):
    assert any(sentence.endswith(f"write {instead}") for sentence in complaints("page", iter([(1, text)])))


@pytest.mark.parametrize(
    "text",
    [
        "RIFE and FILM interpolate frames.",
        "Colors, a color, colored balls and the behavior of gray.",
        "Besides, it looks like another file.",
        "An image; a new take; start_frames.",
        "Optimizer, resized, raised, noise, otherwise, promised, exercise.",
    ],
)
def test_other_words_are_not(text):
    assert complaints("page", iter([(1, text)])) == []


def test_code_and_search_words_are_not_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`film`\n\n    film.show()\n\n```\npicture\n```\n[video](film.md)\n", "utf-8")
    assert complaints("page", page_texts(page)) == []
    tree = ast.parse('schema(search_aliases=["film"], description="a picture")')
    assert complaints("node", strings(tree)) == ["node:1: 'picture'; write image, or frame"]


def test_what_is_raised_and_logged_is_read_outside_of_node_files(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""A film."""\nname = "film"\nlog.info("film %s", name)\nraise Error(f"no film {name}")\n', "utf-8"
    )
    found = [sentence.split(";")[0] for sentence in complaints("m", python_texts(module))]
    assert sorted(found) == ["m:3: 'film'", "m:4: 'film'"]
