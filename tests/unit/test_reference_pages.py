"""Citations such as "reference: streamingsvd, sections 5 and 6" lead to a page and a heading in docs/reference."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev

ROOT = dev.ROOT
PAGES = ROOT / "docs" / "reference"
ROOMS = ("streaming_core", "nodes", "training", "benchmarks")

NUMBER = r"\d+(?:\.\d+)*"
SECTIONS = rf"(?P<sections>{NUMBER}(?:(?:, | and |, and | to ){NUMBER})*)"
# A capital begins a sentence, in which a benchmark may name anything: there it takes the word "section".
CITATION = re.compile(
    rf"\breference: (?P<page>[a-z][a-z0-9-]*)(?:, (?:sections? )?{SECTIONS})?"
    rf"|\bReference: (?P<page_>[a-z][a-z0-9-]*), sections? {SECTIONS.replace('<sections>', '<sections_>')}"
)
HEADING = re.compile(rf"^#+ ({NUMBER})\.? ", re.MULTILINE)


def prose(path: Path) -> str:
    """Strings and comments of a module as running text."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    kinds = (tokenize.STRING, tokenize.COMMENT)
    words = [re.sub(r"^#+", "", token.string) for token in tokens if token.type in kinds]
    return " ".join(" ".join(words).split())


def named_sections(text: str) -> list[str]:
    """The section numbers of a citation: "1, 3 to 5 and 11.5" names 1, 3, 4, 5 and 11.5."""
    found: list[str] = []
    for number, word in re.findall(rf"({NUMBER})(, and | and | to |, )?", text):
        if found and found[-1] == "to":
            found.pop()
            found += [str(between) for between in range(int(found[-1]) + 1, int(number))]
        found += [number, "to"] if word == " to " else [number]
    return found


def citations(text: str) -> Iterator[tuple[str, list[str]]]:
    """(page, section numbers) of each citation in running text."""
    for match in CITATION.finditer(text):
        page, sections = match["page"] or match["page_"], match["sections"] or match["sections_"]
        yield page, named_sections(sections or "")


def headings(path: Path) -> list[str]:
    return HEADING.findall(path.read_text("utf-8"))


def cited() -> list[tuple[str, str, list[str]]]:
    modules = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [
        (path.relative_to(ROOT).as_posix(), page, sections)
        for path in modules
        for page, sections in citations(prose(path))
    ]


CITED = cited()
PAGE_FILES = sorted(path for path in PAGES.glob("*.md") if path.stem != "README")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(reference: ema-vfi, section 3, steps 4 and 5)", [("ema-vfi", ["3"])]),
        ("(reference: ema-vfi, sections 3 to 6).", [("ema-vfi", ["3", "4", "5", "6"])]),
        ("(reference: streamingsvd, sections 9 and 11.5).", [("streamingsvd", ["9", "11.5"])]),
        ("(reference: streamingmodelscope, 4.2)", [("streamingmodelscope", ["4.2"])]),
        ("Reference: enhancer, sections 1, 2, 5. Images are", [("enhancer", ["1", "2", "5"])]),
        ("Written from reference: lvdm; no code was copied.", [("lvdm", [])]),
        ("Reference: the 40-frame video.", []),
    ],
)
def test_citations_are_understood(text, found):
    assert list(citations(text)) == found


def test_there_are_citations():
    assert len(CITED) > 60


@pytest.mark.parametrize(("module", "page", "sections"), CITED)
def test_a_citation_leads_somewhere(module, page, sections):
    path = PAGES / f"{page}.md"
    assert path.is_file(), f"{module} cites the page {page}, which docs/reference does not have"
    missing = set(sections) - set(headings(path))
    assert not missing, f"{module} cites {page}, section {', '.join(sorted(missing))}; the page has no such heading"


@pytest.mark.parametrize("path", PAGE_FILES, ids=lambda path: path.stem)
def test_a_page_is_listed_and_its_numbers_are_unique(path):
    assert f"]({path.name})" in (PAGES / "README.md").read_text("utf-8")
    numbers = headings(path)
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("path", [*PAGE_FILES, PAGES / "README.md"], ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert [target for target in targets if not (path.parent / target).is_file()] == []
