# SPDX-License-Identifier: Apache-2.0
"""The radix tree under real requests: what is a hit, what is evicted first, what never is."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
from sink_window.policy import SinkWindow

from machine import Machine, make_kinds
from sglang_jenga.core.policies import Chunked, Full, TokenPolicy, Window
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator
from sglang_jenga.sglang_ext.tree import ArenaTreeCore

SPAN = 24
FULL, WINDOW = ComponentType.FULL, ComponentType.SWA
SPANNED = Window(window_tokens=SPAN)
CHUNKS = Chunked(chunk_tokens=SPAN)
SINKS = SinkWindow(sink_tokens=6, window_tokens=SPAN)
KINDS = {
    Full(): make_kinds(),
    SPANNED: make_kinds(window_layers=5, policy=SPANNED),
    CHUNKS: make_kinds(window_layers=3, policy=CHUNKS),
    SINKS: make_kinds(window_layers=5, policy=SINKS),
}
HYBRID = [SPANNED, CHUNKS, SINKS]


def make_machine(policy: TokenPolicy, *, page_tokens: int = 1, large_pages: int = 3000) -> Machine:
    return Machine(
        KINDS[policy],
        large_pages=large_pages // page_tokens + 20,
        page_tokens=page_tokens,
        chunk_tokens=32,
    )


def answer(
    machine: Machine, prompt: list[int], output: int = 1, chunk: int | None = None
) -> list[int]:
    """Serve a request to its end; the tokens that are cached now."""
    req = machine.prefill(prompt, max_new=output, chunk=chunk)
    for _ in range(output):
        machine.decode([req])
    machine.finish(req)
    return prompt + list(req.output_ids)[:output]


def nodes(machine: Machine) -> list[UnifiedTreeNode]:
    core = machine.tree.tree_core
    return [node for node in core._collect_all_nodes() if node is not core.root_node]


def path(machine: Machine, tokens: list[int]) -> list[UnifiedTreeNode]:
    """Nodes of the longest hit on ``tokens``, root side first. Using a prefix makes it young."""
    req = machine.request([*tokens, 999])
    machine.match(req)
    node, found = machine.tree.resolve_node_handle(req.last_node), []
    while node is not machine.tree.tree_core.root_node:
        found.append(node)
        node = node.parent
    return found[::-1]


def live_windows(nodes_of_prompt: list[UnifiedTreeNode]) -> list[bool]:
    """Per token of a cached prompt: whether its window slot still exists."""
    return [
        live
        for node in nodes_of_prompt
        for live in [node.component_data[WINDOW].value is not None] * len(node.key)
    ]


def is_hit(policy: TokenPolicy, live: list[bool], prefix: int) -> bool:
    return all(live[p] for part in policy.needed(prefix) for p in part)


Piece = tuple[UnifiedTreeNode, ComponentType]


def needed_pieces(machine: Machine, policy: TokenPolicy, tokens: list[int]) -> list[Piece]:
    """What a hit on all of ``tokens`` needs: full slots everywhere, window slots near the end."""
    found = path(machine, tokens)
    pieces: list[Piece] = [(node, FULL) for node in found]
    if policy.SLIDES:
        needed = {p for part in policy.needed(len(tokens)) for p in part}
        start = 0
        for node in found:
            positions = range(start, start := start + len(node.key))
            pieces += [(node, WINDOW)] * (not needed.isdisjoint(positions))
    return pieces


def is_gone(machine: Machine, piece: Piece) -> bool:
    node, component = piece
    return node not in nodes(machine) or node.component_data[component].value is None


def evict_one(machine: Machine) -> bool:
    return machine.tree._evict_one({ct: 0 for ct in machine.tree.tree_components})


def evict_spare_windows(machine: Machine) -> None:
    core = machine.tree.tree_core
    while core.lru_lists[WINDOW].oldest_spare() is not None:
        assert not core.oldest().is_leaf, "spare windows go before anything else"
        evict_one(machine)


# ---- hits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", HYBRID)
def test_a_prompt_hits_where_the_predicate_holds(policy: TokenPolicy, page_tokens: int) -> None:
    """Every branching point of a cached conversation, against the predicate on live slots."""
    machine = make_machine(policy, page_tokens=page_tokens)
    tokens = answer(machine, list(range(100)), output=60, chunk=32)
    whole = len(tokens) // page_tokens * page_tokens
    live = live_windows(path(machine, tokens))
    assert len(live) == whole and 0 < sum(live) < whole, "some slots slid away, some are left"
    ends = range(0, whole + 1, page_tokens)
    valid = [n for n in ends if is_hit(policy, live, n)]
    for branch in ends:
        hit = machine.hit(tokens[:branch])
        assert hit in valid, f"a hit of {hit} at {branch} has dead window slots"
        assert hit == branch or branch not in valid


def test_a_chunked_prefix_hits_at_every_chunk_boundary_although_its_slots_are_gone() -> None:
    chunked, window = make_machine(CHUNKS), make_machine(SPANNED)
    prompt = list(range(10 * SPAN))
    for machine in (chunked, window):
        answer(machine, prompt)
        evict_spare_windows(machine)
    for boundary in (SPAN, 3 * SPAN, 6 * SPAN):
        assert chunked.hit(prompt[:boundary]) == boundary
        assert window.hit(prompt[:boundary]) == 0, "a window needs the slots that slid away"


@pytest.mark.parametrize("chunk", [None, 32, 7])
@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", HYBRID)
def test_a_prompt_can_be_left_anywhere_while_nobody_needs_the_bytes(
    policy: TokenPolicy, page_tokens: int, chunk: int | None
) -> None:
    machine = make_machine(policy, page_tokens=page_tokens)
    prompt = list(range(8 * SPAN))
    answer(machine, prompt, chunk=chunk)
    for branch in range(page_tokens, len(prompt), page_tokens):
        assert machine.hit(prompt[:branch]) == branch


def test_spare_windows_go_first_and_those_of_the_oldest_prompt_before_others() -> None:
    machine = make_machine(SPANNED)
    first, second = list(range(5 * SPAN)), list(range(500, 500 + 5 * SPAN))
    answer(machine, first)
    answer(machine, second)
    evict_one(machine)
    assert machine.hit(first[:40]) == 0 and machine.hit(second[:40]) == 40
    evict_spare_windows(machine)
    # Its end is hit as before; what was asked for in the middle is spare no more.
    assert machine.hit(first) == len(first) and machine.hit(second) == len(second)
    assert machine.hit(second[:40]) == 40 and machine.hit(second[:80]) == 40


@pytest.mark.parametrize("policy", HYBRID)
def test_a_spare_window_that_ends_up_last_is_worth_what_its_full_slots_are(
    policy: TokenPolicy,
) -> None:
    machine = make_machine(policy)
    answer(machine, list(range(5 * SPAN)))
    lru = machine.tree.tree_core.lru_lists[WINDOW]
    while any(node.children for node in nodes(machine)):
        victim = machine.tree.tree_core.oldest_leaf()
        machine.tree._evict_device_leaf(
            victim.node.id, {ct: 0 for ct in machine.tree.tree_components}
        )
    assert lru.oldest_spare() is None
    assert machine.tree.tree_core.oldest().is_leaf


def test_full_attention_hits_everywhere() -> None:
    machine = make_machine(Full())
    tokens = answer(machine, list(range(100)), output=20)
    for branch in range(1, 120):
        assert machine.hit(tokens[:branch]) == branch


# ---- one clock, least valuable first -----------------------------------------------------------


def oldest_by_brute_force(core: ArenaTreeCore, machine: Machine) -> dict[str, object]:
    """What ``oldest`` chooses from, recomputed by looking at every node."""
    window_times = {}
    if WINDOW in core.component_types:
        lru = core.lru_lists[WINDOW]
        window_times = {
            node.id: lru.last_use(node)
            for node in nodes(machine)
            if node.component_data[WINDOW].value is not None
            and node.component_data[WINDOW].lock_ref == 0
        }
    leaves = {
        node.id: node.last_access_time
        for node in nodes(machine)
        if not node.children and all(cd.lock_ref == 0 for cd in node.component_data)
    }
    return {"windows": window_times, "leaves": leaves}


def check_oldest(machine: Machine) -> None:
    core = machine.tree.tree_core
    truth = oldest_by_brute_force(core, machine)
    leaf = core.oldest_leaf()
    window = core.oldest_piece(WINDOW) if WINDOW in core.component_types else None
    assert (leaf is None) == (not truth["leaves"])
    if leaf is not None:
        assert leaf.node.id in truth["leaves"]
        if core.can_be_hit(leaf.node):
            assert leaf.node.last_access_time == min(truth["leaves"].values())
    assert (window is None) == (not truth["windows"])
    if window is not None:
        assert window.last_use == min(truth["windows"].values())
    chosen = core.oldest()
    assert (chosen is None) == (leaf is None and window is None)
    if chosen is not None and chosen != leaf:
        assert chosen == window
        is_spare = core.lru_lists[WINDOW].oldest_spare() is window.node
        assert is_spare or leaf is None or window.last_use < leaf.last_use


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", list(KINDS))
def test_the_heap_finds_what_a_search_of_the_whole_tree_finds(
    policy: TokenPolicy, page_tokens: int
) -> None:
    rng = random.Random(page_tokens)
    machine = make_machine(policy, page_tokens=page_tokens)
    roots = [[rng.randrange(1000) for _ in range(80)] for _ in range(4)]
    running: list[Req] = []
    for _ in range(120):
        prompt = rng.choice(roots)[: rng.randrange(1, 80)]
        prompt += [rng.randrange(1000) for _ in range(rng.randrange(1, 40))]
        match rng.randrange(5):
            case 0:
                answer(machine, prompt, output=rng.randrange(1, 40))
            case 1:
                machine.hit(prompt)
            case 2 if len(running) < 6:
                running.append(machine.prefill(prompt, max_new=200))
            case 3 if running:
                req = running.pop(rng.randrange(len(running)))
                rng.choice((machine.finish, machine.retract))(req)
            case _:
                evict_one(machine)
        check_oldest(machine)
    while machine.tree.tree_core.oldest() is not None:
        check_oldest(machine)
        evict_one(machine)


@pytest.mark.parametrize("policy", list(KINDS))
def test_using_a_prefix_makes_all_that_its_hit_needs_young_in_every_kind(
    policy: TokenPolicy,
) -> None:
    machine = make_machine(policy)
    used = answer(machine, list(range(70)), chunk=32)
    answer(machine, list(range(500, 570)), chunk=32)

    def last_use(piece: Piece) -> float:
        node, component = piece
        if component is FULL:
            return node.last_access_time
        return machine.tree.tree_core.lru_lists[WINDOW].last_use(node)

    needed = needed_pieces(machine, policy, used)  # looks the prefix up, and so uses it
    on_path = [node for node, _ in needed]
    others = [
        (node, component)
        for node in nodes(machine)
        for component in machine.tree.tree_components
        if node not in on_path and node.component_data[component].value is not None
    ]
    assert others and min(map(last_use, needed)) > max(map(last_use, others))


@pytest.mark.parametrize("policy", list(KINDS))
def test_of_two_conversations_the_one_used_longest_ago_loses_its_hit_first(
    policy: TokenPolicy,
) -> None:
    machine = make_machine(policy)
    first = answer(machine, list(range(60)), chunk=32)
    second = answer(machine, list(range(500, 560)), chunk=32)
    of_second = needed_pieces(machine, policy, second)
    of_first = needed_pieces(machine, policy, first)  # used last
    while not any(is_gone(machine, piece) for piece in of_second):
        assert not any(is_gone(machine, piece) for piece in of_first)
        assert evict_one(machine)
    assert not any(is_gone(machine, piece) for piece in of_first)


@pytest.mark.parametrize("policy", list(KINDS))
def test_eviction_goes_on_until_the_starving_kind_has_its_large_pages(
    policy: TokenPolicy,
) -> None:
    machine = make_machine(policy, large_pages=150)
    for start in range(0, 600, 60):
        if machine.arena.reclaim(machine.tree, [70] * len(machine.arena.kinds)):
            answer(machine, list(range(start, start + 60)))
    core = machine.arena.core
    for kind in machine.arena.kinds:
        demand = [0] * len(machine.arena.kinds)
        per_large = machine.plan.kinds[kind].small_pages_per_large_page
        demand[kind] = machine.plan.usable_large_pages * per_large * 9 // 10
        assert not core.fits(demand)
        assert machine.arena.reclaim(machine.tree, demand), "everything cached may go"
        assert core.fits(demand)
        answer(machine, list(range(60)))


# ---- what is never evicted ---------------------------------------------------------------------


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", list(KINDS))
def test_eviction_never_touches_what_a_running_request_reads(
    policy: TokenPolicy, page_tokens: int
) -> None:
    machine = make_machine(policy, page_tokens=page_tokens)
    shared = list(range(60))
    answer(machine, shared)
    answer(machine, list(range(500, 600)))
    running = [machine.prefill([*shared, *range(300 + i, 320 + i)], max_new=99) for i in range(3)]
    before = [machine.slots(req).numpy().copy() for req in running]
    machine.tree.evict_until(lambda: False)
    used = machine.arena.core._kinds[0].state
    for req, slots in zip(running, before, strict=True):
        assert (machine.slots(req).numpy() == slots).all()
        assert (used[slots // page_tokens] == 2).all(), "a full slot in use was freed"
        if isinstance(machine.arena, HybridArenaAllocator):
            window = machine.arena.translation.host[slots]
            n = len(slots)
            reads = [p for part in policy.needed(n) for p in part]
            assert (window[reads] > 0).all(), "a window slot in use was freed"
    for req in running:
        machine.decode([req])
        machine.finish(req)
    assert machine.problems() == []


@pytest.mark.parametrize("policy", list(KINDS))
def test_nothing_stays_pinned_after_everybody_left(policy: TokenPolicy) -> None:
    machine = make_machine(policy)
    running = [machine.prefill(range(40 + i), max_new=99) for i in range(4)]
    for req in running[:2]:
        machine.finish(req)
    for req in running[2:]:
        machine.retract(req)
    assert machine.problems() == []
    machine.tree.evict_until(lambda: False)
    assert nodes(machine) == []
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


@pytest.mark.parametrize("policy", HYBRID)
def test_a_request_pins_no_more_window_slots_of_its_prefix_than_it_reads(
    policy: TokenPolicy,
) -> None:
    machine = make_machine(policy)
    tokens = answer(machine, list(range(100)))
    for short in (10, 30, 55):  # later turns split the cached path into nodes of many lengths
        answer(machine, [*tokens[:short], *range(700, 720)])
    tokens = answer(machine, [*tokens, *range(200, 215)])
    req = machine.request([*tokens, 1, 2])
    machine.admit(req)
    machine.tree.evict_until(lambda: False)
    n = req.prefix_len
    reads = policy.needed_tokens(n)
    # One token (page) more, for the same prompt sent again: it is hit up to its last token.
    assert n > 0 and machine.arena.used_slots(1) == reads + 1
    machine.tree.unlock(req.lock)


# ---- SGLang's own requests ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [EvictParams(num_tokens=30), EvictParams(num_tokens=0, swa_num_tokens=20)],
    ids=["full", "window"],
)
def test_sglangs_own_eviction_requests_are_served_in_the_same_order(asked: EvictParams) -> None:
    machine = make_machine(SPANNED)
    answer(machine, list(range(60)))
    young = answer(machine, list(range(500, 560)))
    needed = needed_pieces(machine, SPANNED, young)
    result = machine.tree.evict(asked)
    assert result.num_tokens_evicted >= asked.num_tokens
    assert result.swa_num_tokens_evicted >= asked.swa_num_tokens
    assert not any(is_gone(machine, piece) for piece in needed)


@pytest.mark.parametrize("policy", list(KINDS))
def test_an_eviction_does_constant_work_however_many_leaves_there_are(
    policy: TokenPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked-at nodes are counted, not time: a heap per call would look at all of them."""
    looked: list[int] = []
    original: Callable[..., float] = ArenaTreeCore._worth
    monkeypatch.setattr(
        ArenaTreeCore,
        "_worth",
        lambda self, node: (looked.append(node.id), original(self, node))[1],
    )
    machine = make_machine(policy)
    for start in range(200):
        answer(machine, [start, *range(500, 505)])
    looked.clear()
    evicted = 50
    for _ in range(evicted):
        evict_one(machine)
    assert len(looked) <= 6 * evicted


def test_host_ids_of_the_tree_are_those_of_the_requests() -> None:
    """A finished request's slots are the tree's, id for id: nothing was copied or moved."""
    machine = make_machine(SPANNED)
    req = machine.prefill(range(50), max_new=9)
    slots = machine.slots(req).numpy().copy()
    machine.finish(req)
    cached = [node.component_data[FULL].value.numpy() for node in path(machine, list(range(50)))]
    assert np.concatenate(cached).tolist() == slots.tolist()
