# SPDX-License-Identifier: Apache-2.0
"""The queue says where prompts will part: the first of them leaves a window and a state there."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_batch import Req

from machine import Machine, make_kinds
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext import plugin
from sglang_jenga.sglang_ext.lookahead import (
    DEPTH_REQUESTS,
    best_branch,
    branches,
    common_tokens,
)
from state_machine import GRID_TOKENS, StateMachine, caching_strategy, state_kinds

COMMON = range(100, 160)
FIRST = [*COMMON, *range(200, 300)]
SECOND = [*COMMON, *range(400, 440)]


def ids(*numbers: int) -> array[int]:
    return array("q", numbers)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (ids(), ids(), 0),
        (ids(1, 2, 3), ids(), 0),
        (ids(1, 2, 3), ids(1, 2, 3), 3),
        (ids(1, 2, 3), ids(1, 2, 3, 4), 3),
        (ids(1, 2, 3), ids(9, 2, 3), 0),
        (ids(*range(50)), ids(*range(40), 7, 7), 40),
        (ids(*range(50)), ids(*range(10), 7, 7), 0),
    ],
    ids=["both empty", "one empty", "equal", "longer", "other start", "part late", "part at once"],
)
def test_common_tokens(one: array[int], other: array[int], common: int) -> None:
    assert common_tokens(one, other) == common_tokens(other, one) == common


@pytest.mark.parametrize(
    ("lengths", "after", "best"),
    [
        ([], 0, None),
        ([7], 0, None),
        ([8], 8, None),
        ([20, 21], 0, 20),
        ([100, 20, 20], 0, 100),
        ([40, 35, 33, 32], 0, 32),
        ([40, 35, 33, 32], 30, 40),
    ],
)
def test_the_best_branch_saves_the_most_tokens_of_all_who_wait(
    lengths: list[int], after: int, best: int | None
) -> None:
    assert best_branch(lengths, after=after, grid_tokens=8) == best


def test_branches_are_those_of_the_head_of_the_queue_in_the_same_namespace() -> None:
    machine = Machine(make_kinds(), large_pages=60)
    req = machine.request(FIRST)
    others = [machine.request(SECOND) for _ in range(DEPTH_REQUESTS + 5)]
    assert branches(req, [req, *others], after=0, before=160) == [60] * (DEPTH_REQUESTS - 1)
    assert branches(req, others[:1], after=60, before=160) == []
    assert branches(req, others[:1], after=0, before=60) == []
    others[0].extra_key, others[1].cache_salt = "adapter", "salt"
    assert branches(req, others[:3], after=0, before=160) == [60]


def windowed() -> Machine:
    kinds = make_kinds(window_layers=5, policy=Window(window_tokens=16))
    return Machine(kinds, large_pages=600, chunk_tokens=64)


@pytest.mark.parametrize("chunk", [None, 64], ids=["whole", "in chunks"])
def test_the_second_prompt_hits_where_it_parts_from_the_first_under_pressure(
    chunk: int | None,
) -> None:
    hits = {}
    for queue in ("known", "unknown"):
        machine = windowed()
        second = machine.request(SECOND)
        machine.tree.waiting = [second] if queue == "known" else []
        machine.finish(machine.prefill(FIRST, chunk=chunk))
        core = machine.tree.tree_core
        spare = lambda core=core: core.oldest() is None or core.oldest().last_use >= 0  # noqa: E731
        machine.tree.evict_until(spare)
        hits[queue] = machine.match(second)
        assert not machine.problems()
    assert hits == {"known": len(COMMON), "unknown": 0}


def test_the_first_prompt_leaves_a_state_where_the_queue_will_part_from_it() -> None:
    hits = {}
    for queue in ("known", "unknown"):
        with caching_strategy("extra_buffer_lazy"):
            machine = StateMachine(state_kinds(), large_pages=600)
            second = machine.request(SECOND)
            machine.tree.waiting = [second] if queue == "known" else []
            machine.finish(machine.prefill(FIRST))
            hits[queue] = machine.match(second)
            assert not machine.problems()
    assert hits == {"known": len(COMMON) // GRID_TOKENS * GRID_TOKENS, "unknown": 0}


def test_the_scheduler_shows_its_queue_to_the_cache_on_every_pass() -> None:
    plugin.load()
    machine = windowed()
    queue: list[Req] = [machine.request(SECOND)]
    policy = SimpleNamespace(tree_cache=machine.tree)
    assert plugin._calc_priority(None, policy, queue) is None
    assert machine.tree.waiting is queue
    others = SimpleNamespace(tree_cache=SimpleNamespace())
    plugin._calc_priority(None, others, queue)
    assert not vars(others.tree_cache), "a cache of SGLang's own is left alone"
