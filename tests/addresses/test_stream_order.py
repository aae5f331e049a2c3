# SPDX-License-Identifier: Apache-2.0
"""No forward sees a slot or a translation of a later step, however late it runs.

Two rules hold it (docs/design.md, section 5). Each is tested by itself, and that the other would
not do: tables are read before the scheduler may change them, and only forwards touch the arena.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.scheduler import Scheduler

from arena_guard import ArenaGuard
from lives import live
from machine import Machine, make_kinds
from overlap import OverlapLoop
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds

SPAN = 12
POLICIES = {
    "full": None,
    "window": Window(window_tokens=SPAN),
    "chunked": Chunked(chunk_tokens=SPAN),
}


def overlapped(policy: str, page_tokens: int, seed: int, *, fenced: bool = True) -> OverlapLoop:
    """Requests that share beginnings, on an arena where they evict and retract each other."""
    found = POLICIES[policy]
    kinds = make_kinds(window_layers=3, policy=found) if found else make_kinds()
    machine = Machine(
        kinds,
        large_pages=(300 if found else 90) // page_tokens + 8,
        page_tokens=page_tokens,
        chunk_tokens=24,
        mirrored=True,
    )
    loop = OverlapLoop(machine=machine, new_token_ratio=0.05, fenced=fenced)
    order = random.Random(seed)
    texts = [[100 * text + i for i in range(60)] for text in range(3)]
    for _ in range(40):
        shared = order.choice(texts)[: order.randrange(60)]
        own = [order.randrange(500, 520) for _ in range(order.randrange(1, 30))]
        loop.submit(machine.request([*shared, *own], max_new=order.randrange(1, 3 * SPAN)))
    loop.run()
    return loop


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_late_forward_reads_its_own_slots(policy: str, page_tokens: int, seed: int) -> None:
    loop = overlapped(policy, page_tokens, seed)
    assert loop.device.wrong == []
    assert loop.most_in_flight == 2, "a forward was in flight while the next one was made"
    assert loop.device.read_slots > 10_000
    assert loop.machine.problems() == []


def test_the_arena_of_these_tests_is_small_enough() -> None:
    """Otherwise no slot changes hands and the tests above could not fail."""
    loops = [overlapped("window", 1, seed) for seed in range(3)]
    assert sum(loop.retractions for loop in loops) > 0


def test_without_the_barrier_forwards_would_read_slots_of_later_steps() -> None:
    """The control: tables that a forward reads when it runs have changed by then."""
    wrong = [overlapped("window", 1, seed, fenced=False).device.wrong for seed in range(3)]
    assert any(wrong)


# ---- the barrier ------------------------------------------------------------------------------


class Stream:
    """Notes what it is told to wait for."""

    def __init__(self) -> None:
        self.waits: list[Any] = []

    def wait_event(self, event: object) -> None:
        self.waits.append(event)

    def wait_stream(self, stream: object) -> None:
        self.waits.append(stream)


def scheduler(event: object | None) -> Any:
    """What the barrier looks at; ``event``: the end of the last forward's reads, if it says."""
    runner = SimpleNamespace(shared_read_done_event=event)
    return SimpleNamespace(
        _war_barrier_enabled=True,
        model_worker=SimpleNamespace(last_shared_read_runner=runner),
        schedule_stream=Stream(),
        forward_stream=Stream(),
    )


def test_sglang_holds_the_scheduler_back_until_a_forward_has_read_the_tables() -> None:
    told = scheduler("reads are done")
    Scheduler._apply_war_barrier(told)
    assert told.schedule_stream.waits == ["reads are done"]
    untold = scheduler(None)
    Scheduler._apply_war_barrier(untold)
    assert untold.schedule_stream.waits == [untold.forward_stream], "the whole forward, then"


class Ended(Exception):
    """The scheduler's loop has gone round often enough."""


def test_sglang_does_so_after_each_launch_before_anything_else() -> None:
    """Its own overlapped loop, with what it calls replaced by notes."""
    notes: list[str] = []

    def note(name: str, result: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            notes.append(name)
            if len(notes) > 40:
                raise Ended
            return result

        return call

    batch = SimpleNamespace(copy=lambda: "a batch")
    me = SimpleNamespace(
        gracefully_exit=False,
        _engine_paused=False,
        enable_unified_memory=False,
        is_generation=True,
        running_batch=batch,
        last_batch=None,
        ingest_requests=note("receive"),
        get_next_batch_to_run=note(
            "tables", SimpleNamespace(running_batch=batch, batch_to_run=batch)
        ),
        is_disable_overlap_for_batch=lambda *args, **kwargs: False,
        run_batch=note("launch"),
        _apply_war_barrier=note("barrier"),
        process_batch_result=note("frees"),
        launch_batch_sample_if_needed=note("sample"),
        on_idle=note("idle"),
    )
    with pytest.raises(Ended):
        Scheduler.event_loop_overlap(me)
    launches = [i for i, name in enumerate(notes) if name == "launch"]
    assert len(launches) > 3 and "frees" in notes
    assert {notes[i + 1] for i in launches[:-1]} == {"barrier"}


# ---- only forwards touch the arena ------------------------------------------------------------


class _ForwardsOnly(ArenaGuard):
    """Raises where the arena's bytes are read or written outside of a forward."""

    is_forward = False
    in_forwards = 0

    def check(self, func: Any, tensors: list[torch.Tensor]) -> None:
        assert self.is_forward, f"{func} touches the arena outside of a forward"
        self.in_forwards += 1


KINDS = {
    "full": make_kinds(),
    "window": make_kinds(window_layers=5, policy=Window(window_tokens=32)),
    "states": state_kinds(),
    "window and states": state_kinds(window_layers=5, policy=Window(window_tokens=32)),
}


def guarded(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, _ForwardsOnly]:
    """A machine, and a guard that knows when it is in a forward."""
    kinds = KINDS[kind]
    base = Machine if kinds.states is None else StateMachine
    machine = base(kinds, large_pages=600, chunk_tokens=64)
    pool = machine.arena.get_kvcache()
    memory = getattr(pool, "full_kv_pool", pool).k_buffer[0]
    guard = _ForwardsOnly(memory)
    for name in ("forward_extend", "forward_decode"):
        forward = getattr(machine, name)

        def within(batch: Any, forward: Any = forward) -> None:
            guard.is_forward = True
            forward(batch)
            guard.is_forward = False

        monkeypatch.setattr(machine, name, within)
    return machine, guard


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_forwards_touch_the_arena(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So slots change hands in the order of forwards, whatever the scheduler's stream is doing."""
    with caching_strategy(LAZY):
        machine, guard = guarded(kind, monkeypatch)
        with guard:
            steps = list(live(machine, decode_tokens=96))
    assert len(steps) > 10
    if machine.kinds.states is not None:
        assert guard.in_forwards > 0, "states are read and written in forwards"


def test_a_copy_outside_of_a_forward_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control. (``no_buffer`` copies so, and SGLang has no overlap with it.)"""
    with caching_strategy(LAZY):
        machine, guard = guarded("states", monkeypatch)
        pool = machine.rows.mamba_pool
        with guard, pytest.raises(AssertionError, match="outside of a forward"):
            pool.copy_from(torch.tensor([1]), torch.tensor([2]))
