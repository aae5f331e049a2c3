# SPDX-License-Identifier: Apache-2.0
"""What a running request keeps: all it can still read, and not much more."""

from __future__ import annotations

import numpy as np
import pytest
from sglang.srt.managers.schedule_batch import Req

from machine import Machine, make_kinds
from sglang_jenga.core.kinds import Dependency
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator

SPAN = 24
KINDS = {
    Dependency.WINDOW: make_kinds(window_layers=5, span=SPAN),
    Dependency.CHUNKED: make_kinds(window_layers=3, span=SPAN, chunked=True),
}
CASES = pytest.mark.parametrize(
    ("dependency", "page_tokens", "cached"),
    [(d, p, c) for d in KINDS for p in (1, 16) for c in (True, False)],
)


def make_machine(dependency: Dependency, page_tokens: int, cached: bool) -> Machine:
    return Machine(
        KINDS[dependency],
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


def read_by_next(dependency: Dependency, position: int) -> set[int]:
    first = position - SPAN if dependency is Dependency.WINDOW else position // SPAN * SPAN
    return set(range(max(0, first), position))


@CASES
def test_a_decoding_request_keeps_what_its_next_token_reads(
    dependency: Dependency, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(dependency, page_tokens, cached)
    req = machine.prefill(range(75), max_new=400, chunk=32)
    for position in range(75, 75 + 6 * SPAN):
        assert read_by_next(dependency, position) <= live_positions(machine, req), position
        machine.decode([req])


@CASES
def test_it_holds_about_one_span_of_window_slots_however_long_it_gets(
    dependency: Dependency, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(dependency, page_tokens, cached)
    req = machine.prefill(range(75), max_new=400, chunk=32)
    interval = machine.demand.slide_interval_tokens(machine.plan)
    for _ in range(2 * (SPAN + interval)):
        machine.decode([req])
    for _ in range(4 * SPAN):
        machine.decode([req])
        machine.tree.evict_until(lambda: False)  # the prompt's window is no longer pinned
        assert len(live_positions(machine, req)) <= SPAN + interval + 2 * page_tokens
        assert machine.arena.used_slots(1) <= SPAN + interval + 2 * page_tokens


@CASES
def test_a_chunked_prefill_keeps_what_its_next_chunk_reads(
    dependency: Dependency, page_tokens: int, cached: bool
) -> None:
    machine = make_machine(dependency, page_tokens, cached)
    req = machine.request(range(200))
    machine.admit(req, tokens=32)
    machine.extend([req])
    while req.extend_end < 200:
        machine.stash(req)
        machine.tree.evict_until(lambda: False)
        kept = live_positions(machine, req)
        assert read_by_next(dependency, req.prefix_len) <= kept
        assert len(kept) <= SPAN + 2 * page_tokens
        machine._set_end(req, 32)
        machine.extend([req])


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("dependency", list(KINDS))
def test_a_finished_request_can_be_continued_from_its_end(
    dependency: Dependency, page_tokens: int
) -> None:
    """The whole conversation is a hit for the next turn, up to the last whole page."""
    for prompt_tokens, output_tokens in ((75, 3), (20, 100), (96, 1), (7, 41)):
        machine = make_machine(dependency, page_tokens, True)
        req = machine.prefill(range(prompt_tokens), max_new=400, chunk=32)
        for _ in range(output_tokens):
            machine.decode([req])
        machine.finish(req)
        conversation = list(range(prompt_tokens)) + list(req.output_ids)[:output_tokens]
        assert machine.hit(conversation) == len(conversation) // page_tokens * page_tokens


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("dependency", list(KINDS))
def test_window_slots_given_back_leave_whole_large_pages_to_other_kinds(
    dependency: Dependency, page_tokens: int
) -> None:
    machine = make_machine(dependency, page_tokens, False)
    req = machine.request(range(250))
    machine.admit(req)
    machine.extend([req])
    before = machine.arena.core.census()[1].large_pages
    machine.end_prefill(req)
    after = machine.arena.core.census()[1].large_pages
    per_large = machine.plan.kinds[1].slots_per_large_page
    assert after * per_large <= SPAN + 2 * page_tokens + 2 * per_large
    assert after < before // 2
