# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions that outgrow the arena: somebody is always served, and served right.

The churn drives SGLang's own sessions, requests and admission over the real pools, on machines
whose slots carry marks: an answer that was computed from somebody else's memory is caught where it
reads it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.model_executor.forward_batch_info import ForwardMode

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


def small(policy: Any = None, *, page_tokens: int = 1, large_pages: int = 0, **more: Any) -> Machine:
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
    with caching_strategy(LAZY):
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
        self.longest = machine.demand.longest_request_tokens(machine.plan)

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
        assert list(req.origin_input_ids) == [*self.said[name], *more], "history was lost or made up"
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
        idle = [name for name in self.said if name not in {self.session_of(r) for r in self.in_flight.values()}]
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
