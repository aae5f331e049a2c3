# SPDX-License-Identifier: Apache-2.0
"""Claims about the work the allocator does, counted and not timed.

``bytecodes(call)`` counts the Python instructions a call executes, whatever their speed: a loop
over rows or pages in Python shows as a count that grows with them, work inside numpy does not.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reference import FULL, WINDOW, make_allocator
from sglang_jenga.core import small_pages
from sglang_jenga.core.allocator import ArenaAllocator

FEW, MANY = 10, 1000


def bytecodes(call: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def decode(alloc: ArenaAllocator, num_rows: int) -> Callable[[], object]:
    batch = np.arange(num_rows)
    return lambda: alloc.step(batch, [FULL, WINDOW])


def test_the_counter_sees_a_loop() -> None:
    assert bytecodes(lambda: [i for i in range(900)]) > bytecodes(lambda: [0]) + 900


def test_a_decode_step_costs_the_same_for_ten_and_a_thousand_rows() -> None:
    kinds = {"full": 26, "window": 5}
    counts = []
    for num_rows in (FEW, MANY):
        alloc = make_allocator(10_000, kinds, num_rows=MANY)
        decode(alloc, num_rows)()  # opens a run for every row
        counts.append(bytecodes(decode(alloc, num_rows)))
    assert counts[0] == counts[1] < 400


@pytest.mark.parametrize("small_pages_per_large", [26, 1])
def test_so_does_a_step_in_which_every_row_opens_a_new_run(small_pages_per_large: int) -> None:
    counts = []
    for num_rows in (FEW, MANY):
        kinds = {"full": small_pages_per_large, "window": small_pages_per_large}
        alloc = make_allocator(10_000, kinds, num_rows=MANY)
        for _ in range(small_pages_per_large):
            decode(alloc, num_rows)()
        free = alloc.num_free_large_pages
        counts.append(bytecodes(decode(alloc, num_rows)))
        assert free - alloc.num_free_large_pages == 2 * num_rows
    assert counts[0] == counts[1]


def test_a_tight_step_costs_by_the_large_pages_it_digs_through_not_by_rows() -> None:
    counts = []
    for num_rows in (FEW, MANY):
        alloc = make_allocator(12, {"full": 1200, "window": 1200}, num_rows=MANY)
        ids = alloc.extend([0], [[6000], [6000]])
        alloc.extend([0], [[1200], [0]])
        assert alloc.num_free_large_pages == 0
        for kind in (FULL, WINDOW):
            alloc.free(kind, ids[kind][:1100])
            assert alloc.num_reserved(kind) == 0, "so every row is fed from holes"
        counts.append(bytecodes(decode(alloc, num_rows)))
    assert counts[0] == counts[1]


def test_a_prompt_of_any_length_costs_the_same() -> None:
    counts = []
    for tokens in (2_048, 32_768):
        alloc = make_allocator(10_000, {"full": 26, "window": 5})
        demand = [[tokens], [tokens]]
        counts.append(bytecodes(lambda a=alloc, d=demand: a.extend([0], d)))  # type: ignore[misc]
    assert counts[0] == counts[1]


def test_freeing_a_request_of_any_length_costs_the_same() -> None:
    counts = []
    for tokens in (1_024, 32_768):
        alloc = make_allocator(10_000, {"full": 26, "window": 5})
        ids = alloc.extend([0], [[tokens], [0]])[FULL]
        counts.append(bytecodes(lambda a=alloc, i=ids: a.free(FULL, i)))  # type: ignore[misc]
    assert counts[0] == counts[1]


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every entry pushed on a list of partial large pages."""
    seen: list[tuple[int, int]] = []

    def heappush(heap: list[tuple[int, int]], entry: tuple[int, int]) -> None:
        seen.append(entry)
        heapq.heappush(heap, entry)

    counting = SimpleNamespace(heappush=heappush, heappop=heapq.heappop, heapify=heapq.heapify)
    monkeypatch.setattr(small_pages, "heapq", counting)
    return seen


def test_freeing_a_range_pushes_at_most_its_two_ends(pushes: list[tuple[int, int]]) -> None:
    alloc = make_allocator(10_000, {"full": 26})
    ids = alloc.extend([0], [[40_000]])[FULL]
    pushes.clear()
    alloc.free(FULL, ids[1_000:33_768])
    assert len(pushes) == 2
    alloc.free(FULL, ids[np.r_[0:1_000, 33_768:40_000]])
    assert len(pushes) == 3, "one more: the open run keeps its large page"


@pytest.mark.parametrize("runs", [None, [7, 5]], ids=["whole large pages", "packing"])
def test_the_list_of_partial_large_pages_stays_bounded_under_long_churn(
    runs: list[int] | None, pushes: list[tuple[int, int]]
) -> None:
    """Outdated entries are dropped: at most 4 per large page of the kind, and 64."""
    rng = np.random.default_rng(5)
    alloc = make_allocator(60, {"full": 26, "window": 5}, runs=runs)
    held = [np.empty(0, dtype=np.int64) for _ in range(2)]
    longest = 0
    for _ in range(3_000):
        row, counts = int(rng.integers(16)), rng.integers(0, 20, 2)
        if alloc.fits(counts.tolist()):
            ids = alloc.extend([row], [[int(count)] for count in counts])
            held = [rng.permutation(np.concatenate(pair)) for pair in zip(held, ids, strict=True)]
        for kind in (FULL, WINDOW):
            alloc.free(kind, held[kind][:9])
            held[kind] = held[kind][9:]
        alloc.close(int(rng.integers(16)))
        for census, k in zip(alloc.census(), alloc._kinds, strict=True):
            longest = max(longest, len(k.partial))
            assert len(k.partial) <= 64 + 4 * census.large_pages
    assert len(pushes) > 20 * longest, "far more entries were made than were ever kept"
    assert alloc.audit() == []


def test_the_list_shrinks_with_the_kind_when_runs_are_closed() -> None:
    alloc = make_allocator(40, {"full": 26}, num_rows=30)
    ids = alloc.extend(list(range(30)), [[20] * 30])[FULL]
    for i in range(len(ids)):
        alloc.free(FULL, ids[i : i + 1])
    full = alloc._kinds[FULL]
    assert len(full.partial) > 64, "30 open runs still own a large page each"
    for row in range(30):
        alloc.close(row)
    assert len(full.partial) <= 64
