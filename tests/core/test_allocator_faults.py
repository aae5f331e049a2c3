# SPDX-License-Identifier: Apache-2.0
"""Claims about misuse: wrong frees are refused without a trace, and the audit sees corruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reference import FULL, WINDOW, make_allocator, snapshot, take
from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.large_pages import LargePages
from sglang_jenga.core.small_pages import FREE, RESERVED, USED

# ---- refusing nonsense -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "pages"),
    [
        ("twice in one call", [4, 4]),
        ("twice in one call, apart", [5, 4, 5]),
        ("a double free", [6]),
        ("a double free among good ones", [4, 6, 5]),
        ("reserved in an open run", [9]),
        ("a hole", [12]),
        ("another kind's", [16]),
        ("in a free large page", [20]),
        ("the sink's", [0]),
        ("negative, counted from the end a used one", [-28]),
        ("beyond the arena", [400]),
    ],
)
def test_freeing_what_is_not_in_use_is_refused_without_a_trace(why: str, pages: list[int]) -> None:
    alloc = make_allocator(8, {"full": 4, "window": 2})
    take(alloc, 0, 5, 0)  # 4 to 8, and 9 to 11 reserved
    take(alloc, 1, 3, 0)
    alloc.close(1)  # 12 to 14, and 15 a hole
    assert take(alloc, 2, 0, 2)[WINDOW] == [8, 9]  # the bytes of 16 to 19 of the full kind
    alloc.free(FULL, np.array([6, 12]))
    before = snapshot(alloc)
    with pytest.raises(ValueError, match="full: freeing"):
        alloc.free(FULL, np.array(pages))
    assert snapshot(alloc) == before, why
    alloc.free(FULL, np.array([8, 4, 5, 7]))


@pytest.mark.parametrize("pages", [[2, 2], [1, 2, 1], [3], [0], [-1], [9]])
def test_single_page_kinds_refuse_the_same(pages: list[int]) -> None:
    alloc = make_allocator(6, {"full": 1, "window": 1})
    take(alloc, 0, 2, 1)  # full 1 and 2, window 3
    before = snapshot(alloc)
    with pytest.raises(ValueError, match="full: freeing"):
        alloc.free(FULL, np.array(pages))
    assert snapshot(alloc) == before


def test_an_arena_without_room_for_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a sink and one more page, got 1"):
        make_allocator(1, {"full": 1})
    with pytest.raises(ValueError, match="a run needs at least 1 small page, got 0"):
        make_allocator(4, {"full": 2}, runs=[0])


def test_level_one_refuses_to_hand_out_more_than_it_has() -> None:
    large = LargePages(4, 2)
    large.take(0, 2)
    with pytest.raises(Exhausted, match="2 large pages asked for, 1 of 3 are free"):
        large.take(1, 2)
    assert large.audit() == []


# ---- the audit ------------------------------------------------------------------------------


def put(array: Any, index: int, value: object) -> bool:
    array[index] = value
    return True


# In the arena of `healthy`, full pages 6 to 14 are used but for the hole 8; 15 to 17 are row 0's
# run; the window kind owns nothing.
FAULTS: dict[str, tuple[Callable[[ArenaAllocator], object], str]] = {
    "a large page leaks": (
        lambda a: setattr(a.large, "num_free", a.large.num_free - 1),
        "large pages: free 4 ",
    ),
    "a large page is free twice": (
        lambda a: put(a.large._stack, 0, a.large._stack[1]),
        "on the free stack twice",
    ),
    "an owned large page is on the free stack": (
        lambda a: put(a.large._stack, 0, 1),
        "on the free stack has an owner",
    ),
    "the sink can be owned": (
        lambda a: put(a.large._owner, 0, -1),
        "the sink lost its mark",
    ),
    "a large page changes its owner": (
        lambda a: put(a.large._owner, 1, 1),
        "kind 0 owns 1 pages, recorded 2",
    ),
    "a page is lost": (
        lambda a: setattr(a._kinds[0], "used", 10),
        "full: marked: 8 used, 3 reserved; recorded: 10, 3",
    ),
    "a reserved page is lost": (
        lambda a: setattr(a._kinds[0], "reserved", 2),
        "full: marked: 8 used, 3 reserved; recorded: 8, 2",
    ),
    "a used page is marked free": (
        lambda a: put(a._kinds[0].state, 7, FREE),
        "full: counts per large page disagree",
    ),
    "a reserved page is marked free": (
        lambda a: put(a._kinds[0].state, 16, FREE),
        "full: open runs hold 3 small pages, other than the 2 reserved ones",
    ),
    "a page is used outside the kind's large pages": (
        lambda a: put(a._kinds[0].state, 35, USED),
        "full: 1 small pages taken outside its large pages",
    ),
    "a run jumps back onto a used page": (
        lambda a: put(a._kinds[0].cursor, 0, 14),
        "full: open runs hold 4 small pages, other than the 3 reserved ones",
    ),
    "two rows share a run": (
        lambda a: (put(a._kinds[0].cursor, 5, 15), put(a._kinds[0].limit, 5, 18)),
        "full: open runs hold 6 small pages, other than the 3 reserved ones",
    ),
    "a reserved page has no run": (
        lambda a: put(a._kinds[0].limit, 0, 17),
        "full: open runs hold 2 small pages, other than the 3 reserved ones",
    ),
    "a run leaves its large page": (
        lambda a: (put(a._kinds[0].limit, 0, 19), put(a._kinds[0].state, 18, RESERVED)),
        "full: open runs of rows [0] leave their large page",
    ),
    "a count per large page drifts": (
        lambda a: put(a._kinds[0].num_taken, 1, 4),
        "full: counts per large page disagree",
    ),
    "a hole is forgotten": (
        lambda a: a._kinds[0].partial.clear(),
        "full: large pages [1] have holes that are not listed",
    ),
    "a hole is listed with an old count": (
        lambda a: put(a._kinds[0].partial, 0, (2, 1)),
        "full: large pages [1] have holes that are not listed",
    ),
    "an empty large page is kept": (
        lambda a: a.large.take(1, 1),
        "window: owns empty large pages [3]",
    ),
}


def healthy() -> ArenaAllocator:
    alloc = make_allocator(8, {"full": 6, "window": 2})
    take(alloc, 0, 9, 0)
    alloc.free(FULL, np.array([8]))
    return alloc


def test_a_healthy_arena_passes_the_audit() -> None:
    assert healthy().audit() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_the_audit_sees(fault: str) -> None:
    alloc = healthy()
    inject, expected = FAULTS[fault]
    inject(alloc)
    assert any(expected in line for line in alloc.audit()), alloc.audit()
