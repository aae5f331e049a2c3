# SPDX-License-Identifier: Apache-2.0
"""Recurrent states: who holds one, which prefixes they make hits, what becomes of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from machine import VOCABULARY, evict_piece
from scheduler import Loop
from sglang_jenga.core.memory import Sparing
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import GRID_TOKENS, StateMachine, caching_strategy, state_kinds

PROMPT = list(range(100, 170))  # 70 tokens: 8 whole grid steps and 6 more


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    """Prefill leaves snapshots at multiples of the grid, as a jenga server resolves it."""
    with caching_strategy(LAZY):
        yield


def machine(*, large_pages: int = 200, window_layers: int = 0, **kwargs: object) -> StateMachine:
    kinds = state_kinds(window_layers=window_layers, policy=Window(window_tokens=12))
    return StateMachine(kinds, large_pages=large_pages, **kwargs)


def serve(m: StateMachine, prompt: list[int], output: int = 5, chunk: int | None = None) -> list:
    """A request from arrival to end; its tokens that were computed."""
    req = m.prefill(prompt, max_new=output, chunk=chunk)
    for _ in range(output):
        m.decode([req])
    tokens = [*req.origin_input_ids, *req.output_ids][: req.kv.kv_committed_len]
    m.finish(req)
    m.check_states()
    return tokens


# ---- slots ---------------------------------------------------------------------------------------


def test_a_running_request_holds_one_state_through_prefill_and_decode() -> None:
    m = machine()
    first = m.prefill(PROMPT, chunk=32, max_new=50)
    assert m.held_states() == 1
    second = m.prefill([*PROMPT[:40], *range(300, 340)], max_new=50)
    assert m.held_states() == 2
    for _ in range(40):
        m.decode([first, second])
        assert m.held_states() == 2
    m.finish(first)
    m.retract(second)
    assert m.held_states() == 0
    assert m.problems() == []


def test_states_of_running_requests_that_are_cached_can_be_evicted() -> None:
    m = machine()
    req = m.prefill(PROMPT, max_new=50)
    assert m.tree.mamba_evictable_size() == len(m.cached_states()) == 1
    m.tree.evict_until(lambda: False)
    assert not m.cached_states()
    m.decode([req])  # and it goes on with its own
    m.finish(req)
    assert m.problems() == []


def test_nothing_is_taken_for_a_request_that_waits() -> None:
    m = machine()
    serve(m, PROMPT)
    used = m.arena.used_slots(m.arena.state_kind)
    waiting = [m.request([*PROMPT, i]) for i in range(20)]
    for req in waiting:
        m.match(req)
    assert m.arena.used_slots(m.arena.state_kind) == used
    assert all(req.kv.mamba_pool_idx is None for req in waiting)


def test_a_snapshot_without_room_is_left_out_and_costs_nothing_else() -> None:
    m = machine(large_pages=20)
    core, states = m.arena.core, m.arena.state_kind
    req = m.request(PROMPT[:GRID_TOKENS], max_new=4)
    m.admit(req)
    # All but a large page for its tokens and one state.
    per_page = m.plan.kinds[states].small_pages_per_large_page
    others = core.take(states, (core.num_free_large_pages - 1) * per_page - 1)
    m.extend([req])
    assert m.held_states() == len(others) + 1
    m.end_prefill(req)
    assert not m.cached_states()
    m.decode([req])
    m.finish(req)
    core.free(states, others)
    m.check_states()
    assert m.problems() == []


@pytest.mark.parametrize("free_states", range(3, 8))
def test_a_batch_leaves_as_many_snapshots_as_there_is_room_for(free_states: int) -> None:
    m = machine(large_pages=40)
    core, states = m.arena.core, m.arena.state_kind
    reqs = [m.request([1000 * i + t for t in range(2 * GRID_TOKENS)], max_new=4) for i in range(3)]
    for req in reqs:
        m.admit(req)
    # All but large pages for their tokens, and so many states.
    per_page = m.plan.kinds[states].small_pages_per_large_page
    tokens = m.plan.kinds[0].small_pages_per_large_page
    for_tokens = -(-3 * 2 * GRID_TOKENS // tokens)
    others = core.take(states, (core.num_free_large_pages - for_tokens) * per_page - free_states)
    m.extend(reqs)
    snapshots = min(3, free_states - 3)
    assert m.held_states() == len(others) + 3 + snapshots
    assert [m.rows.has_snapshot(req) for req in reqs] == [i < snapshots for i in range(3)]
    slots = [int(req.kv.mamba_pool_idx) for req in reqs]
    slots += [s for req in reqs for s in req.kv.mamba_ping_pong_track_buffer.tolist() if s]
    assert len(set(slots)) == len(slots) == 3 + snapshots
    for req in reqs:
        m.end_prefill(req)
    assert len(m.cached_states()) == snapshots
    for req in reqs:
        m.finish(req)
    core.free(states, others)
    m.check_states()
    assert m.problems() == []


def test_finished_conversations_take_the_whole_arena_and_give_it_up() -> None:
    """SGLang's unified admission counts no bytes of cached states: it can refuse for ever."""
    m = machine(large_pages=24, context_tokens=4096)
    for i in range(60):
        serve(m, [(i * 37 + j) % VOCABULARY for j in range(30)], output=2)
    assert m.tree.mamba_evictable_size() > 3
    longest = m.demand.longest_request_tokens
    loop = Loop(machine=m)
    big = m.request([j % VOCABULARY for j in range(longest - 10)], max_new=8)
    assert loop.submit(big)
    loop.run()
    assert big.finished()
    assert m.problems() == []


# ---- hits ----------------------------------------------------------------------------------------


def test_a_conversation_continues_exactly_where_its_last_answer_ended() -> None:
    m = machine()
    tokens = serve(m, PROMPT, output=7)
    assert len(tokens) % GRID_TOKENS
    assert m.hit(tokens) == len(tokens)
    again = serve(m, [*tokens, 1, 2, 3], output=4)
    assert m.hit(again) == len(again)


def test_a_prompt_asked_again_is_hit_at_the_last_grid_position_before_its_end() -> None:
    m = machine()
    serve(m, PROMPT)
    assert m.hit(PROMPT[:-1]) == 64


def test_a_prompt_without_an_answer_leaves_a_state_that_it_can_use_itself() -> None:
    m = machine()
    req = m.request(PROMPT, max_new=0)
    m.admit(req)
    m.extend([req])
    m.finish(req)
    assert m.hit(PROMPT[:-1]) == 64
    assert m.problems() == []


def test_the_second_visitor_of_a_shared_prefix_leaves_a_state_at_the_branch() -> None:
    m = machine()
    shared = PROMPT[:42]
    hits = [m.hit([*shared, 500])]
    for i in range(3):
        hits.append(m.hit([*shared, *range(600 + 50 * i, 640 + 50 * i)]))
        serve(m, [*shared, *range(600 + 50 * i, 640 + 50 * i)])
    assert hits == [0, 0, 0, 40]


def test_a_hit_needs_the_state_of_exactly_its_length() -> None:
    m = machine()
    tokens = serve(m, PROMPT, output=9)
    cached = sorted(len(seen) for seen in m.cached_states().values())
    assert cached == [64, len(tokens)]
    for length in range(1, len(tokens) + 1):
        assert m.hit(tokens[:length]) == max([0, *[c for c in cached if c <= length]])


def test_the_cached_state_stays_what_it_was_while_two_requests_continue_it() -> None:
    m = machine()
    tokens = serve(m, PROMPT)
    pair = [m.prefill([*tokens, *range(800 + i, 830 + i)], max_new=20) for i in range(2)]
    assert {req.prefix_len for req in pair} == {len(tokens) + 30}
    for _ in range(10):
        m.decode(pair)
    m.check_states()
    for req in pair:
        m.finish(req)
    assert m.problems() == []


def test_without_snapshots_states_are_cached_at_the_ends_of_prefills_and_answers() -> None:
    with caching_strategy("no_buffer"):
        m = machine(snapshots=False)
        tokens = serve(m, PROMPT, output=6)
        assert sorted(len(t) for t in m.cached_states().values()) == [len(PROMPT), len(tokens)]
        assert m.hit(PROMPT) == len(PROMPT)
        assert m.problems() == []


# ---- what goes first -----------------------------------------------------------------------------


def test_a_state_that_its_conversation_has_outgrown_goes_before_anything_else() -> None:
    m = machine()
    old = serve(m, PROMPT)
    turns = [serve(m, list(range(400, 460)))]
    for i in range(2):
        turns.append(serve(m, [*turns[-1], *range(700 + 40 * i, 730 + 40 * i)]))
    tracker = {ct: 0 for ct in m.tree.tree_components}
    while m.tree.tree_core.oldest().last_use < 0:
        assert m.tree._evict_one(tracker)
    assert tracker[ComponentType.FULL] == 0
    assert m.hit(turns[-1]) == len(turns[-1])  # the newest turn of the conversation
    assert m.hit(old) == len(old)  # and what nobody touched since
    assert m.hit(turns[0]) == 0


def test_a_branch_point_is_not_outgrown() -> None:
    m = machine()
    shared = serve(m, PROMPT)
    for i in range(2):
        serve(m, [*shared, *range(700 + 40 * i, 730 + 40 * i)])
    while m.tree.tree_core.oldest().last_use < 0:
        m.tree._evict_one({ct: 0 for ct in m.tree.tree_components})
    assert m.hit(shared) == len(shared)


def test_full_slots_that_no_state_makes_a_hit_go_before_older_ones_that_can_be_hit() -> None:
    m = machine()
    old = serve(m, PROMPT)
    req = m.prefill(list(range(400, 440)))
    core = m.tree.tree_core
    node = m.tree.resolve_node_handle(req.last_node)
    evict_piece(m, node, ComponentType.MAMBA)
    m.retract(req)
    assert core.oldest_leaf().node is node
    assert m.hit(old) == len(old)


def test_the_next_chunk_of_a_prompt_spares_the_state_of_a_branch_point() -> None:
    """Requests that run pin all else; the chunk is as long as what is free allows."""
    m = machine(large_pages=60)
    shared = PROMPT[:42]
    tails = [range(600 + 50 * i, 640 + 50 * i) for i in range(4)]
    for tail in tails[:2]:
        serve(m, [*shared, *tail])
    for tail in tails[2:]:
        m.prefill([*shared, *tail], max_new=50)
    while m.tree.tree_core.oldest(Sparing.SHARED) is not None:
        m.tree._evict_one({ct: 0 for ct in m.tree.tree_components}, Sparing.SHARED)
    states = m.tree.mamba_evictable_size()
    assert states == 1, "that of the branch"
    budget = m.arena.create_prefill_budget(m.tree)
    chunk = budget.fit_chunk(extend_input_len=10_000, max_new_tokens=0, chunk_limit=10_000)
    assert chunk is not None and 0 < chunk < 10_000
    assert m.tree.mamba_evictable_size() == states
    free = m.arena.core.num_available(0)
    assert chunk == free
    m.tree.evict_until(lambda: False)
    assert m.arena.core.num_available(0) > free, "it had something to spare"


# ---- under load ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("window_layers", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_tight_memory_loses_no_state_and_every_request_is_answered(
    seed: int, window_layers: int, page_tokens: int
) -> None:
    """With a window kind beside full and states: three kinds in one arena."""
    rng = random.Random(seed)
    m = machine(
        large_pages=14 if not window_layers else 30,
        window_layers=window_layers,
        page_tokens=page_tokens,
        chunk_tokens=24,
        context_tokens=1024,
    )
    loop = Loop(machine=m, new_token_ratio=0.05)
    roots = [[rng.randrange(VOCABULARY) for _ in range(60)] for _ in range(3)]
    asked = []
    for _ in range(40):
        prompt = rng.choice(roots)[: rng.randrange(60)]
        prompt += [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 30))]
        req = m.request(prompt, max_new=rng.randrange(1, 40))
        assert loop.submit(req)
        asked.append(req)
        for _ in range(rng.randrange(4)):
            if loop.waiting or loop.running or loop.chunked:
                loop.step()
                m.check_states()
                half_done = int(loop.chunked is not None)  # its snapshot is published next step
                live = len(loop.running) + half_done
                most = live + half_done if page_tokens == 1 else 2 * live
                assert m.held_states() <= most
                assert m.arena.core.audit() == []
    loop.run()
    assert all(req.finished() for req in asked)
    assert m.problems() == []
    m.tree.evict_until(lambda: False)
    assert m.arena.core.num_free_large_pages == m.plan.usable_large_pages
