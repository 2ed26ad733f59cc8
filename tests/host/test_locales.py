"""Languages of the page: English is what the nodes say, Chinese is whole and names the same numbers."""

from __future__ import annotations

import copy
import re

import pytest

from tests import locales

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def english() -> dict:
    return locales.english()


def test_english_is_what_the_nodes_say(english):
    assert locales.read("en") == english, "run `python -m tests.locales --write`"


@pytest.mark.parametrize("language", locales.TRANSLATED)
def test_translations_are_whole_and_not_stale(language, english):
    assert locales.complaints(english, locales.read(language)) == []


def test_chinese_is_chinese():
    plain = [place for place, text in locales.texts(locales.read("zh")) if not CHINESE.search(text)]
    # Names that are names in every language.
    assert all(place.endswith("display_name") for place in plain) and len(plain) < 5


def test_what_is_missing_stale_or_other_is_noticed(english):
    node = next(iter(english))
    for change, words in (
        (lambda tree: tree.pop(node), "is not translated"),
        (lambda tree: tree.update(Gone=tree[node]), "belongs to nothing"),
        (lambda tree: tree[node].update(description="7 of 12345"), "names 12345, 7"),
    ):
        other = copy.deepcopy(english)
        change(other)
        assert any(words in sentence for sentence in locales.complaints(english, other))
    assert locales.complaints(english, english) == []


def test_the_host_offers_them(host_server):
    offered = host_server.get("/i18n")
    node = "StreamingT2VStreamSampler"
    assert offered["en"]["nodeDefs"][node]["display_name"] == "Stream Sampler"
    assert CHINESE.search(offered["zh"]["nodeDefs"][node]["description"])
