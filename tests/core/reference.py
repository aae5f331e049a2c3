# SPDX-License-Identifier: Apache-2.0
"""What the allocator must agree with: plain dictionaries, sets and the definitions themselves.

:class:`Shadow` knows only what a caller sees: which small page ids were handed out, to whom, and
which came back. It never looks inside the allocator, so agreement means something.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm

import numpy as np

from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.kinds import KindSpec, RowSpec
from sglang_jenga.core.plan import ArenaPlan, KindPlan
from sglang_jenga.core.policies import Full

FULL, WINDOW = 0, 1  # kinds of the small arenas that tests make


def make_plan(num_large_pages: int, small_pages_per_large: Mapping[str, int]) -> ArenaPlan:
    """A plan with these kinds; slots have one row and no padding, small pages one slot."""
    large_page_bytes = lcm(*small_pages_per_large.values()) * 32
    return ArenaPlan(
        page_tokens=1,
        large_page_bytes=large_page_bytes,
        num_large_pages=num_large_pages,
        kinds=tuple(
            KindPlan(
                spec=KindSpec(
                    name=name,
                    policy=Full(),
                    rows=(RowSpec(layer_id=0, part="k", row_bytes=large_page_bytes // n),),
                ),
                slot_bytes=large_page_bytes // n,
                row_offsets_bytes=(0,),
                slots_per_small_page=1,
                small_pages_per_large_page=n,
                padding_bytes_per_slot=0,
            )
            for name, n in small_pages_per_large.items()
        ),
        geometry="lcm",
        explanation="made by hand for a test",
    )


def make_allocator(
    num_large_pages: int,
    small_pages_per_large: Mapping[str, int],
    *,
    runs: Sequence[int] | None = None,
    num_rows: int = 16,
) -> ArenaAllocator:
    plan = make_plan(num_large_pages, small_pages_per_large)
    return ArenaAllocator(plan, num_rows=num_rows, run_small_pages=runs)


def take(alloc: ArenaAllocator, row: int, *counts: int) -> list[list[int]]:
    """Extend one row by ``counts[kind]`` small pages; the ids per kind."""
    return [ids.tolist() for ids in alloc.extend([row], [[count] for count in counts])]


def snapshot(thing: object) -> object:
    """Every bit of an object's state, as nested tuples that compare with ``==``."""
    if isinstance(thing, np.ndarray):
        return thing.shape, thing.dtype.str, thing.tobytes()
    if isinstance(thing, list | tuple):
        return tuple(snapshot(item) for item in thing)
    if hasattr(thing, "__dict__"):
        return tuple((name, snapshot(value)) for name, value in sorted(vars(thing).items()))
    return thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One small page in somebody's hands: the ``position``-th of its kind given to ``life``."""

    life: int
    position: int


@dataclass(slots=True)
class Shadow:
    """Who holds each small page. A *life* is one request on one row, from first page to close."""

    small_pages_per_large: Sequence[int]
    num_large_pages: int
    held: list[dict[int, Grant]] = field(init=False)
    given: defaultdict[tuple[int, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.held = [{} for _ in self.small_pages_per_large]
        self.given = defaultdict(int)

    def hand_out(self, kind: int, pages: Iterable[int], life: int) -> None:
        n = self.small_pages_per_large[kind]
        for page in pages:
            assert n <= page < n * self.num_large_pages, f"page {page} is in the sink or outside"
            assert page not in self.held[kind], f"page {page} of kind {kind} handed out twice"
            self.held[kind][page] = Grant(life=life, position=self.given[kind, life])
            self.given[kind, life] += 1

    def take_back(self, kind: int, pages: Iterable[int], life: int) -> None:
        for page in pages:
            assert self.held[kind].pop(page).life == life, f"page {page} was somebody else's"

    def used(self, kind: int) -> int:
        return len(self.held[kind])

    def large_pages(self, kind: int) -> set[int]:
        """Large pages that hold a used small page of ``kind``."""
        return {page // self.small_pages_per_large[kind] for page in self.held[kind]}

    def fits(self, asked: Sequence[int], idle: Sequence[int]) -> bool:
        """Whether any allocator that moves nothing could serve this.

        ``idle``: large pages per kind that hold no used page but only the open runs of running
        requests, which this kind alone may use.
        """
        fresh = free = self.num_large_pages - 1
        for kind, n in enumerate(self.small_pages_per_large):
            large = len(self.large_pages(kind)) + idle[kind]
            free -= large
            fresh -= large + -(-max(0, asked[kind] - (large * n - self.used(kind))) // n)
        assert free >= 0, "kinds own more large pages than there are"
        return fresh >= 0

    def pieces(self, kind: int) -> list[range]:
        """Maximal ranges of consecutive positions that one life still holds."""
        positions = defaultdict(list)
        for grant in self.held[kind].values():
            positions[grant.life].append(grant.position)
        pieces: list[range] = []
        for ordered in map(sorted, positions.values()):
            first = previous = ordered[0]
            for position in ordered[1:]:
                if position != previous + 1:
                    pieces.append(range(first, previous + 1))
                    first = position
                previous = position
            pieces.append(range(first, previous + 1))
        return pieces
