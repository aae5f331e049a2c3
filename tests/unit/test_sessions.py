# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions that outgrow the arena: somebody is always served, and served right.

The churn drives SGLang's own sessions, requests and admission over the real pools, on machines
whose slots carry marks: an answer that was computed from somebody else's memory is caught where it
reads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_parallel

from conversations import Conversations
from machine import VOCABULARY, Machine, make_kinds
from marked_machine import MarkedMachine, MarkedStateMachine
from scheduler import Loop
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.report import counts
from sglang_jenga.sglang_ext.starvation import describe_holders
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import caching_strategy, state_kinds

SPAN, CHUNK_TOKENS = 12, 24
#: No request of the churn takes more turns than this to be answered when it runs alone; with
#: the others in the way, each may have to be computed again once for each of them.
MOST_TURNS = 4_000


def small(
    policy: Any = None, *, page_tokens: int = 1, large_pages: int = 0, **more: Any
) -> Machine:
    kinds = make_kinds(window_layers=3, policy=policy) if policy else make_kinds()
    pages = large_pages or (500 if policy else 200) // page_tokens
    return MarkedMachine(
        kinds, large_pages=pages, page_tokens=page_tokens, chunk_tokens=CHUNK_TOKENS, **more
    )


def with_states(policy: Any = None, **more: Any) -> Machine:
    windows = {"window_layers": 2, "policy": policy} if policy else {}
    return MarkedStateMachine(
        state_kinds(**windows), large_pages=60, chunk_tokens=CHUNK_TOKENS, **more
    )


WINDOW = Window(window_tokens=SPAN)
MACHINES: dict[str, Callable[..., Machine]] = {
    "full": small,
    "window": lambda **more: small(WINDOW, **more),
    "window, pages of 4": lambda **more: small(WINDOW, page_tokens=4, **more),
    "full, pages of 4": lambda **more: small(page_tokens=4, **more),
    "chunked": lambda **more: small(Chunked(chunk_tokens=SPAN), **more),
    "states": with_states,
    "window and states": lambda **more: with_states(WINDOW, **more),
    "no cache": lambda **more: small(WINDOW, cached=False, **more),
}


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY), get_parallel().override(tp_rank=0):
        yield


def answer(origin: list[int], num_tokens: int) -> list[int]:
    """What the made-up model says to a prompt."""
    told: list[int] = []
    for _ in range(num_tokens):
        last = told[-1] if told else sum(origin)
        told.append((7 * last + len(origin) + len(told)) % VOCABULARY)
    return told


class Clients:
    """Conversations and single requests, in any order, and what each must be answered."""

    def __init__(self, machine: Machine, seed: int, *, ratio: float = 0.1) -> None:
        self.machine = machine
        self.rng = random.Random(seed)
        self.loop = Loop(machine=machine, new_token_ratio=ratio, may_give_up=True)
        self.sessions = Conversations(machine)
        self.said: dict[str, list[int]] = {}
        self.in_flight: dict[str, Req] = {}
        self.expected: dict[str, list[int]] = {}
        self.names = iter(range(10**6))
        self.turns_since_answer = 0
        self.longest = machine.demand.longest_request_tokens

    def tokens(self, most: int) -> list[int]:
        start = self.rng.choice((100, 200, 300))
        shared = list(range(start, start + self.rng.randrange(0, most)))
        return [*shared, *(self.rng.randrange(400, 900) for _ in range(self.rng.randrange(1, 9)))]

    def submit(self, req: Req, *, session: str | None) -> None:
        self.expected[req.rid] = list(req.origin_input_ids)
        if not self.loop.submit(req):  # longer than the arena serves: the client is told
            if session is not None:
                req.session.abort_req()
                self.hang_up(session)
        else:
            self.in_flight[req.rid] = req

    def single(self) -> None:
        self.submit(
            self.machine.request(self.tokens(40), max_new=self.rng.randrange(1, 30)), session=None
        )

    def say(self, name: str) -> None:
        busy = {r.session.session_id for r in self.in_flight.values() if r.session is not None}
        if name in busy:
            return
        more = self.tokens(40)
        rid = f"{name}.{next(self.names)}"
        req = self.sessions.turn(name, more, max_new=self.rng.randrange(1, 30), rid=rid)
        assert list(req.origin_input_ids) == [*self.said[name], *more], (
            "history was lost or made up"
        )
        self.submit(req, session=name)

    def open(self) -> None:
        name = self.sessions.open(f"s{next(self.names)}")
        self.said[name] = []
        self.say(name)

    def hang_up(self, name: str) -> None:
        self.sessions.close(name)
        self.said.pop(name, None)

    def step(self) -> None:
        self.loop.step()
        done = [r for r in self.in_flight.values() if r.finished() or r.rid in self.loop.errors]
        self.turns_since_answer = 0 if done else self.turns_since_answer + 1
        assert self.turns_since_answer < MOST_TURNS, self.loop._state()
        for req in done:
            del self.in_flight[req.rid]
            origin, name = self.expected[req.rid], self.session_of(req)
            if req.rid in self.loop.errors:
                continue
            assert list(req.output_ids) == answer(origin, len(req.output_ids)), req.rid
            if name in self.said:
                self.said[name] = [*origin, *req.output_ids]
        alive = [*self.loop.running, *([self.loop.chunked] if self.loop.chunked else [])]
        assert self.sessions.problems(alive) == []

    def session_of(self, req: Req) -> str | None:
        return req.rid.split(".")[0] if "." in req.rid else None

    def act(self) -> None:
        """Something a client does, or a scheduler."""
        what = self.rng.random()
        idle = [
            name
            for name in self.said
            if name not in {self.session_of(r) for r in self.in_flight.values()}
        ]
        if what < 0.15:
            self.single()
        elif what < 0.25 and len(self.said) < 12:
            self.open()
        elif what < 0.7 and idle:
            self.say(self.rng.choice(idle))
        elif what < 0.73 and idle:
            self.hang_up(self.rng.choice(idle))
        elif what < 0.78 and len(self.loop.running) > 1:
            batch = self.machine.batch(self.loop.running, ForwardMode.DECODE)
            retracted, _, aborted = batch.retract_decode()
            assert not aborted
            self.loop.running = list(batch.reqs)
            self.loop.waiting += retracted
        elif what < 0.80 and self.loop.waiting:
            self.abandon(self.rng.choice(self.loop.waiting))

    def abandon(self, req: Req) -> None:
        """A client gives up while its request waits, as ``Scheduler.abort_request`` does it."""
        self.loop.waiting.remove(req)
        del self.in_flight[req.rid]
        if req.session is not None:
            req.session.abort_req()

    def work(self) -> bool:
        return bool(self.loop.waiting or self.loop.running or self.loop.chunked)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MACHINES)
def test_sessions_that_outgrow_the_arena_stop_nobody(name: str, seed: int) -> None:
    m = MACHINES[name]()
    clients = Clients(m, seed)
    for _ in range(250):
        clients.act()
        if clients.work():
            clients.step()
    while clients.work():
        clients.step()
    assert m.tree.session.evicted_records > 1, "the sessions fitted: nothing was tested"
    for session in list(clients.said):
        clients.hang_up(session)
    assert m.problems() == []
    m.tree.evict_until(lambda: False)
    assert m.arena.core.num_free_large_pages == m.plan.usable_large_pages


# ---- one rule at a time -----------------------------------------------------------------------


def turn(
    loop: Loop, sessions: Conversations, name: str, tokens: list[int], max_new: int = 4
) -> Req:
    """One turn of a session, answered."""
    req = sessions.turn(name, tokens, max_new=max_new, rid=f"{name}.{len(loop.log)}")
    assert loop.submit(req)
    loop.run(steps=500)
    assert req.finished()
    return req


def talk(machine: Machine) -> tuple[Loop, Conversations]:
    return Loop(machine=machine), Conversations(machine)


def text(i: int, length: int = 40) -> list[int]:
    return list(range(50 * i, 50 * i + length))


def test_the_session_and_the_cached_prompt_that_were_used_longest_ago_go_first() -> None:
    m = small(large_pages=221)
    loop, sessions = talk(m)
    for i, name in enumerate(("old", "young")):
        turn(loop, sessions, sessions.open(name), text(i))
        m.finish(m.prefill(text(i + 2), chunk=CHUNK_TOKENS))
    turn(loop, sessions, "old", [7, 8, 9])  # used again: "young" is the oldest of all now
    assert m.tree.session.num_idle == 2
    demand = m.arena.core.num_free_large_pages + len(text(2)) + 2
    assert m.arena.reclaim(m.tree, m.arena.demand_of(demand))
    assert set(m.tree.session.slots) == {"old"}
    assert m.hit(text(2)) == 0 and m.hit(text(3)) == len(text(3))
    assert turn(loop, sessions, "old", [5]).num_matched_prefix_tokens > 40, "its memory is there"
    again = turn(loop, sessions, "young", [5])
    assert list(again.output_ids) == answer(list(again.origin_input_ids), 4)


def test_decoding_takes_the_record_of_a_turn_that_waits_before_it_retracts() -> None:
    m = small(large_pages=100)
    loop, sessions = talk(m)
    turn(loop, sessions, sessions.open("s"), text(0))
    waiting = sessions.turn("s", [5, 6], max_new=2, rid="waits")
    m.match(waiting)
    assert waiting.kv is m.tree.session.slots["s"].kv, "it has borrowed the record"
    running = m.prefill(text(4, 20), max_new=60, chunk=CHUNK_TOKENS)
    for _ in range(60):
        m.decode([running])  # asserts that nobody would be retracted
    assert not m.tree.session.slots and not waiting.kv.holds_kv
    assert not waiting.kv.kv_allocated_len, "the request that had borrowed it starts afresh"
    m.finish(running)
    assert loop.submit(waiting)
    loop.run(steps=100)
    assert list(waiting.output_ids) == answer(list(waiting.origin_input_ids), 2)


@pytest.mark.parametrize("name", ["full", "states"])
def test_sessions_that_hold_every_request_row_stop_nobody(name: str) -> None:
    m = MACHINES[name](rows=4)
    loop, sessions = talk(m)
    for i in range(9):
        turn(loop, sessions, sessions.open(f"s{i}"), text(i, 3), max_new=1)
    assert m.tree.session.num_idle == m.rows.size == 4 and not m.rows.free_slots
    assert m.rows.available_size() == 4
    single = m.request(text(9, 5), max_new=2)
    assert loop.submit(single)
    loop.run(steps=20)
    assert single.finished() and sessions.problems([]) == []
    assert turn(loop, sessions, "s0", [3]).finished(), "a turn without a row too"


def test_a_retracted_turn_gives_back_what_its_session_held() -> None:
    m = small(WINDOW)
    loop, sessions = talk(m)
    first = turn(loop, sessions, sessions.open("s"), text(0))
    req = sessions.turn("s", [5, 6], max_new=9, rid="second")
    assert loop.submit(req)
    loop.step()
    m.retract(req)
    loop.running.clear()
    assert not m.tree.session.slots and m.problems() == []
    session = sessions.controller.get("s")
    assert list(session.req_nodes) == [first.rid], "it is not the session's last turn"
    loop.waiting.append(req)
    loop.run(steps=100)
    assert list(req.output_ids) == answer(list(req.origin_input_ids), 9)


def test_a_request_that_cannot_fit_gets_an_error_that_names_the_holders() -> None:
    m = small(large_pages=60)
    taken = m.arena.core.take(0, 50)  # somebody who never gives way
    loop = Loop(machine=m, may_give_up=True)
    req = m.request(text(0), max_new=4)
    loop.waiting.append(req)
    loop.run(steps=20)
    assert "full: " in loop.errors[req.rid] and "slots held" in loop.errors[req.rid]
    m.arena.core.free(0, taken)
    assert m.problems() == []


@pytest.mark.parametrize("is_freed", [True, False])
def test_a_half_done_prompt_that_is_alone_and_cannot_go_on_starts_again_once(
    is_freed: bool,
) -> None:
    m = small(large_pages=101)
    loop = Loop(machine=m, may_give_up=True)
    req = m.request(text(0, 90), max_new=2)
    assert loop.submit(req)
    loop.step()
    assert loop.chunked is req
    taken = m.arena.core.take(0, m.arena.core.num_available(0))  # somebody who never gives way
    loop.step()
    assert req.retraction_count == 1 and not loop.errors, "it has started again"
    if is_freed:
        m.arena.core.free(0, taken)
        loop.run(steps=100)
        assert list(req.output_ids) == answer(text(0, 90), 2)
    else:
        loop.run(steps=5)
        assert "slots held" in loop.errors[req.rid], "it got no further: the client is told"
        m.arena.core.free(0, taken)
    assert m.problems() == []


def test_what_sessions_hold_between_turns_is_reported_as_theirs() -> None:
    m = small(WINDOW)
    loop, sessions = talk(m)
    turn(loop, sessions, sessions.open("s"), text(0))
    found = counts(m.arena, m.tree, longest_tokens=1)
    assert found["sessions"] == {"idle": 1, "evicted": 0, "evicted_tokens": 0}
    assert found["running_requests"] == 0
    for kind in found["kinds"]:
        assert kind["slots_sessions"] > 0 == kind["slots_held"]
    assert "held by 1 idle session" in describe_holders(m.arena, m.tree)
    sessions.close("s")
    found = counts(m.arena, m.tree, longest_tokens=1)
    assert not any(kind["slots_sessions"] for kind in found["kinds"])
    assert "session" not in describe_holders(m.arena, m.tree)
