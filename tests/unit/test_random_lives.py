# SPDX-License-Identifier: Apache-2.0
"""Tree, allocator and policies together under random lives: nothing leaks, nothing is used after it
was freed, and what is cached is what a small model says may be cached.

The model knows which texts were ever published. Marks in the slots (:mod:`marked_machine`) catch
what a wrong slot would do to an answer; the audit after every step catches what is lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sglang.srt.managers.schedule_batch import Req
from sink_window.policy import SinkWindow

from machine import Machine, make_kinds
from marked_machine import MarkedMachine, MarkedStateMachine
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.explain import Eviction
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import caching_strategy, state_kinds

SPAN, CHUNK_TOKENS, MOST_RUNNING = 12, 24, 4
#: Texts that prompts are made of: they share beginnings, and continue each other.
TEXTS = [list(range(100 * i, 100 * i + 60)) for i in range(3)]


def _plain(policy: Any, page_tokens: int = 1) -> Callable[[], Machine]:
    kinds = make_kinds(window_layers=3, policy=policy) if policy else make_kinds()
    large_pages = (900 if policy else 300) // page_tokens
    return lambda: MarkedMachine(
        kinds, large_pages=large_pages, page_tokens=page_tokens, chunk_tokens=CHUNK_TOKENS
    )


def _states(policy: Any) -> Callable[[], Machine]:
    windows = {"window_layers": 2, "policy": policy} if policy else {}
    kinds = state_kinds(**windows)
    return lambda: MarkedStateMachine(kinds, large_pages=120, chunk_tokens=CHUNK_TOKENS)


SINKS = SinkWindow(sink_tokens=3, window_tokens=SPAN)
MACHINES = {
    "full": _plain(None),
    "window": _plain(Window(window_tokens=SPAN)),
    "window, pages of 4": _plain(Window(window_tokens=SPAN), 4),
    "chunked": _plain(Chunked(chunk_tokens=SPAN)),
    "sinks and window": _plain(SINKS),
    "sinks and window, pages of 4": _plain(SINKS, 4),
    "states": _states(None),
    "window and states": _states(Window(window_tokens=SPAN)),
}


class Churn(RuleBasedStateMachine):
    """Lives of requests in any order. Subclasses say on which machine."""

    make: Callable[[], Machine]

    def __init__(self) -> None:
        super().__init__()
        self.machine = type(self).make()
        self.half_done: list[Req] = []
        self.running: list[Req] = []
        self.published: list[list[int]] = []

    # ---- what the scheduler does -----------------------------------------------------------

    def _make_room(self, tokens: int, *, newcomer: bool) -> bool:
        arena = self.machine.arena
        demand = arena.demand_of(-(-tokens // self.machine.page_tokens) + 1, int(newcomer))
        return bool(arena.reclaim(self.machine.tree, demand, cause="a test asked"))

    def _computed(self, req: Req) -> list[int]:
        return [*req.origin_input_ids, *req.output_ids]

    def _after_chunk(self, req: Req) -> None:
        if req.extend_end < len(req.full_untruncated_fill_ids):
            self.machine.stash(req)
            self.half_done.append(req)
        else:
            self.machine.end_prefill(req)
            self.running.append(req)
        self.published.append(self._computed(req))

    def _start(self, req: Req) -> None:
        self.machine.admit(req, tokens=CHUNK_TOKENS)
        # Pinned first, as a server does: making room must not take what was matched.
        if not self._make_room(req.extend_end - req.prefix_len, newcomer=True):
            self.machine.tree.unlock(req.lock)
            req.lock = None
            req.kv.mamba_cow_src_index = None
            return
        self.machine.extend([req])
        self._after_chunk(req)

    @precondition(lambda self: len(self.running) + len(self.half_done) < MOST_RUNNING)
    @rule(
        text=st.sampled_from(TEXTS),
        shared=st.integers(0, 60),
        own=st.lists(st.integers(500, 520), min_size=1, max_size=20),
    )
    def start(self, text: list[int], shared: int, own: list[int]) -> None:
        self._start(self.machine.request([*text[:shared], *own], max_new=200))

    @precondition(
        lambda self: self.published and len(self.running) + len(self.half_done) < MOST_RUNNING
    )
    @rule(data=st.data())
    def continue_a_conversation(self, data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(self.published[-6:]))[:150]
        self._start(self.machine.request([*before, 900], max_new=200))

    @precondition(lambda self: self.half_done)
    @rule()
    def next_chunk(self) -> None:
        req = self.half_done.pop(0)
        left = len(req.full_untruncated_fill_ids) - req.prefix_len
        if not self._make_room(min(left, CHUNK_TOKENS), newcomer=False):
            self.half_done.insert(0, req)
            return
        self.machine._set_end(req, CHUNK_TOKENS)
        self.machine.extend([req])
        self._after_chunk(req)

    @precondition(lambda self: self.running)
    @rule(steps=st.integers(1, 2 * SPAN))
    def decode(self, steps: int) -> None:
        for _ in range(steps):
            batch = self.machine.batch(self.running, _decode_mode())
            if not batch.check_decode_mem() or self.running[0].seqlen > 300:
                return
            self.machine.decode(self.running)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, MOST_RUNNING))
    def finish(self, index: int) -> None:
        req = self.running.pop(index % len(self.running))
        self.published.append(self._computed(req))
        self.machine.finish(req)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, MOST_RUNNING), again=st.booleans())
    def retract(self, index: int, again: bool) -> None:
        req = self.running.pop(index % len(self.running))
        self.machine.retract(req)
        if again:
            self._start(req)

    @rule(text=st.sampled_from(TEXTS), shared=st.integers(0, 60))
    def look(self, text: list[int], shared: int) -> None:
        """A waiting request is matched; it may cut nodes, it holds nothing."""
        hit = self.machine.hit(text[:shared])
        assert hit <= max((_common(text[:shared], done) for done in self.published), default=0)

    @rule(pieces=st.integers(1, 12))
    def evict(self, pieces: int) -> None:
        tree = self.machine.tree
        tree.evicting_for = Eviction(cause="a test asked", starving_kind="full")
        for _ in range(pieces):
            if not tree._evict_one({ct: 0 for ct in tree.tree_components}):
                break

    @precondition(lambda self: not self.running and not self.half_done)
    @rule()
    def flush(self) -> None:
        self.machine.flush()
        self.published.clear()

    # ---- what holds after every step -------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        machine = self.machine
        assert machine.arena.core.audit() == []
        alive = [*self.running, *self.half_done]
        for kind in machine.arena.kinds:
            held = machine.arena.used_slots(kind) - machine.tree_tokens(kind)
            assert held >= 0, f"kind {kind}: the tree has more slots than are in use"
            assert alive or held == 0, f"kind {kind}: {held} slots held by nobody"

    def teardown(self) -> None:
        for req in [*self.running, *self.half_done]:
            self.machine.retract(req)
        assert self.machine.problems() == []
        self.machine.tree.evict_until(lambda: False)
        free = self.machine.arena.core.num_free_large_pages
        assert free == self.machine.plan.usable_large_pages, "drained, but large pages are missing"


def _decode_mode() -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return ForwardMode.DECODE


def _common(one: list[int], other: list[int]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY):
        yield


def run_churn(churn: type[Churn], make: Callable[[], Machine]) -> None:
    """Random lives on machines that ``make`` makes; CHURN_EXAMPLES says how many."""
    machine = type("OneChurn", (churn,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("CHURN_EXAMPLES", "12")),
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("name", MACHINES)
def test_random_lives_leak_nothing_and_read_only_what_was_written_for_them(name: str) -> None:
    run_churn(Churn, MACHINES[name])
