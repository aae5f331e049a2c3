# SPDX-License-Identifier: Apache-2.0
"""Prompts that share a prefix: a visitor costs what the tree needs, however many came before.

Nodes are counted, and nodes that a match or a lock looks at, never time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
from sink_window.policy import SinkWindow

from machine import VOCABULARY, Machine, make_kinds
from sglang_jenga.core.policies import Chunked, TokenPolicy, Window
from sglang_jenga.sglang_ext.tree import ArenaTreeCore
from sglang_jenga.sglang_ext.windows import ArenaWindowComponent, ShortestPieces

SPAN = 64
WINDOW = ComponentType.SWA
POLICIES = [
    Window(window_tokens=SPAN),
    Chunked(chunk_tokens=SPAN),
    SinkWindow(sink_tokens=6, window_tokens=SPAN),
]
SHARED = [*range(200)]


def make_machine(policy: TokenPolicy, page_tokens: int = 1) -> Machine:
    kinds = make_kinds(window_layers=5, policy=policy)
    pages = 4000 // page_tokens
    return Machine(kinds, large_pages=pages, page_tokens=page_tokens, chunk_tokens=128)


def question(rng: random.Random) -> list[int]:
    """Of any length, up to two windows."""
    return [rng.randrange(VOCABULARY) for _ in range(rng.randrange(2, 2 * SPAN))]


def visit(machine: Machine, prompt: list[int], answer: int = 2) -> None:
    req = machine.prefill(prompt, max_new=answer)
    for _ in range(answer):
        machine.decode([req])
    machine.finish(req)


def path(machine: Machine, tokens: list[int]) -> list[UnifiedTreeNode]:
    """Nodes from the root to the end of the longest hit on ``tokens``."""
    req = machine.request([*tokens, VOCABULARY])
    machine.match(req)
    node, found = machine.tree.resolve_node_handle(req.last_node), []
    while node is not machine.tree.tree_core.root_node:
        found.append(node)
        node = node.parent
    return found[::-1]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every node that a match asks about."""
    seen: list[int] = []
    validators = ArenaTreeCore._create_match_validators

    def watched(
        self: ArenaTreeCore, *args: Any, **kwargs: Any
    ) -> tuple[Callable[[UnifiedTreeNode], bool], ...]:
        def note(node: UnifiedTreeNode) -> bool:
            seen.append(node.id)
            return True

        return (*validators(self, *args, **kwargs), note)

    monkeypatch.setattr(ArenaTreeCore, "_create_match_validators", watched)
    return seen


def looks_of_a_visit(machine: Machine, looked_at: list[int]) -> int:
    looked_at.clear()
    machine.match(machine.request([*SHARED, 998, 999]))
    return len(looked_at)


def pieces_at_most(policy: TokenPolicy, page_tokens: int) -> int:
    """Nodes that a prefix may fall into: what leads to its last window, and that in pieces."""
    shortest = ShortestPieces.of(policy.span_tokens or 0, page_tokens).shared
    return 4 + -(-SPAN // shortest)


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_visitor_walks_over_no_more_nodes_however_many_came_before(
    policy: TokenPolicy, page_tokens: int, looked_at: list[int]
) -> None:
    rng, machine = random.Random(1), make_machine(policy, page_tokens)
    seen = []
    for visitors in (16, 200):
        for _ in range(visitors):
            visit(machine, [*SHARED, *question(rng)])
        assert machine.hit(SHARED) == len(SHARED)
        seen.append(looks_of_a_visit(machine, looked_at))
        assert len(path(machine, SHARED)) <= pieces_at_most(policy, page_tokens)
    assert seen[-1] <= 1.5 * seen[0]
    assert machine.problems() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_tree_of_prefixes_too(policy: TokenPolicy) -> None:
    """Visitors leave at the end of any of four levels."""
    rng, machine = random.Random(2), make_machine(policy)
    ends = range(50, 201, 50)
    for _ in range(300):
        visit(machine, [*SHARED[: rng.choice(ends)], *question(rng)])
    at_most = len(ends) * pieces_at_most(policy, 1)
    assert len(path(machine, SHARED)) <= at_most
    assert all(machine.hit(SHARED[:end]) == end for end in ends)


def test_visitors_that_come_alone_leave_a_bounded_number_of_cuts() -> None:
    """Each question is gone before the next comes: nothing shows that the prefix is shared."""
    span = 2 * SPAN
    rng, machine = random.Random(3), make_machine(Window(window_tokens=span))
    for _ in range(150):
        visit(machine, [*SHARED, *question(rng)])
        end = path(machine, SHARED)[-1]
        assert end.end_tokens == len(SHARED)
        while end.children:
            leaf = end
            while leaf.children:
                leaf = next(iter(leaf.children.values()))
            machine.tree._evict_device_leaf(leaf.id, dict.fromkeys(machine.tree.tree_components, 0))
    assert len(path(machine, SHARED)) <= 4 + span // ShortestPieces.of(span, 1).own
    assert machine.problems() == []


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_visitors_read_is_pinned_and_little_more(
    policy: TokenPolicy, page_tokens: int
) -> None:
    """All of what any of them reads, at most two of the shortest pieces more."""
    rng, machine = random.Random(4), make_machine(policy, page_tokens)
    for _ in range(40):
        visit(machine, [*SHARED, *question(rng)])
    extra = 2 * ShortestPieces.of(SPAN, page_tokens).shared + 2 * page_tokens
    for _ in range(30):
        req = machine.prefill([*SHARED, *question(rng)], max_new=3)
        pinned = set[int]()
        node = machine.tree.resolve_node_handle(req.last_node)
        while node is not machine.tree.tree_core.root_node:
            if node.component_data[WINDOW].lock_ref:
                pinned |= {*range(node.parent.end_tokens, node.end_tokens)}
            node = node.parent
        read = {p for part in policy.needed(req.kv.cache_protected_len) for p in part}
        assert read <= pinned and len(pinned - read) <= extra
        machine.finish(req)
    assert machine.problems() == []


def test_a_long_conversation_is_walked_once_per_node(
    looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn brings a bounded number of nodes, and a match asks each of them once."""
    machine = make_machine(POLICIES[0])
    cut: list[int] = []
    split = ArenaWindowComponent._split_at
    monkeypatch.setattr(
        ArenaWindowComponent,
        "_split_at",
        lambda self, node, position: (cut.append(position), split(self, node, position))[1],
    )
    text: list[int] = []
    per_turn = []
    for turn in range(24):
        text += [(31 * turn + i) % 997 for i in range(9)]
        visit(machine, text, answer=4)
        looked_at.clear()
        machine.match(machine.request([*text, 998]))
        assert len(looked_at) == len({*looked_at}) <= 5 * (turn + 1)
        per_turn.append(len(cut))
        cut.clear()
    assert max(per_turn[4:]) <= max(per_turn[:4]) + 2
    assert machine.problems() == []


def test_every_node_knows_where_it_ends() -> None:
    rng, machine = random.Random(5), make_machine(POLICIES[0])
    for _ in range(60):
        visit(machine, [*SHARED[: rng.randrange(1, 200)], *question(rng)])
        machine.hit(SHARED[: rng.randrange(1, 200)])
    for node in machine.tree.tree_core._collect_all_nodes():
        tokens, above = 0, node
        while above is not machine.tree.tree_core.root_node:
            tokens, above = tokens + len(above.key), above.parent
        assert node.end_tokens == tokens


@pytest.mark.parametrize("span", [1, 24, 63, 128, 512, 1024, 4096, 32768])
@pytest.mark.parametrize("page_tokens", [1, 16])
def test_pieces_are_whole_pages_and_at_most_a_quarter_of_a_window(
    span: int, page_tokens: int
) -> None:
    shortest = ShortestPieces.of(span, page_tokens)
    assert page_tokens <= shortest.own <= shortest.shared <= max(page_tokens, span // 4)
    assert shortest.own % page_tokens == shortest.shared % page_tokens == 0
    assert span // shortest.shared <= max(8, span // page_tokens if span < 32 else 8)
