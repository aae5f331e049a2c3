# SPDX-License-Identifier: Apache-2.0
"""A head that waits on is not matched again, and nobody can tell."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from machine import Machine, make_kinds
from sglang_jenga.core.policies import Window
from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext.config import TEST_SEED
from sglang_jenga.sglang_ext.rematch import LastMatch
from test_admission import KINDS, make_machine, traffic

SEED = int(os.environ.get(TEST_SEED, "0"))
PROMPT = list(range(100, 200))


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_decision_is_the_same_as_with_a_match_at_every_step(
    kind: str, page_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admissions, retractions and evictions: slot for slot, in an arena that is too small."""
    spared = 0
    again = LastMatch.again

    def counting(self: LastMatch, params: object) -> object:
        nonlocal spared
        result = again(self, params)
        spared += result is not None
        return result

    logs = []
    for remembers in (counting, lambda self, params: None):
        monkeypatch.setattr(LastMatch, "again", remembers)
        machine = make_machine(KINDS[kind], page_tokens=page_tokens)
        loop = traffic(machine, SEED + 5, requests=25)
        loop.run()
        logs.append((loop.log, machine.tree.evicted_tokens, machine.tree.hits.sums()))
    assert logs[0] == logs[1]
    assert spared > 10


def waiting(m: Machine) -> tuple[object, Callable[[], bool]]:
    """A request that waits, and whether asking for its prefix walks the tree."""
    req = m.request([*PROMPT, 1, 2, 3])
    core, walks = m.tree.tree_core, []
    walk = core.match_prefix
    core.match_prefix = lambda params: walks.append(params) or walk(params)

    def is_matched() -> bool:
        walks.clear()
        req.init_next_round_input(m.tree)
        return bool(walks)

    return req, is_matched


def machine_with_a_cached_prompt() -> Machine:
    kinds = make_kinds(window_layers=5, policy=Window(window_tokens=24))
    m = Machine(kinds, large_pages=2000, chunk_tokens=200)
    req = m.prefill(PROMPT)
    m.decode([req])
    m.finish(req)
    return m


def test_it_is_matched_once_while_others_decode() -> None:
    m = machine_with_a_cached_prompt()
    running = m.prefill(range(500, 520))
    req, is_matched = waiting(m)
    assert is_matched() and req.prefix_len == 100
    for _ in range(10):
        m.decode([running])
        assert not is_matched() and req.prefix_len == 100
    assert m.arena.candidate == digest_of(req)


def test_whatever_its_hit_depends_on_has_it_matched_again() -> None:
    m = machine_with_a_cached_prompt()
    req, is_matched = waiting(m)
    tracker = {ct: 0 for ct in m.tree.tree_components}
    changes: dict[str, Callable[[], object]] = {
        "another prompt is matched": lambda: m.hit(PROMPT[:50]),
        "a prompt is cached": lambda: m.finish(m.prefill(range(700, 720))),
        "a piece goes": lambda: m.tree._evict_one(tracker),
        "an answer grew": lambda: req.output_ids.append(7),
    }
    for name, change in changes.items():
        is_matched()
        assert not is_matched()
        change()
        assert is_matched(), name


def test_a_hit_that_went_is_not_remembered() -> None:
    m = machine_with_a_cached_prompt()
    req, is_matched = waiting(m)
    assert is_matched() and req.prefix_len == 100
    while m.tree.evictable_slots(0):
        assert m.tree._evict_one({ct: 0 for ct in m.tree.tree_components})
    assert is_matched() and req.prefix_len == 0
    assert not m.tree.tree_core.lru_lists[ComponentType.SWA].cache


def test_a_request_that_started_is_matched_when_it_comes_back() -> None:
    m = machine_with_a_cached_prompt()
    req, is_matched = waiting(m)
    is_matched()
    m.tree.note_start(req)
    assert is_matched()


def test_a_flushed_cache_is_matched_again() -> None:
    m = machine_with_a_cached_prompt()
    req, is_matched = waiting(m)
    assert is_matched() and req.prefix_len == 100
    m.tree.reset()
    assert is_matched() and req.prefix_len == 0
