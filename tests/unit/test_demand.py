# SPDX-License-Identifier: Apache-2.0
"""What admission computes agrees with requests walked through token by token."""

from __future__ import annotations

import pytest

from machine import make_kinds, make_plan
from sglang_jenga.core.demand import MAX_RUN_TOKENS, DemandModel
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Window

W = 20
KINDS = make_kinds(full_layers=2, window_layers=5, policy=Window(window_tokens=W))


def plan(large_pages: int = 50, page_tokens: int = 1) -> ArenaPlan:
    return make_plan(KINDS, page_tokens=page_tokens, large_pages=large_pages)


def model(
    arena: ArenaPlan | None = None, *, chunk: int | None = 16, span: int | None = W
) -> DemandModel:
    window = None if span is None else Window(window_tokens=span)
    return DemandModel(plan=arena or plan(), window=window, chunk_tokens=chunk)


def window_peak(extend: int, max_new: int, chunk: int | None, interval: int) -> int:
    """Window slots of one request at the worst moment, step by step."""
    held = computed = peak = 0
    while computed < extend:
        step = min(extend - computed, chunk or extend)
        computed += step
        held += step
        peak = max(peak, held)
        held = min(held, W)
    since = 0
    for _ in range(max_new):
        if since == interval:
            held, since = min(held, W), 0
        held += 1
        since += 1
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("interval", [1, 4, 16])
@pytest.mark.parametrize("chunk", [None, 8, 16, 64])
def test_window_demand_covers_every_moment_of_a_request(chunk: int | None, interval: int) -> None:
    demand = model(chunk=chunk)
    for extend in (1, 7, 8, 19, 20, 21, 36, 50, 200):
        for max_new in (0, 1, 5, 30, 300):
            asked = demand.window_tokens(extend, max_new, chunk, interval)
            assert asked >= window_peak(extend, max_new, chunk, interval)
            assert asked <= extend + max_new, "never more than a full kind would take"


def test_window_demand_does_not_grow_with_the_output() -> None:
    demand = model(chunk=16)
    assert demand.window_tokens(10, 10_000, 16, 4) == W + 4
    assert demand.window_tokens(10_000, 10_000, 16, 4) == W + 16


@pytest.mark.parametrize("page_tokens", [1, 16])
def test_sliding_gives_whole_large_pages_back_and_keeps_dead_slots_few(page_tokens: int) -> None:
    arena = plan(page_tokens=page_tokens)
    unit = arena.kinds[1].slots_per_large_page
    for span in (4, 20, 100, 1000, 4096):
        interval = model(arena, span=span).slide_interval_tokens
        assert interval % unit == 0 and interval >= page_tokens
        assert interval <= max(unit, span // 16 + unit, page_tokens + unit)


def test_a_model_without_windows_never_slides() -> None:
    assert model(span=None).slide_interval_tokens == 0


@pytest.mark.parametrize("page_tokens", [1, 16, 64])
def test_open_runs_are_at_most_128_tokens_or_one_large_page(page_tokens: int) -> None:
    arena = plan(page_tokens=page_tokens)
    for run, kind in zip(model(arena).run_small_pages, arena.kinds, strict=True):
        assert 1 <= run <= kind.small_pages_per_large_page
        assert run * page_tokens <= max(MAX_RUN_TOKENS, page_tokens)


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("chunk", [None, 16])
def test_the_longest_request_is_the_last_that_fits(chunk: int | None, page_tokens: int) -> None:
    """Brute force over lengths: every shorter request fits, every longer one does not."""
    for large_pages in (3, 8, 20, 61):
        demand = model(plan(large_pages, page_tokens), chunk=chunk)

        def fits(pages: int, demand: DemandModel = demand) -> bool:
            need = demand.pages_of_longest(pages * page_tokens)
            large = [
                -(-n // kind.small_pages_per_large_page)
                for n, kind in zip(need, demand.plan.kinds, strict=True)
            ]
            return sum(large) <= demand.plan.usable_large_pages

        expected = max(n for n in range(1000) if fits(n)) * page_tokens
        assert demand.longest_request_tokens == expected


def test_windows_let_a_request_grow_far_longer_than_full_layers_would() -> None:
    arena = plan(400)
    windowed, chunkless = model(arena, chunk=16), model(arena, chunk=None)
    assert windowed.longest_request_tokens > 2 * chunkless.longest_request_tokens


def test_a_lone_request_without_windows_may_use_every_slot() -> None:
    kinds = make_kinds(full_layers=2)
    arena = make_plan(kinds, page_tokens=1, large_pages=40)
    slots = arena.usable_large_pages * arena.kinds[0].slots_per_large_page
    assert model(arena, span=None).longest_request_tokens == slots
