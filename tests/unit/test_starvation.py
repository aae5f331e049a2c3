# SPDX-License-Identifier: Apache-2.0
"""A request that goes without bytes is counted, and the log names the kind and the holders."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from machine import Machine, make_kinds
from scheduler import Loop
from sglang_jenga.core.policies import Window
from sglang_jenga.core.request_digest import request_digest
from sglang_jenga.sglang_ext import starvation
from sglang_jenga.sglang_ext.retraction import retract_the_last_too
from sglang_jenga.sglang_ext.starvation import NO_KIND


def windowed(**kwargs: Any) -> Machine:
    """A window slot is ten times a full one unless ``full_layers`` says otherwise."""
    layers = {key: kwargs.pop(key) for key in ("full_layers", "window_layers") if key in kwargs}
    kinds = make_kinds(
        **{"full_layers": 1, "window_layers": 10, **layers}, policy=Window(window_tokens=24)
    )
    return Machine(kinds, **{"large_pages": 200, "chunk_tokens": 32, **kwargs})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=starvation.__name__)
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == starvation.__name__]


def refusals(log: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in lines(log) if line.startswith("Jenga: a request waits for memory, ")]


def crowd(m: Machine, number: int = 12, *, max_new: int = 30) -> Loop:
    loop = Loop(machine=m)
    for i in range(number):
        assert loop.submit(m.request(list(range(100 * i, 100 * i + 40)), max_new=max_new))
    return loop


def test_a_refusal_names_the_kind_whose_bytes_are_missing(log: pytest.LogCaptureFixture) -> None:
    windows = windowed()
    crowd(windows).run()
    assert windows.arena.starvation.waits["window"] > windows.arena.starvation.waits["full"]
    text = windowed(full_layers=10, window_layers=1, large_pages=500)
    crowd(text, 30).run()
    assert text.arena.starvation.waits["full"] > text.arena.starvation.waits["window"] == 0
    first, second = refusals(log)
    assert "starving kind: window (" in first and "starving kind: full (" in second


def test_the_line_says_who_holds_the_bytes(log: pytest.LogCaptureFixture) -> None:
    m = windowed()
    loop = crowd(m)
    while not m.arena.starvation.waits.total():
        before = starvation.describe_holders(m.arena, m.tree)
        loop.step()
    (line,) = refusals(log)
    for part in ("full: ", "window: ", " slots held, ", " cached", "of 199 large pages free"):
        assert part in line
    assert "small pages more needed" in line and before.count(";") == line.count(";")


def test_refusals_are_all_counted_and_seldom_logged(log: pytest.LogCaptureFixture) -> None:
    m = windowed()
    crowd(m, 30).run()
    assert m.arena.starvation.waits.total() > 5 and len(refusals(log)) == 1


def test_a_request_is_delayed_once_however_often_it_is_refused() -> None:
    m = windowed()
    loop = crowd(m, 12)
    loop.run()
    counted = m.arena.starvation
    assert 0 < counted.delayed_requests.total() <= 12 + loop.retractions
    assert counted.waits.total() >= counted.delayed_requests.total()
    m.arena.starvation.note_refusal(m.arena, m.tree, [3, 3], "x")
    before = counted.delayed_requests.total()
    m.arena.starvation.note_refusal(m.arena, m.tree, [3, 3], "x")
    assert counted.delayed_requests.total() == before
    counted.note_start("x")
    m.arena.starvation.note_refusal(m.arena, m.tree, [3, 3], "x")
    assert counted.delayed_requests.total() == before + 1, "it waits again"


def test_nobody_waits_in_a_roomy_arena() -> None:
    m = windowed(large_pages=3000)
    crowd(m).run()
    counted = m.arena.starvation
    assert not counted.waits.total() and not counted.retractions.total()
    assert counted.realised_running_cap == 0


def test_the_realised_cap_is_what_ran_when_one_was_refused() -> None:
    m = windowed()
    loop = crowd(m)
    while not m.arena.starvation.waits.total():
        loop.step()
    held = (m.arena.row_tokens > 0).sum()
    assert 0 < m.arena.starvation.realised_running_cap <= held < 12


def test_retractions_are_counted_by_the_kind_that_ran_out_and_logged_with_the_holders(
    log: pytest.LogCaptureFixture,
) -> None:
    m = Machine(make_kinds(), large_pages=61, context_tokens=128)
    loop = Loop(machine=m, new_token_ratio=0.0)
    for i in range(6):
        assert loop.submit(m.request(list(range(100 * i, 100 * i + 10)), max_new=30))
    loop.run()
    assert loop.retractions > 0
    assert m.arena.starvation.retractions == {"full": loop.retractions}
    told = [line for line in lines(log) if "retracted" in line]
    assert sum(int(line.split()[1]) for line in told) == loop.retractions
    for line in told:
        assert "starving kind: full (" in line and " slots held, " in line


def test_a_forced_retraction_starves_no_kind(log: pytest.LogCaptureFixture) -> None:
    m = windowed(large_pages=2000)
    reqs = [m.prefill(list(range(100 * i, 100 * i + 10))) for i in range(3)]
    retracted, _, aborted = m.batch(reqs, ForwardMode.DECODE).retract_decode()
    assert retracted and not aborted
    assert m.arena.starvation.retractions[NO_KIND] == len(retracted)
    assert "no kind starved" in lines(log)[0]


def test_the_last_request_that_goes_back_to_the_queue_is_told_from_one_that_is_given_up(
    log: pytest.LogCaptureFixture,
) -> None:
    """SGLang's own line calls both an abort."""
    m = windowed()
    req = m.request([1, 2, 3], name="\x1b]0;last")
    digest = request_digest(req.rid)
    batch = m.batch([], ForwardMode.DECODE)
    m.arena.starvation.note_shortage(m.arena, m.tree, [5, 5])

    def out_of_memory() -> Any:
        req.to_finish = FINISH_ABORT("Out of memory even after retracting all other requests ...")
        return [], 0.5, [req]

    assert retract_the_last_too(out_of_memory(), batch)[0] == [req]
    first, second = lines(log)
    assert "1 request retracted, starving kind: window" in first
    assert second == f"Jenga: request {digest} is not aborted, it goes back to the queue"
    log.clear()
    m.arena.starvation.note_shortage(m.arena, m.tree, [5, 5])
    assert retract_the_last_too(out_of_memory(), batch)[2] == [req]
    (line,) = lines(log)
    assert line.startswith(
        f"Jenga: out of memory, request {digest} aborted, starving kind: window ("
    )
    assert "large pages free" in line
    assert m.arena.starvation.retractions.total() == 1


def test_sglangs_out_of_memory_dump_says_what_each_kind_holds() -> None:
    m = windowed()
    m.prefill(list(range(40)), chunk=32)
    text = m.arena.debug_print()
    for kind in ("full", "window"):
        assert f"{kind} " in text
    assert "large (" in text and "free; held by" in text and "asked for" not in text
