"""Descriptions by content: equal for equal values, different for different ones, with words for what changed."""

from __future__ import annotations

import copy
import enum
import functools
import gc
import json
import math
import pathlib
import threading
import types
import uuid
import weakref
from dataclasses import dataclass, field

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.identity import (
    Describer,
    RunTimeState,
    describe,
    differences,
    digest,
    sentence,
    tensor_digest,
    to_json,
    undescribed,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
KEYS = st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@given(VALUES)
def test_a_description_is_json_and_a_copy_has_the_same(value):
    plain = describe(value)
    assert json.loads(to_json(plain)) == plain
    assert describe(copy.deepcopy(value)) == plain
    assert not differences(plain, json.loads(to_json(plain)))


@given(VALUES, VALUES)
def test_descriptions_differ_exactly_where_their_digests_do(one, two):
    one, two = describe(one), describe(two)
    assert bool(differences(one, two)) == (to_json(one) != to_json(two)) == (digest(one) != digest(two))


@given(st.dictionaries(KEYS, LEAVES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_a_dictionary_does_not_count(values, random):
    names = list(values)
    random.shuffle(names)
    assert describe(values) == describe({name: values[name] for name in names})


@given(st.sets(st.text(max_size=4) | st.integers(), max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_a_set_does_not_count(values, random):
    items = list(values)
    random.shuffle(items)
    assert describe(values) == describe(set(items)) == describe(frozenset(items))


@given(st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(0, 5), max_size=6))
def test_lists_that_grow_or_shrink_differ(one, two):
    assert bool(differences(list(one), list(two))) == (one != two)


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=40))
def test_lossless_types_have_the_same_digest_and_other_values_another(values):
    half = torch.tensor(values, dtype=torch.float16)
    assert tensor_digest(half) == tensor_digest(half.float()) == tensor_digest(half.double())
    other = half.clone()
    other[0] = 1.5 if other[0] != 1.5 else 2.5
    assert tensor_digest(other) != tensor_digest(half)


def test_shape_and_rank_of_a_tensor_count_and_layout_does_not():
    values = torch.arange(12.0).reshape(3, 4)
    assert tensor_digest(values) != tensor_digest(values.reshape(4, 3))
    assert tensor_digest(values.T.contiguous()) == tensor_digest(values.T)
    assert tensor_digest(values.to(torch.int64)) == tensor_digest(values.to(torch.int32))


def test_a_large_tensor_changed_in_place_is_seen():
    for make in (lambda: torch.zeros(300_000), lambda: torch.zeros(300_000, dtype=torch.bfloat16)):
        tensor = make()
        before = tensor_digest(tensor)
        assert tensor_digest(tensor) == before == tensor_digest(tensor.clone())
        tensor[123_457] = 1
        assert tensor_digest(tensor) != before
    with torch.inference_mode():
        tensor = torch.zeros(300_000)
        before = tensor_digest(tensor)
        tensor += 1
        assert tensor_digest(tensor) != before


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclass
class Settings:
    strength: float
    mode: Mode = Mode.FAST
    _cache: dict = field(default_factory=dict, compare=False)
    image: torch.Tensor = field(default_factory=lambda: torch.zeros(2), compare=False)


class Slotted:
    __slots__ = ("size", "unset")

    def __init__(self, size):
        self.size = size


class Lazy:
    def __init__(self, size):
        self.size = size

    @functools.cached_property
    def table(self):
        return list(range(self.size))


class Raising:
    def __getattribute__(self, name):
        raise RuntimeError(name)


def scaled(scale, offset=0):
    def function(value, *, shift=1):
        return value * scale + offset + shift

    return function


DIFFERENT = {
    "float and whole number": (1.0, 2),
    "true and one": (True, 1),
    "nan and none": (math.nan, None),
    "minus zero": (0.0, -0.0),
    "enum": (Mode.FAST, Mode.SLOW),
    "dataclass": (Settings(1.0), Settings(0.5)),
    "field that is not compared": (Settings(1.0), Settings(1.0, image=torch.ones(2))),
    "slots": (Slotted(1), Slotted(2)),
    "closure": (scaled(1), scaled(2)),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "code inside": (lambda: lambda: 1, lambda: lambda: 2),
    "default": (lambda x=1: x, lambda x=2: x),
    "keyword default": (lambda *, x=1: x, lambda *, x=2: x),
    "partial": (functools.partial(scaled, 1), functools.partial(scaled, 2)),
    "partial keyword": (functools.partial(scaled, offset=1), functools.partial(scaled, offset=2)),
    "method": (Lazy(1).__init__, Lazy(2).__init__),
    "builtin": (math.sin, math.cos),
    "bound builtin": ([1].append, [2].append),
    "array": (numpy.arange(40), numpy.arange(40)[::-1]),
    "short array": (numpy.float32([1, 2]), numpy.float32([1, 3])),
    "bytes": (b"a" * 50, b"b" * 50),
    "slice": (slice(1), slice(2)),
    "path": (pathlib.Path("a/one.txt"), pathlib.Path("a/two.txt")),
    "dtype": (torch.float16, torch.bfloat16),
    "class": (Lazy, Slotted),
    "module": (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
    "module setting": (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
    "weakref": (weakref.ref(Mode.FAST), weakref.ref(Mode.SLOW)),
    "generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "key": ({1: "a"}, {2: "a"}),
    "tuple key": ({("input", 1): 1}, {("input", 2): 1}),
    "namespace": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "ordered items": ([1, 2], [2, 1]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_described_differently(name):
    one, two = map(describe, DIFFERENT[name])
    assert differences(one, two)
    assert not undescribed([one, two])
    assert not differences(one, describe(DIFFERENT[name][0]))


def image(value):
    from PIL import Image

    return Image.new("L", (4, 4), value)


def test_images_count_by_their_pixels():
    assert describe(image(1)) == describe(image(1)) != describe(image(2))


@pytest.mark.parametrize(
    "make",
    [
        uuid.uuid4,
        lambda: {uuid.uuid4(): 1, uuid.uuid4(): 2},
        lambda: str(uuid.uuid4()),
        lambda: repr(object()),
        lambda: {object(): 1},
        lambda: [threading.Lock(), threading.local()],
        object,
        lambda: weakref.WeakKeyDictionary(),
    ],
)
def test_what_changes_by_itself_does_not_count(make):
    keep = [make() for _ in range(5)]
    assert len({to_json(describe(each)) for each in keep}) == 1


def test_devices_and_folders_do_not_count():
    assert describe(torch.device("cpu")) == describe(torch.device("cuda:1"))
    assert describe("/home/a/lut.cube") == describe("C:\\packs\\lut.cube") == describe(pathlib.Path("/b/lut.cube"))
    assert describe("a / b") == "a / b" != describe("/imagine a fox")


def test_caches_of_properties_and_private_caches_do_not_count():
    lazy, settings = Lazy(3), Settings(1.0)
    before = describe([lazy, settings])
    assert lazy.table
    settings._cache["a"] = 1
    assert describe([lazy, settings]) == before


def test_what_cannot_be_described_counts_by_type_and_is_named(tmp_path):
    with open(tmp_path / "a", "w") as handle:
        value = {"log": handle, "model": types.SimpleNamespace(parts=(i for i in []), odd=Raising())}
        plain = describe(value)
    names = undescribed(plain)
    assert [name.split(" ")[0] for name in names] == ["log", "model.SimpleNamespace.odd", "model.SimpleNamespace.parts"]
    assert "TextIOWrapper" in names[0] and "generator" in names[2]
    assert undescribed(json.loads(to_json(plain))) == names


def test_values_that_hold_themselves_have_a_stable_description():
    def make(size):
        one, two = Lazy(size), Lazy(2)
        one.other, two.other, one.all = two, one, [one, two]
        return one

    one = describe(make(1))
    assert one == describe(make(1)) == describe(copy.deepcopy(make(1)))
    assert differences(one, describe(make(3)))
    items: list = [1]
    items.append(items)
    assert describe(items) == [1, {"again": "list"}]


def test_many_links_between_objects_take_no_time():
    objects = [Lazy(size) for size in range(60)]
    for each in objects:
        each.others = objects
    chain = Lazy(0)
    for size in range(200):
        chain, below = Lazy(size), chain
        chain.left = chain.right = below
    assert len(to_json(describe([objects, chain]))) < 2_000_000


def test_a_long_part_stands_once_whether_it_is_shared_or_copied():
    part = {f"name {index}": index for index in range(100)}
    shared, copied = describe({"a": part, "b": part}), describe({"a": part, "b": copy.deepcopy(part)})
    assert shared == copied and shared["b"] == {"same as": "a"}
    other = describe({"a": part, "b": {**part, "name 3": 4}})
    assert differences(shared, other)


def test_many_plain_values_stand_as_a_digest():
    many = list(range(1000))
    assert describe(many)["entries"] == 1000
    assert describe(many) != describe(many[::-1]) != describe(dict.fromkeys(map(str, many)))


def test_changes_read_well():
    def at(scale, functions=()):
        return describe(
            {"model": {"wrapper": scaled(scale), "functions": list(functions), "noise": torch.ones(40) * scale}}
        )

    assert [str(change) for change in differences(at(1), at(2))] == [
        "model.noise has other values",
        "scaled.scale changed 1 -> 2",
    ]
    assert differences(at(1), at(2))[1].path == "model.wrapper.scaled.scale"
    settings = Settings(1.0)
    assert sentence(differences(at(1), at(1, [settings]))) == "Settings was added"
    assert sentence(differences(at(1, [settings, Lazy(2)]), at(1, [Lazy(2)]))) == "Settings was removed"
    assert sentence(differences(at(1, [settings]), at(1, [Settings(1.0, Mode.SLOW)]))) == (
        "Settings.mode changed Mode.FAST -> Mode.SLOW"
    )
    assert sentence(differences(at(1, [settings]), at(1, [Lazy(1)]))) == "model.functions.0 changed Settings -> Lazy"
    assert sentence(differences(dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)), most=2).endswith(" and 3 more")


class Stateful:
    """A patch with a setting and everything that patches keep while they work."""

    def __init__(self, strength):
        self.strength = strength
        self.step = 0
        self.tensor = torch.zeros(3)
        self.seen = []
        self.table = {"previous": None, "weight": strength}
        self.inner = Slotted(0)

    def work(self):
        self.step += 1
        self.tensor += 1
        self.seen.append(self.step)
        self.table["previous"] = torch.rand(4)
        self.table[f"step {self.step}"] = 1
        self.inner.size += 1
        self.late = True


def counting(strength):
    steps, state = 0, {"previous": None}

    def function(value):
        nonlocal steps
        steps += 1
        state["previous"] = value
        return strength

    function.work = lambda: function(torch.rand(2))
    return function, state


def looking(state, value):
    def look():
        describer = Describer(state=state)
        describer.value(value)
        return describer.owners

    return look


@pytest.mark.parametrize("make", [Stateful, lambda strength: counting(strength)[0]])
def test_what_changes_while_sampling_counts_as_it_was_before(make):
    state, patch = RunTimeState(), make(1.0)
    before = describe(patch, Describer(state=state))
    for _ in range(3):
        with state.watch(looking(state, patch)):
            patch.work()
        assert describe(patch, Describer(state=state)) == before
    assert describe(patch) != before
    assert describe(make(1.0), Describer(state=state)) == before != describe(make(0.5), Describer(state=state))


def test_what_changes_between_two_runs_is_a_setting():
    state, patch = RunTimeState(), Stateful(1.0)
    with state.watch(looking(state, patch)):
        patch.work()
    before = describe(patch, Describer(state=state))
    patch.strength = 0.5
    patch.table["weight"] = 0.5
    changes = sentence(differences(before, describe(patch, Describer(state=state))))
    assert changes == "Stateful.strength changed 1.0 -> 0.5, Stateful.table.weight changed 1.0 -> 0.5"


def test_a_run_that_is_cancelled_or_fails_leaves_no_trace():
    state, patch = RunTimeState(), Stateful(1.0)
    before = describe(patch, Describer(state=state))
    with pytest.raises(KeyboardInterrupt), state.watch(looking(state, patch)):
        patch.work()
        raise KeyboardInterrupt
    assert describe(patch, Describer(state=state)) == before


def test_state_is_forgotten_with_its_object():
    state, patch = RunTimeState(), Stateful(1.0)
    with state.watch(looking(state, patch)):
        patch.work()
    assert len(state) == 1
    del patch
    gc.collect()
    assert not len(state)


def test_an_attribute_that_takes_turns_with_another_object_is_state():
    state, patch = RunTimeState(), Stateful(1.0)
    before = describe(patch, Describer(state=state))
    with state.watch(looking(state, patch)):
        patch.inner = Stateful(3.0)
    assert describe(patch, Describer(state=state)) == before
