"""Workflows that users have saved keep working: ids, widget order and sockets are frozen."""

from __future__ import annotations

import copy
import json

import pytest

from tests import node_forms


@pytest.fixture(scope="module")
def frozen() -> dict:
    return json.loads(node_forms.PATH.read_text("utf-8"))


def test_nothing_that_workflows_rely_on_has_changed(frozen):
    now = node_forms.forms()
    assert node_forms.broken(frozen, now) == []
    assert now == frozen, "nodes were added to: run `python -m tests.node_forms --write`"


def test_each_kind_of_break_is_noticed_and_additions_are_not(frozen):
    name = next(node for node, parts in frozen.items() if len(parts["widgets"]) > 2 and parts["outputs"])
    for change in (
        lambda now: now.pop(name),
        lambda now: now[name]["widgets"].reverse(),
        lambda now: now[name]["widgets"].insert(0, "new: INT"),
        lambda now: now[name]["outputs"].pop(),
    ):
        now = copy.deepcopy(frozen)
        change(now)
        assert len(node_forms.broken(frozen, now)) == 1
    now = copy.deepcopy(frozen)
    now["StreamingT2VNew"] = {"widgets": [], "links": [], "outputs": []}
    now[name]["widgets"].append("new: INT")
    assert node_forms.broken(frozen, now) == []
