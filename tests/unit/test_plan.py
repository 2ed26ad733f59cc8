"""Video plans and the texts they are written in."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.script import (
    MAX_SEED,
    Cue,
    Script,
    chunk_prompts,
    parse_chunk_list,
    parse_cues,
    parse_numbers,
    parse_positive_numbers,
)
from streaming_core.runs.manifest import plain

words = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=8)


def prompts(text: str, num_chunks: int, fps=None, **sizes) -> list[str | None]:
    sizes = {"num_frames": 8 + 5 * (num_chunks - 1), "chunk_frames": 8, "overlap_frames": 3, **sizes}
    script = Script(prompts=parse_cues(text), fps=fps)
    return [chunk.prompt for chunk in VideoPlan(**sizes, script=script).chunks]


def test_prompts_by_chunk_hold_until_the_next():
    assert prompts("0: a dog runs\n2: it jumps", 4) == ["a dog runs", "a dog runs", "it jumps", "it jumps"]
    assert prompts("3: late", 4) == [None, None, None, "late"]
    assert prompts("", 2) == [None, None]
    assert prompts("4: b\n\n  0: a  ", 6) == ["a"] * 4 + ["b"] * 2


def test_lines_without_numbers_belong_to_one_chunk_after_the_other():
    assert prompts("a\n\nb\nc", 6) == ["a", "a", "b", "c", "c", "c"]
    assert prompts("a\n3: b\nc", 6) == ["a", "a", "a", "b", "c", "c"]
    assert prompts("4:30 pm, a street\nratio 16:9", 2) == ["4:30 pm, a street", "ratio 16:9"]


def test_prompts_by_time_begin_with_the_chunk_that_shows_it():
    # Chunks show frames 0-7, 8-12, 13-17, 18-22; at 4 fps second 3 is frame 12 and second 3.25 frame 13.
    assert prompts("a\n00:03: b", 4, Fraction(4)) == ["a", "b", "b", "b"]
    assert prompts("a\n00:03.25: b", 4, Fraction(4)) == ["a", "a", "b", "b"]
    assert prompts("a\n0:00:03.25: b\n1:00:00: c", 4, Fraction(4)) == ["a", "a", "b", "b"]
    # The last chunk is trimmed to frame 13, but a longer video has the same chunks.
    assert prompts("a\n00:04: b", 3, Fraction(4), num_frames=14) == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: a\n00:05: b\n7: c", "chunk 7.*cannot be mixed"),
        ("3: a\n3: b", "chunk 3 is given twice"),
        ("00:05: a\n0:05: b", "second 5 is given twice"),
        ("2:", "no prompt after"),
    ],
)
def test_texts_that_contradict_themselves(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_cues(text)


def test_times_need_a_rate():
    with pytest.raises(SettingsError, match="frame rate"):
        prompts("00:05: a", 2)


@given(st.dictionaries(st.integers(0, 40), words, min_size=1, max_size=8), st.randoms(), st.integers(1, 50))
def test_numbered_lines_in_any_order(cues, dice, num_chunks):
    lines = [f"{index}: {text}" for index, text in cues.items()]
    dice.shuffle(lines)
    expected = [next((cues[i] for i in range(index, -1, -1) if i in cues), None) for index in range(num_chunks)]
    assert prompts("\n".join(lines), num_chunks) == expected


@given(st.lists(words, min_size=1, max_size=8))
def test_plain_lines_equal_numbered_ones(lines):
    assert parse_cues("\n".join(lines)) == parse_cues("\n".join(f"{i}: {line}" for i, line in enumerate(lines)))


def test_prompts_as_a_list():
    assert chunk_prompts("a\n\n b \n") == ("a", "a", "b")
    assert chunk_prompts("0: a\n3: b") == ("a", "a", "a", "b")
    for text, message in ((" \n ", "no prompt"), ("1: a", "begin with chunk 0"), ("00:05: a", "frame rate")):
        with pytest.raises(SettingsError, match=message):
            chunk_prompts(text)


def test_numbers():
    assert parse_numbers("1, 4: 0.5", "strength", 0, 2) == (Cue(1.0, 0), Cue(0.5, 4))
    assert parse_numbers("", "strength", 0, 2) == ()
    assert parse_numbers("33, 35\n9: 18446744073709551615", "seed", 0, MAX_SEED, int)[2] == Cue(MAX_SEED, 9)
    for text in ("nan", "0: x", "3", "-1"):
        with pytest.raises(SettingsError, match="strength must be a number from 0 to 2"):
            parse_numbers(text, "strength", 0, 2)
    with pytest.raises(SettingsError, match="line '4:' has no value after its number; write for example '4: 1'"):
        parse_numbers("1, 4:", "strength", 0, 2)


def test_numbers_above_0():
    assert parse_positive_numbers("0: 16\n00:05: 32", "motion") == (
        Cue(16.0, seconds=Fraction(0)),
        Cue(32.0, seconds=5),
    )
    assert parse_positive_numbers("0.25, 3: 1e300", "motion") == (Cue(0.25, 0), Cue(1e300, 3))
    assert parse_positive_numbers(" ", "motion") == ()
    for text in ("0", "-1", "0: inf", "1e400", "nan", "fast", "4: 1 2"):
        with pytest.raises(SettingsError, match="motion must be a finite number above 0 per chunk, got"):
            parse_positive_numbers(text, "motion")
    for text, message in (("4:", "no value after"), ("1, 00:05: 2, 7: 3", "cannot be mixed"), ("2: 1, 2: 4", "twice")):
        with pytest.raises(SettingsError, match=message):
            parse_positive_numbers(text, "motion")


@given(st.sets(st.integers(0, 200), min_size=1, max_size=12))
def test_chunk_lists(numbers):
    assert parse_chunk_list(", ".join(map(str, numbers))) == tuple(sorted(numbers))
    assert parse_chunk_list(f"{min(numbers)} - {max(numbers)}") == tuple(range(min(numbers), max(numbers) + 1))


@pytest.mark.parametrize("text", ["", " , ", "7-5", "-1", "a", "1.5", "1--2", "9" * 30])
def test_wrong_chunk_lists(text):
    with pytest.raises(SettingsError, match="write for example 3, 5-7"):
        parse_chunk_list(text)


def test_seeds_per_chunk():
    def seeds(script, count=5):
        return [chunk.seed for chunk in VideoPlan(8 + 5 * (count - 1), 8, 3, 33, script=script).chunks]

    assert seeds(Script()) == [33] * 5
    assert seeds(Script(increment=True)) == [33, 34, 35, 36, 37]
    assert seeds(Script(seeds=parse_numbers("7, 8, 4: 9", "seed", 0, MAX_SEED, int))) == [7, 8, 8, 8, 9]
    assert VideoPlan(50, 8, 3, MAX_SEED, script=Script(increment=True)).chunk(1).seed == 0


@st.composite
def video_plans(draw):
    chunk_frames = draw(st.integers(2, 30))
    script = Script(
        seeds=tuple(Cue(draw(st.integers(0, MAX_SEED)), at) for at in sorted(draw(st.sets(st.integers(0, 20))))),
        increment=draw(st.booleans()),
        prompts=tuple(Cue(draw(words), seconds=Fraction(at, 7)) for at in sorted(draw(st.sets(st.integers(0, 70))))),
        cam_strength=tuple(Cue(draw(st.floats(0, 2)), at) for at in sorted(draw(st.sets(st.integers(0, 20))))),
        motion=tuple(
            Cue(draw(st.floats(0, exclude_min=True, allow_infinity=False)), at)
            for at in sorted(draw(st.sets(st.integers(0, 20))))
        ),
        fps=draw(st.fractions(1, 60, max_denominator=1001)),
    )
    sizes = draw(st.integers(1, 300)), chunk_frames, draw(st.integers(1, chunk_frames - 1))
    return VideoPlan(*sizes, draw(st.integers(0, MAX_SEED)), script.fps, script)


@given(video_plans(), st.integers(1, 100))
def test_a_longer_plan_begins_like_the_shorter_one(plan, more):
    longer = VideoPlan(plan.num_frames + more, *(getattr(plan, n) for n in ("chunk_frames", "overlap_frames", "seed")),
                      plan.fps, plan.script)  # fmt: skip
    for index in range(plan.num_chunks):
        a, b = plan.chunk(index), longer.chunk(index)
        assert (a.start, a.seed, a.prompt, a.cam_strength, a.motion) == (
            b.start, b.seed, b.prompt, b.cam_strength, b.motion)  # fmt: skip


@given(video_plans())
def test_plans_survive_a_manifest(plan):
    assert VideoPlan.from_dict(json.loads(json.dumps(plain(plan.to_dict())))) == plan


def test_a_manifest_from_before_motion_is_read():
    plan = VideoPlan(20, 8, 3, 5, Fraction(4), Script(prompts=parse_cues("a dog"), cam_strength=(Cue(0.5, 1),)))
    stored = json.loads(json.dumps(plain(plan.to_dict())))
    stored["script"].pop("motion", None)
    assert VideoPlan.from_dict(stored) == plan


@given(video_plans())
def test_the_table_names_every_chunk_once(plan):
    rows = [line.split(" | ") for line in plan.table().splitlines()[2:]]
    numbers = [number for row in rows for number in parse_chunk_list(row[0])]
    assert numbers == list(range(plan.num_chunks))
    assert rows[-1][1].endswith(f"-{plan.num_frames - 1}")


def test_a_table():
    script = Script(increment=False, prompts=parse_cues("a dog\n2: it jumps"), cam_strength=(Cue(0.5, 1),))
    assert VideoPlan(20, 8, 3, 5, Fraction(4), script).table() == (
        "20 frames, 5.00 s at 4 fps: 4 chunks of 8 frames, overlap 3\n"
        "chunk | frames | time | seed | CAM | anchor | prompt\n"
        "0 | 0-7 | 00:00.00-00:02.00 | 5 | 1 | 1 | a dog\n"
        "1 | 8-12 | 00:02.00-00:03.25 | 5 | 0.5 | 1 | a dog\n"
        "2-3 | 13-19 | 00:03.25-00:05.00 | 5 | 0.5 | 1 | it jumps"
    )


def test_a_table_names_motion_where_the_plan_sets_it():
    script = Script(prompts=parse_cues("a dog"), motion=parse_positive_numbers("1: 16, 2: 32.5", "motion"))
    assert VideoPlan(20, 8, 3, 5, Fraction(4), script).table() == (
        "20 frames, 5.00 s at 4 fps: 4 chunks of 8 frames, overlap 3\n"
        "chunk | frames | time | seed | CAM | anchor | motion | prompt\n"
        "0 | 0-7 | 00:00.00-00:02.00 | 5 | 1 | 1 | - | a dog\n"
        "1 | 8-12 | 00:02.00-00:03.25 | 5 | 1 | 1 | 16 | a dog\n"
        "2-3 | 13-19 | 00:03.25-00:05.00 | 5 | 1 | 1 | 32.5 | a dog"
    )


def test_motion_by_time_begins_with_the_chunk_that_shows_it():
    # As prompts: at 4 fps second 3 is frame 12, which chunk 1 shows.
    script = Script(motion=parse_positive_numbers("00:03: 8, 00:04: 2", "motion"), fps=Fraction(4))
    plan = VideoPlan(23, 8, 3, 0, Fraction(4), script)
    assert [chunk.motion for chunk in plan.chunks] == [None, 8.0, 2.0, 2.0]
    assert script.used == {"motion"}


def test_only_what_a_script_changed_counts():
    chunk = VideoPlan(20, 8, 3, script=Script(cam_strength=(Cue(0.5, 1), Cue(1.0, 2)))).chunk
    assert chunk(1).cues("cam_strength", "anchor_strength", "prompt") == {"cam_strength": 0.5}
    assert chunk(2).cues("cam_strength", "anchor_strength", "prompt") == {}
    chunk = VideoPlan(20, 8, 3, script=Script(motion=(Cue(16.0, 1),))).chunk
    assert chunk(0).cues("cam_strength", "motion") == {} and chunk(1).cues("motion", "prompt") == {"motion": 16.0}


def test_impossible_plans_are_refused_when_they_are_made():
    with pytest.raises(SettingsError, match="overlap_frames"):
        VideoPlan(20, 8, 8, 0, Fraction(4))
