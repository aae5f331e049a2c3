# SPDX-License-Identifier: Apache-2.0
"""What a running request keeps: all it can still read, and not much more."""

from __future__ import annotations

import numpy as np
import pytest
from sglang.srt.managers.schedule_batch import Req
from sink_window.policy import SinkWindow

from machine import Machine, make_kinds
from sglang_jenga.core.policies import Chunked, TokenPolicy, Window
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator

SPAN = 24
SINKS = 6
POLICIES = [
    Window(window_tokens=SPAN),
    Chunked(chunk_tokens=SPAN),
    SinkWindow(sink_tokens=SINKS, window_tokens=SPAN),
]
CASES = pytest.mark.parametrize(
    ("policy", "page_tokens", "cached"),
    [(d, p, c) for d in POLICIES for p in (1, 16) for c in (True, False)],
)


def make_machine(policy: TokenPolicy, page_tokens: int, cached: bool) -> Machine:
    return Machine(
        make_kinds(window_layers=5, policy=policy),
        large_pages=600 if page_tokens == 1 else 60,
        page_tokens=page_tokens,
        chunk_tokens=32,
        cached=cached,
    )


def live_positions(machine: Machine, req: Req) -> set[int]:
    """Positions of the request that still have a window slot."""
    assert isinstance(machine.arena, HybridArenaAllocator)
    slots = machine.arena.translation.host[machine.slots(req).numpy()]
    return set(np.flatnonzero(slots).tolist())


def read_by_next(policy: TokenPolicy, position: int) -> set[int]:
    """By the definition of the attention."""
    first = position // SPAN * SPAN if isinstance(policy, Chunked) else position - SPAN
    sinks = SINKS if isinstance(policy, SinkWindow) else 0
    return {p for p in range(position) if p < sinks or p >= first}


def most_kept(policy: TokenPolicy, page_tokens: int) -> int:
    """Whole pages of the span and of the sinks."""
    return SPAN + 2 * page_tokens + (SINKS + page_tokens if policy.head_tokens else 0)


@CASES
def test_a_decoding_request_keeps_what_its_next_token_reads(
    policy: TokenPolicy, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(policy, page_tokens, cached)
    req = machine.prefill(range(75), max_new=400, chunk=32)
    for position in range(75, 75 + 6 * SPAN):
        assert read_by_next(policy, position) <= live_positions(machine, req), position
        machine.decode([req])


@CASES
def test_it_holds_about_one_span_of_window_slots_however_long_it_gets(
    policy: TokenPolicy, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(policy, page_tokens, cached)
    req = machine.prefill(range(75), max_new=400, chunk=32)
    interval = machine.demand.slide_interval_tokens
    most = most_kept(policy, page_tokens) + interval
    if policy.head_tokens and cached:
        most += SPAN + page_tokens  # a prompt whose sinks are read stays pinned as a whole
    for _ in range(2 * (SPAN + interval)):
        machine.decode([req])
    for _ in range(4 * SPAN):
        machine.decode([req])
        machine.tree.evict_until(lambda: False)  # the prompt's window is no longer pinned
        assert len(live_positions(machine, req)) <= most
        assert machine.arena.used_slots(1) <= most


@CASES
def test_a_chunked_prefill_keeps_what_its_next_chunk_reads(
    policy: TokenPolicy, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(policy, page_tokens, cached)
    req = machine.request(range(200))
    machine.admit(req, tokens=32)
    machine.extend([req])
    while req.extend_end < 200:
        machine.stash(req)
        machine.tree.evict_until(lambda: False)
        kept = live_positions(machine, req)
        assert read_by_next(policy, req.prefix_len) <= kept
        assert len(kept) <= most_kept(policy, page_tokens)
        machine._set_end(req, 32)
        machine.extend([req])


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_finished_request_can_be_continued_from_its_end(
    policy: TokenPolicy, page_tokens: int
) -> None:
    """The whole conversation is a hit for the next turn, up to the last whole page."""
    for prompt_tokens, output_tokens in ((75, 3), (20, 100), (96, 1), (7, 41)):
        machine = make_machine(policy, page_tokens, True)
        req = machine.prefill(range(prompt_tokens), max_new=400, chunk=32)
        for _ in range(output_tokens):
            machine.decode([req])
        machine.finish(req)
        conversation = list(range(prompt_tokens)) + list(req.output_ids)[:output_tokens]
        assert machine.hit(conversation) == len(conversation) // page_tokens * page_tokens


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("policy", POLICIES)
def test_window_slots_given_back_leave_whole_large_pages_to_other_kinds(
    policy: TokenPolicy, page_tokens: int
) -> None:
    machine = make_machine(policy, page_tokens, False)
    req = machine.request(range(250))
    machine.admit(req)
    machine.extend([req])
    before = machine.arena.core.census()[1].large_pages
    machine.end_prefill(req)
    after = machine.arena.core.census()[1].large_pages
    per_large = machine.plan.kinds[1].slots_per_large_page
    assert after * per_large <= most_kept(policy, page_tokens) + 2 * per_large
    assert after < before // 2


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("policy", POLICIES[:2], ids=["window", "chunked"])
def test_a_prompts_window_is_pinned_only_where_the_answer_still_reads_it(
    policy: TokenPolicy, page_tokens: int
) -> None:
    machine = make_machine(policy, page_tokens, cached=True)
    prompt = range(96)
    req = machine.prefill(prompt, max_new=400, chunk=32)
    interval = machine.demand.slide_interval_tokens
    idle = max(interval, machine.demand.unpin_tokens)
    for position in range(96, 96 + 2 * SPAN):
        machine.decode([req])
        read = {p for p in read_by_next(policy, position) if p < len(prompt)}
        pinned = machine.tree.swa_protected_size()
        assert len(read) <= pinned <= len(read) + idle + 3 * page_tokens
    machine.finish(req)
    assert machine.tree.swa_protected_size() == 0 and not machine.problems()


def test_two_answers_to_one_prompt_pin_what_either_reads() -> None:
    machine = make_machine(POLICIES[0], 1, cached=True)
    slow, fast = machine.prefill(range(96)), machine.prefill(range(96))
    for _ in range(SPAN - 2):
        machine.decode([fast])
    assert read_by_next(POLICIES[0], 96) <= live_positions(machine, slow)
    machine.tree.evict_until(lambda: False)
    assert read_by_next(POLICIES[0], 96) <= live_positions(machine, slow)
    machine.finish(slow)
    machine.finish(fast)
    assert machine.tree.swa_protected_size() == 0 and not machine.problems()


def test_what_is_left_of_a_window_goes_first_once_nothing_can_continue_there() -> None:
    machine = make_machine(POLICIES[0], 1, cached=True)
    answering = machine.prefill(range(96), max_new=400)
    while machine.tree.swa_protected_size() == SPAN + 1:
        machine.decode([answering])
    machine.tree.evict_until(lambda: False)  # the part of its window that it left behind
    other = range(200, 200 + SPAN)  # no longer than a window: none of it is spare
    machine.finish(machine.prefill(other))
    whole = machine.hit(other)
    cached = machine.tree.swa_evictable_size()
    for _ in range(SPAN // 2):
        machine.decode([answering])
    assert machine.tree.swa_evictable_size() > cached, (
        "more of it is unpinned, later than the other"
    )
    machine.tree.evict_until(lambda: machine.tree.swa_evictable_size() <= cached)
    assert machine.tree.swa_evictable_size() == cached and machine.hit(other) == whole
    machine.finish(answering)
    assert not machine.problems()
