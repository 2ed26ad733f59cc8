"""Why chunks are made again, in a sentence, and how takes of a chunk differ."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from streaming_core.runs.changes import chunks_text, take_text, why_made_again
from streaming_core.runs.folder import ChunkContent, RunFolder, settings_hash

SIZE = {"kind": "test", "height": 2, "width": 3, "fps": Fraction(12)}
MODEL = {"model": {"class": "RescaleCFG", "values": {"multiplier": 0.7, "whole": 2.0}}}
CHANGED = {"model": {"class": "RescaleCFG", "values": {"multiplier": 0.5, "whole": 2.0}}}


def hashes(identity: dict, own: list[dict]) -> list[str]:
    found: list[str] = []
    for each in own:
        found.append(settings_hash({**identity, **each}, previous=found[-1] if found else ""))
    return found


def owns(count: int, **changes) -> list[dict]:
    return [{"seed": 7, "prompt": "a cat", "index": index, **changes} for index in range(count)]


@pytest.fixture
def run(tmp_path):
    """Four chunks of MODEL."""
    with RunFolder.create(tmp_path, "run", **SIZE) as run:
        make(run, MODEL, owns(4), run.select(hashes(MODEL, owns(4))))
        yield run


def make(run: RunFolder, identity: dict, own: list[dict], missing) -> None:
    wanted = hashes(identity, own)
    for index in missing:
        content = ChunkContent(torch.rand(1, 2, 3, 3))
        run.write_chunk(index, content, settings_hash=wanted[index], identity=identity, own=own[index])


def why(run: RunFolder, identity: dict, own: list[dict]) -> str:
    before = run.manifest
    again = why_made_again(before, run.select(hashes(identity, own)), identity, own)
    return "" if again is None else str(again)


def test_a_changed_model_is_named_with_both_values(run):
    said = why(run, CHANGED, owns(6))
    assert said == "chunks 0 to 3 are made again because RescaleCFG.multiplier changed 0.7 -> 0.5"


def test_a_change_of_one_chunk_names_the_first_that_it_affects(run):
    own = [*owns(2), {**owns(3)[2], "prompt": "a dog"}, owns(4)[3]]
    assert why(run, MODEL, own) == "chunks 2 to 3 are made again because prompt changed a cat -> a dog"
    make(run, MODEL, own, run.manifest.missing)
    assert why(run, MODEL, owns(4)) == "", "they are still there"
    assert why(run, MODEL, own) == ""


def test_new_and_unfinished_chunks_are_not_made_again(run):
    assert why(run, MODEL, owns(6)) == ""
    assert why(run, CHANGED, owns(4)) != ""
    assert why(run, CHANGED, owns(4)) == "", "it was said, and nothing of this video was made yet"


def test_a_change_that_is_in_the_chunks_before_only(run):
    """A chunk whose values are the same, after one that comes back from another time."""
    before = run.manifest
    again = why_made_again(before, (3,), MODEL, owns(4))
    assert str(again) == "chunk 3 is made again because the chunks before changed"


def test_what_is_not_stored_is_said(run):
    run.save_manifest(replace(run.manifest, identities={}))
    assert why(run, CHANGED, owns(4)) == (
        "chunks 0 to 3 are made again because their settings changed; which ones is not stored"
    )
    first = run.manifest.takes(0)[0]
    assert take_text(run.manifest, first, first) == "it is not stored what it was made with"


def test_takes_differ_by_their_values(run):
    run.select(hashes(CHANGED, owns(4, seed=9)))
    make(run, CHANGED, owns(4, seed=9), (0, 1))
    make(run, MODEL, owns(4), (1,))
    old, new, same = run.manifest.takes(1)
    assert take_text(run.manifest, new, old) == "RescaleCFG.multiplier changed 0.5 -> 0.7, seed changed 9 -> 7"
    assert take_text(run.manifest, old, old) == "the same values"
    assert take_text(run.manifest, old, same) == "the same values after another take of the chunk before"


def test_chunk_numbers_in_words():
    assert chunks_text([3]) == "chunk 3"
    assert chunks_text([9, 3, 4, 5]) == "chunks 3 to 5, 9"
