# SPDX-License-Identifier: Apache-2.0
"""Claims about the arena allocator, each on an arena small enough to check by hand.

Small page ``p`` of a kind with ``n`` small pages per large page lies in large page ``p // n``; the
sink is large page 0, so the first id handed out by a fresh arena is ``n``.
"""

from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pytest

from reference import FULL, WINDOW, make_allocator, make_plan, snapshot, take
from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.errors import Exhausted


def rows(*indices: int) -> np.ndarray:
    return np.array(indices, dtype=np.int64)


def one(alloc: ArenaAllocator, row: int, kind: int = 0) -> int:
    """The page that one decode step gives ``row``."""
    (ids,) = alloc.step(rows(row), [kind])
    return int(ids[0])


def free_large(alloc: ArenaAllocator) -> int:
    return alloc.num_free_large_pages


# ---- where pages come from -------------------------------------------------------------------


def test_a_decode_step_bumps_through_the_rows_own_run_and_touches_no_free_list() -> None:
    alloc = make_allocator(9, {"full": 8, "window": 4})
    first = alloc.step(rows(3, 5), [FULL, WINDOW])
    level1, partial = snapshot(alloc.large), [list(k.partial) for k in alloc._kinds]
    for i in range(1, 4):
        ids = alloc.step(rows(3, 5), [FULL, WINDOW])
        assert [list(a) for a in ids] == [list(a + i) for a in first]
    assert snapshot(alloc.large) == level1
    assert [k.partial for k in alloc._kinds] == partial


def test_pages_come_from_the_own_run_then_free_large_pages_then_holes_then_tails() -> None:
    alloc = make_allocator(4, {"full": 4})
    assert take(alloc, 0, 5) == [[4, 5, 6, 7, 8]]  # large page 1, and 9 to 11 reserved in 2
    alloc.free(FULL, np.array([5]))
    assert one(alloc, 0) == 9, "own run, although page 5 is a hole"
    assert one(alloc, 1) == 12, "a free large page before the hole"
    assert free_large(alloc) == 0
    assert one(alloc, 2) == 5, "the hole before other rows' tails"
    assert one(alloc, 2) == 15, "the end of the longest tail: row 1 has 13 to 15, row 0 only 10, 11"
    assert [one(alloc, 1), one(alloc, 1)] == [13, 14], "which is cut no further than needed"
    assert [one(alloc, 0), one(alloc, 0)] == [10, 11]
    with pytest.raises(Exhausted):
        one(alloc, 0)


def test_holes_are_filled_fullest_large_page_first() -> None:
    alloc = make_allocator(4, {"full": 4})
    take(alloc, 0, 12)
    alloc.free(FULL, np.array([4, 5, 8, 13, 14, 15]))  # holes: 2 in large page 1, 1 in 2, 3 in 3
    assert take(alloc, 1, 4) == [[8, 4, 5, 13]]


def test_a_demand_that_large_pages_cannot_serve_alone_uses_holes_in_every_kind() -> None:
    alloc = make_allocator(4, {"full": 4, "window": 2})
    take(alloc, 0, 4, 2)
    alloc.free(FULL, np.array([6]))
    assert take(alloc, 1, 1, 2) == [[6], [6, 7]], "two fresh large pages would not be there"


def test_a_roomy_demand_leaves_holes_alone() -> None:
    alloc = make_allocator(9, {"full": 4})
    take(alloc, 0, 4)
    alloc.free(FULL, np.array([5]))
    assert take(alloc, 1, 2) == [[8, 9]]


def test_a_tight_demand_shares_the_last_free_large_page_before_it_cuts_a_run() -> None:
    alloc = make_allocator(3, {"full": 4})
    take(alloc, 0, 1)  # 5 to 7 reserved
    assert [ids.tolist() for ids in alloc.step(rows(1, 2), [FULL])] == [[8, 9]]
    assert [one(alloc, 0) for _ in range(3)] == [5, 6, 7]


def test_rows_keep_what_they_need_themselves_when_runs_are_cut() -> None:
    alloc = make_allocator(3, {"full": 4})
    alloc.extend([0, 1], [[1, 1]])  # 5 to 7 and 9 to 11 reserved, nothing else left
    assert alloc.step(rows(2, 0, 1), [FULL])[0].tolist() == [7, 5, 9]
    assert alloc.num_reserved(FULL) == 3, "one page was cut, not the three that were asked for"
    alloc.step(rows(2, 0, 1), [FULL])
    assert not alloc.fits([1])


# ---- large pages come and go -----------------------------------------------------------------


def test_a_large_page_returns_the_moment_its_last_small_page_is_freed() -> None:
    alloc = make_allocator(9, {"full": 2, "window": 3})
    ids = take(alloc, 0, 0, 9)[WINDOW]
    history = []
    for page in ids:  # the window slides
        alloc.free(WINDOW, np.array([page]))
        history.append(free_large(alloc))
    assert history == [5, 5, 6, 6, 6, 7, 7, 7, 8]


def test_an_open_run_keeps_its_large_page_until_the_row_closes() -> None:
    alloc = make_allocator(3, {"full": 4})
    ids = take(alloc, 0, 2)[FULL]
    alloc.free(FULL, np.array(ids))
    assert (free_large(alloc), alloc.num_reserved(FULL)) == (1, 2)
    alloc.close(0)
    assert (free_large(alloc), alloc.num_reserved(FULL)) == (2, 0)


def test_a_large_page_changes_kind() -> None:
    alloc = make_allocator(2, {"full": 4, "window": 2})
    ids = take(alloc, 0, 4, 0)[FULL]
    with pytest.raises(Exhausted):
        take(alloc, 1, 0, 1)
    alloc.free(FULL, np.array(ids))
    assert take(alloc, 1, 0, 2)[WINDOW] == [2, 3]


def test_requests_keep_apart_while_free_large_pages_last_and_give_back_whole_ones() -> None:
    alloc = make_allocator(21, {"full": 4, "window": 3})
    held: dict[int, list[list[int]]] = {row: [[], []] for row in range(2)}
    for _ in range(10):  # decode steps interleave the two requests
        for kind, ids in enumerate(alloc.step(rows(0, 1), [FULL, WINDOW])):
            for row in (0, 1):
                held[row][kind].append(int(ids[row]))
    for kind, n in enumerate((4, 3)):
        large = [{page // n for page in held[row][kind]} for row in (0, 1)]
        assert not large[0] & large[1]
        assert [len(pages) for pages in large] == [-(-10 // n)] * 2
    before = free_large(alloc)
    for kind in (FULL, WINDOW):
        alloc.free(kind, np.array(held[0][kind]))
    alloc.close(0)
    assert free_large(alloc) == before + 3 + 4


def test_everything_freed_and_closed_leaves_every_large_page_free() -> None:
    alloc = make_allocator(30, {"full": 5, "window": 2})
    ids = alloc.extend([2, 0, 1], [[7, 1, 9], [3, 0, 8]])
    alloc.free(FULL, ids[FULL][::-1])
    alloc.free(WINDOW, ids[WINDOW])
    for row in range(3):
        alloc.close(row)
    assert free_large(alloc) == 29
    assert all(c.large_pages == 0 for c in alloc.census())


# ---- all or nothing, and the capacity question -----------------------------------------------


def scarred(runs: list[int] | None = None) -> ArenaAllocator:
    """Holes, open runs and one free large page, in two kinds; rows 0 and 1 are open."""
    alloc = make_allocator(12, {"full": 6, "window": 4}, runs=runs, num_rows=4)
    ids = alloc.extend([0, 1, 2], [[8, 7, 6], [5, 6, 3]])
    while free_large(alloc) > 1:
        take(alloc, 3, 6, 0)
    alloc.close(2)
    alloc.close(3)
    alloc.free(FULL, ids[FULL][[0, 2, 3, 9, 16, 17]])
    alloc.free(WINDOW, ids[WINDOW][[0, 5, 12]])
    assert alloc.audit() == []
    assert min(alloc.num_holes(k) for k in (FULL, WINDOW)) > 0
    assert min(alloc.num_reserved(k) for k in (FULL, WINDOW)) > 0
    return alloc


@pytest.mark.parametrize("runs", [None, [2, 4]], ids=["whole large pages", "packing"])
def test_fits_says_exactly_which_demands_are_served(runs: list[int] | None) -> None:
    alloc = scarred(runs)
    seen = set()
    for a, b, c, d in itertools.product((0, 1, 3, 4, 7, 11), (0, 2, 9), (0, 1, 2, 3, 6), (0, 2, 5)):
        trial = copy.deepcopy(alloc)
        assert snapshot(trial) == snapshot(alloc)
        fits = trial.fits([a + b, c + d])
        before = snapshot(trial)
        try:
            ids = trial.extend([0, 3], [[a, b], [c, d]])
        except Exhausted:
            assert not fits
            assert snapshot(trial) == before, "a refused call must leave no trace"
        else:
            assert fits
            assert [len(i) for i in ids] == [a + b, c + d]
            assert trial.audit() == []
        seen.add(fits)
    assert seen == {True, False}


@pytest.mark.parametrize("runs", [None, [2, 4]], ids=["whole large pages", "packing"])
@pytest.mark.parametrize("kinds", [[FULL, WINDOW], [FULL], [WINDOW]], ids=str)
def test_steps_succeed_exactly_while_they_fit(runs: list[int] | None, kinds: list[int]) -> None:
    alloc = scarred(runs)
    demand = [4 * (FULL in kinds), 4 * (WINDOW in kinds)]
    steps = 0
    while alloc.fits(demand):
        ids = alloc.step(rows(0, 1, 2, 3), kinds)
        assert [len(set(i.tolist())) for i in ids] == [4] * len(kinds)
        assert alloc.audit() == []
        steps += 1
    assert steps >= 2
    before = snapshot(alloc)
    with pytest.raises(Exhausted):
        alloc.step(rows(0, 1, 2, 3), kinds)
    assert snapshot(alloc) == before


def test_the_last_small_page_can_be_had() -> None:
    alloc = scarred()
    while (left := alloc.num_available(FULL)) > 0:
        count = min(left, 5)
        take(alloc, 3, count, 0)
    assert (free_large(alloc), alloc.num_holes(FULL), alloc.num_reserved(FULL)) == (0, 0, 0)
    assert not alloc.fits([1, 0])
    assert alloc.unused_small_pages(FULL).tolist() == []


def test_a_shortage_names_kinds_and_numbers() -> None:
    alloc = make_allocator(4, {"full": 4, "window": 2})
    take(alloc, 0, 5, 1)
    with pytest.raises(Exhausted) as refused:
        take(alloc, 1, 9, 2)
    assert str(refused.value) == (
        "asked for full 9, window 2 small pages = 3 large pages, most of them for full; "
        "0 of 3 free; held by "
        "full 2 large (5 used, 3 reserved, 0 free small pages), "
        "window 1 large (1 used, 1 reserved, 0 free small pages)"
    )


def test_the_version_grows_with_every_change_and_with_nothing_else() -> None:
    alloc = make_allocator(3, {"full": 2})
    versions = [alloc.version]
    ids = alloc.step(rows(0), [FULL])[0]
    versions.append(alloc.version)
    alloc.free(FULL, ids)
    versions.append(alloc.version)
    alloc.close(0)
    versions.append(alloc.version)
    alloc.clear()
    versions.append(alloc.version)
    assert versions == sorted(set(versions))
    with pytest.raises(Exhausted):
        alloc.extend([0], [[5]])
    alloc.free(FULL, np.array([], dtype=np.int64))
    assert alloc.version == versions[-1]


# ---- geometries ------------------------------------------------------------------------------


def test_packing_kinds_share_large_pages_and_still_get_runs() -> None:
    alloc = make_allocator(5, {"full": 12, "state": 1}, runs=[4, 1])
    ids = alloc.step(rows(0, 1), [FULL])[0].tolist()
    assert ids == [12, 17], "each row got one page and a run of 4 behind it, in one large page"
    assert (free_large(alloc), alloc.num_reserved(FULL)) == (3, 8)
    for i in (1, 2, 3, 4):
        assert alloc.step(rows(0, 1), [FULL])[0].tolist() == [12 + i, 17 + i]
    assert (free_large(alloc), alloc.num_reserved(FULL)) == (3, 0)
    ids = alloc.step(rows(0, 1), [FULL])[0].tolist()
    assert ids == [22, 24], "row 0 takes what is left of the large page, row 1 starts the next"


def test_packing_kinds_start_a_large_page_only_when_no_hole_is_left() -> None:
    alloc = make_allocator(30, {"full": 10, "state": 1}, runs=[3, 1])
    for row in range(12):
        large = alloc.census()[FULL].large_pages
        holes = alloc.num_holes(FULL)
        take(alloc, row, 4, 1)
        if alloc.census()[FULL].large_pages > large:
            assert holes < 4


def test_one_small_page_per_large_page_needs_no_runs() -> None:
    alloc = make_allocator(9, {"full": 1, "window": 1})  # gpt-oss: kinds of equal bytes
    full, window = alloc.step(rows(4, 2, 7), [FULL, WINDOW])
    assert (full.tolist(), window.tolist()) == ([1, 2, 3], [4, 5, 6])
    assert take(alloc, 4, 2, 0)[FULL] == [7, 8]
    assert [c.reserved_small_pages + c.hole_small_pages for c in alloc.census()] == [0, 0]
    with pytest.raises(Exhausted):
        one(alloc, 2)
    alloc.free(WINDOW, window)
    assert free_large(alloc) == 3
    assert alloc.audit() == []


# ---- starting over, and doing the same again -------------------------------------------------


def churn(alloc: ArenaAllocator, seed: int) -> list[list[int]]:
    """Many calls of every sort; returns all ids handed out."""
    rng = random.Random(seed)
    held: list[list[int]] = [[], []]
    out = []
    for _ in range(120):
        counts = [[rng.randrange(9) for _ in range(2)] for _ in range(2)]
        if alloc.fits([sum(c) for c in counts]):
            batch = rng.sample(range(8), 2)
            for kind, ids in enumerate(alloc.extend(batch, counts)):
                held[kind] += ids.tolist()
                out.append(ids.tolist())
        for kind in (FULL, WINDOW):
            rng.shuffle(held[kind])
            alloc.free(kind, np.array(held[kind][20:], dtype=np.int64))
            del held[kind][20:]
        alloc.close(rng.randrange(8))
    return out


def test_the_same_calls_give_the_same_ids() -> None:
    first, second = (make_allocator(16, {"full": 5, "window": 3}) for _ in range(2))
    assert churn(first, 7) == churn(second, 7)
    assert snapshot(first.large) == snapshot(second.large)


def test_clear_is_idempotent_and_leaves_a_fresh_arena() -> None:
    alloc = make_allocator(16, {"full": 5, "window": 3})
    before = churn(alloc, 3)
    for _ in range(2):
        alloc.clear()
        assert alloc.audit() == []
        assert free_large(alloc) == 15
        assert all(
            c.large_pages == c.used_small_pages == c.reserved_small_pages == 0
            for c in alloc.census()
        )
    assert churn(alloc, 3) == before


def test_unused_small_pages_are_those_nobody_has() -> None:
    alloc = make_allocator(5, {"full": 3, "window": 2})
    take(alloc, 0, 4, 1)  # full 3 to 6, 7 and 8 reserved; window 6, 7 reserved
    alloc.free(FULL, np.array([4]))
    assert alloc.unused_small_pages(FULL).tolist() == [4, 12, 13, 14]
    assert alloc.unused_small_pages(WINDOW).tolist() == [8, 9]


def test_plans_made_for_these_tests_are_real_plans() -> None:
    plan = make_plan(7, {"full": 26, "window": 5})
    assert [k.small_pages_per_large_page for k in plan.kinds] == [26, 5]
    assert plan.from_json(plan.to_json()) == plan


def test_the_starving_kind_is_the_one_that_asks_for_most_beyond_what_it_owns() -> None:
    alloc = make_allocator(9, {"full": 8, "window": 2})
    assert alloc.starving_kind([8, 2]) == "full", "one large page each: the first"
    assert alloc.starving_kind([8, 4]) == "window"
    assert "asked for full 8, window 4 small pages = 3 large pages, most of them for window; " in (
        alloc.explain_shortage([8, 4])
    )
    take(alloc, 0, 1, 0)
    assert alloc.explain_holders().startswith(
        "7 of 8 free; held by full 1 large (1 used, 7 reserved"
    )
    assert alloc.starving_kind([7, 1]) == "window", "full has so many set aside"
