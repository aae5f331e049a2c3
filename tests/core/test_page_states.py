# SPDX-License-Identifier: Apache-2.0
"""What is said of each large page agrees with the states of its small pages."""

from __future__ import annotations

import random

import numpy as np
import pytest

from reference import FULL, WINDOW, make_allocator, snapshot, take
from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.page_states import NO_KIND, page_states
from sglang_jenga.core.small_pages import RESERVED, USED


def counted(alloc: ArenaAllocator) -> list[tuple[int, int, int]]:
    """(owner, used, reserved) per usable large page, counted one small page at a time."""
    out = []
    for page in range(1, alloc.large.num_large_pages):
        owners = [k for k in alloc.small_pages if page in alloc.large.pages_of(k.index).tolist()]
        if not owners:
            out.append((NO_KIND, 0, 0))
            continue
        (owner,) = owners
        n = owner.pages_per_large
        states = owner.state[page * n : (page + 1) * n].tolist()
        out.append((owner.index, states.count(USED), states.count(RESERVED)))
    return out


def told(alloc: ArenaAllocator) -> list[tuple[int, int, int]]:
    pages = page_states(alloc)
    columns = (pages.owner, pages.used_small_pages, pages.reserved_small_pages)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_fresh_arena_is_free_from_behind_the_sink() -> None:
    pages = page_states(make_allocator(5, {"full": 4, "window": 2}))
    assert pages.first_large_page == 1
    assert pages.owner.tolist() == [NO_KIND] * 4
    assert pages.small_pages_per_large_page == (4, 2)


def test_used_reserved_and_free_small_pages_are_told_apart() -> None:
    alloc = make_allocator(6, {"full": 4, "window": 2})
    ((*first, _), _) = take(alloc, 0, 5, 1)  # large pages 1 and 2, then 3 of window
    alloc.free(FULL, np.array(first[1:3]))
    assert told(alloc) == [
        (FULL, 2, 0),
        (FULL, 1, 3),
        (WINDOW, 1, 1),
        (NO_KIND, 0, 0),
        (NO_KIND, 0, 0),
    ]
    alloc.close(0)
    assert told(alloc)[1:3] == [(FULL, 1, 0), (WINDOW, 1, 0)]


def test_open_runs_of_several_rows_in_one_large_page_are_added() -> None:
    alloc = make_allocator(4, {"full": 12}, runs=[3])
    for row in range(3):
        take(alloc, row, 1)
    assert alloc.num_reserved(FULL) == 9
    assert told(alloc) == counted(alloc) == [(FULL, 3, 9), (NO_KIND, 0, 0), (NO_KIND, 0, 0)]


@pytest.mark.parametrize("kinds", [{"full": 26, "window": 5}, {"full": 6, "window": 1, "s": 2}])
@pytest.mark.parametrize("packs", [False, True])
def test_any_history_leaves_what_counting_one_by_one_finds(
    kinds: dict[str, int], packs: bool
) -> None:
    rng = random.Random(5)
    runs = [max(1, n // 3) for n in kinds.values()] if packs else None
    alloc = make_allocator(14, kinds, runs=runs)
    held: list[tuple[int, int]] = []
    for _ in range(300):
        counts = [rng.randrange(4) for _ in kinds]
        try:
            given = alloc.extend([rng.randrange(8)], [[count] for count in counts])
        except Exhausted:
            given = []
        held += [(kind, page) for kind, ids in enumerate(given) for page in ids.tolist()]
        rng.shuffle(held)
        for _ in range(rng.randrange(6)):
            if held:
                kind, page = held.pop()
                alloc.free(kind, np.array([page]))
        if rng.random() < 0.1:
            alloc.close(rng.randrange(8))
        assert told(alloc) == counted(alloc)
        assert alloc.audit() == []


def test_looking_changes_nothing() -> None:
    alloc = make_allocator(9, {"full": 8, "window": 4})
    take(alloc, 0, 11, 3)
    before = snapshot(alloc.large), [snapshot(vars(k)) for k in alloc.small_pages]
    page_states(alloc)
    assert before == (snapshot(alloc.large), [snapshot(vars(k)) for k in alloc.small_pages])
