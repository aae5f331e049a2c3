# SPDX-License-Identifier: Apache-2.0
"""Small pages of every kind from one arena, request-aware (design section 4, paper section 4).

Words: a *row* is a running request's index (SGLang's ``req_pool_idx``); a *run* is a range of
consecutive small pages inside one large page that a row has open and bumps through; a *hole* is a
free small page inside a large page that a kind owns. Ids are physical for life: nothing moves.

Where a new small page comes from, in order:

1. the row's own open run (the fast path: one vectorised ``cursor += 1`` for a whole batch);
2. a free large page, whose small pages become the row's open run; where rows share large pages
   (3), only for as many pages as fill whole ones, so that they become free together;
3. holes in partial large pages of the kind, fullest page first, so that emptier ones drain;
4. unused tails of open runs, longest first, cut no further than needed.

Step 2 comes before 3 only while large pages suffice for *every* kind of the demand in hand; when
they do not, holes go first everywhere, which makes :meth:`ArenaAllocator.fits` exact:

    sum over kinds(ceil(max(0, asked - holes - reserved) / small_pages_per_large_page)) <= free

``reserved`` counts the unused tails of open runs. Kinds whose runs are shorter than a large page
always take holes first: their large pages are shared by design. Evicting to make a demand fit is
the cache's work.

Invariants, recomputed by :meth:`ArenaAllocator.audit`: those of level 1
(:mod:`sglang_jenga.core.large_pages`) and of each kind (:mod:`sglang_jenga.core.small_pages`).
Two follow from them:

* ``used + reserved + holes == owned_large_pages * small_pages_per_large_page`` for every kind
* after everything is freed and closed, every large page is free
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_jenga.core.audit import audit_small_pages
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.geometry import ArenaPlan
from sglang_jenga.core.large_pages import NO_IDS, IntArray, LargePages
from sglang_jenga.core.small_pages import SmallPages


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCensus:
    """Small pages of one kind by state; ``used + reserved + holes`` fill its large pages."""

    name: str
    large_pages: int
    used_small_pages: int
    reserved_small_pages: int
    hole_small_pages: int


class ArenaAllocator:
    """Hands out small pages of every kind from one arena. Pure host integers, no device.

    Args:
        plan: the geometry; kinds are addressed by their index in ``plan.kinds``.
        num_rows: row indices are ``0 .. num_rows - 1``.
        run_small_pages: longest open run per kind, default whole large pages.
    """

    def __init__(
        self, plan: ArenaPlan, *, num_rows: int, run_small_pages: Sequence[int] | None = None
    ) -> None:
        self.plan = plan
        self.num_rows = num_rows
        self.large = LargePages(plan.num_large_pages, len(plan.kinds))
        runs = run_small_pages or [k.small_pages_per_large_page for k in plan.kinds]
        self._kinds = [
            SmallPages(
                kind.spec.name,
                index,
                self.large,
                pages_per_large=kind.small_pages_per_large_page,
                run=run,
                num_rows=num_rows,
            )
            for index, (kind, run) in enumerate(zip(plan.kinds, runs, strict=True))
        ]
        #: Grows with every change of what is free; lets callers memoise capacity questions.
        self.version = 0

    # ---- questions -------------------------------------------------------------------------

    @property
    def num_free_large_pages(self) -> int:
        return self.large.num_free

    @property
    def small_pages(self) -> Sequence[SmallPages]:
        """Level 2 of every kind, to look at."""
        return self._kinds

    def num_holes(self, kind: int) -> int:
        """Free small pages inside large pages that ``kind`` owns (reserved ones excluded)."""
        return self._kinds[kind].num_holes

    def num_used(self, kind: int) -> int:
        """Small pages handed out and not yet freed."""
        return self._kinds[kind].used

    def num_reserved(self, kind: int) -> int:
        """Small pages set aside in open runs, not handed out yet."""
        return self._kinds[kind].reserved

    def num_available(self, kind: int) -> int:
        """Small pages that ``kind`` could get if it alone asked."""
        k = self._kinds[kind]
        return k.num_holes + k.reserved + self.large.num_free * k.pages_per_large

    def large_pages_for(self, small_pages: Sequence[int], *, apart: bool = False) -> int:
        """Free large pages that this demand (small pages per kind) consumes at least.

        ``apart``: where rows share large pages, whole ones for as much of it as fills some.
        """
        total = 0
        owned = self.large.num_owned_by_kind
        for k, asked in zip(self._kinds, small_pages, strict=True):
            n = k.pages_per_large
            whole = asked // n if apart and k.packs else 0
            # Holes and what open runs have set aside: all of its large pages that is not in use.
            missing = asked - whole * n - owned[k.index] * n + k.used
            if missing > 0:
                whole -= -missing // n
            total += whole
        return total

    def fits(self, small_pages: Sequence[int]) -> bool:
        """Whether a demand of ``small_pages[kind]`` would be served now. Exact."""
        return self.large_pages_for(small_pages) <= self.large.num_free

    def fits_apart(self, small_pages: Sequence[int]) -> bool:
        """Whether the demand fits with whole large pages for as much of it as fills some.

        Where large pages are shared by rows, that keeps a long prompt out of the holes between
        others: its pages become free together, which is what a kind with large slots waits for.
        """
        return self.large_pages_for(small_pages, apart=True) <= self.large.num_free

    def census(self) -> tuple[KindCensus, ...]:
        return tuple(
            KindCensus(
                name=k.name,
                large_pages=k.num_large,
                used_small_pages=k.used,
                reserved_small_pages=k.reserved,
                hole_small_pages=k.num_holes,
            )
            for k in self._kinds
        )

    def explain_shortage(self, small_pages: Sequence[int]) -> str:
        """Which kinds asked for what, and what each holds: one line for logs."""
        asked = ", ".join(
            f"{k.name} {n}" for k, n in zip(self._kinds, small_pages, strict=True) if n
        )
        return (
            f"asked for {asked} small pages = {self.large_pages_for(small_pages)} large pages, "
            f"most of them for {self.starving_kind(small_pages)}; {self.explain_holders()}"
        )

    def starving_kind(self, small_pages: Sequence[int]) -> str:
        """The kind whose demand takes the most large pages beyond what it already owns."""
        worst, name = -1, self._kinds[0].name
        for index, asked in enumerate(small_pages):
            alone = [0] * len(small_pages)
            alone[index] = asked
            large = self.large_pages_for(alone)
            if large > worst:
                worst, name = large, self._kinds[index].name
        return name

    def explain_holders(self) -> str:
        """What each kind holds and how many large pages are free: one line for logs."""
        held = ", ".join(
            f"{c.name} {c.large_pages} large ({c.used_small_pages} used, "
            f"{c.reserved_small_pages} reserved, {c.hole_small_pages} free small pages)"
            for c in self.census()
        )
        return f"{self.large.num_free} of {self.large.num_usable} free; held by {held}"

    def unused_small_pages(self, kind: int) -> IntArray:
        """Ids of small pages that ``kind`` has free or could take, ascending (debug paths)."""
        return self._kinds[kind].unused()

    # ---- changes ---------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget everything. Idempotent."""
        self.large.clear()
        for k in self._kinds:
            k.clear()
        self.version += 1

    def extend(self, rows: Sequence[int], small_pages: Sequence[Sequence[int]]) -> list[IntArray]:
        """Allocate ``small_pages[kind][i]`` pages for ``rows[i]`` (distinct rows); all or nothing.

        Returns one array of small page ids per kind, row after row in the order given; within a
        row, pages in token order.

        Raises:
            Exhausted: the demand does not fit; nothing changed.
        """
        # Usually there is room even if every row began and ended inside a large page.
        most = sum(
            len(rows) + sum(counts) // k.pages_per_large
            for k, counts in zip(self._kinds, small_pages, strict=True)
            if any(counts)
        )
        roomy = apart = most <= self.large.num_free or self._is_roomy(rows, small_pages)
        if not roomy:
            counts_per_kind = [np.array(counts, dtype=np.int64) for counts in small_pages]
            apart = self._make_room(np.array(rows, dtype=np.int64), counts_per_kind)
        out = [
            k.take(rows, counts, roomy=roomy, apart=apart)
            for k, counts in zip(self._kinds, small_pages, strict=True)
        ]
        self.version += 1
        return out

    def take(self, kind: int, count: int) -> IntArray:
        """Allocate ``count`` small pages of one kind that belong to no row's run, holes first.

        For what is not laid out along a request's tokens, recurrent states for example: whoever
        holds such a page names it when it is freed, so it may pass from a request to the cache.

        Raises:
            Exhausted: the demand does not fit; nothing changed.
        """
        demand = [0] * len(self._kinds)
        demand[kind] = count
        if not self.fits(demand):
            raise Exhausted(self.explain_shortage(demand))
        k = self._kinds[kind]
        k.cut_runs(NO_IDS, NO_IDS, count - k.num_holes - self.large.num_free * k.pages_per_large)
        self.version += 1
        return k.take_holes_first(count)

    def _is_roomy(self, rows: Sequence[int], small_pages: Sequence[Sequence[int]]) -> bool:
        """Whether free large pages suffice for the demand even if no hole is used."""
        fresh = 0
        for k, counts in zip(self._kinds, small_pages, strict=True):
            for row, count in zip(rows, counts, strict=True):
                fresh += -(-max(0, count - k.open_pages(row)) // k.pages_per_large)
        return fresh <= self.large.num_free

    def step(self, rows: IntArray, kinds: Sequence[int]) -> list[IntArray]:
        """Allocate one small page of each kind in ``kinds`` for every row (a decode step).

        Rows are distinct, and so are kinds. Returns one array of small page ids per kind of
        ``kinds``, in the order of ``rows``. The common case touches no free list: every row has an
        open run and bumps its cursor.

        Raises:
            Exhausted: the demand does not fit; nothing changed.
        """
        found = []
        fresh = 0
        for index in kinds:
            k = self._kinds[index]
            ids = k.cursor[rows]
            short = (ids == k.limit[rows]).nonzero()[0]
            fresh += len(short)
            found.append((k, ids, short))
        roomy = fresh <= self.large.num_free
        if not roomy:
            counts = [np.full(len(rows), k.index in kinds, dtype=np.int64) for k in self._kinds]
            self._make_room(rows, counts)
        out = []
        for k, ids, short in found:
            k.step(rows, ids, short, roomy)
            out.append(ids)
        self.version += 1
        return out

    def _make_room(self, rows: IntArray, counts: Sequence[IntArray]) -> bool:
        """Tight path: check the whole demand, cut open runs where all else falls short.

        Every kind that is short covers all it can from tails, so what is left to take from free
        large pages is what :meth:`fits` counted. True: there is no need to, and what fills large
        pages can have whole ones.
        """
        totals = [int(count.sum()) for count in counts]
        if not self.fits(totals):
            raise Exhausted(self.explain_shortage(totals))
        apart = sum(
            k.large_pages_apart(rows, count) for k, count in zip(self._kinds, counts, strict=True)
        )
        if apart <= self.large.num_free:
            return True
        missing = [k.missing(rows, count) for k, count in zip(self._kinds, counts, strict=True)]
        large = sum(
            -(-pages // k.pages_per_large) for k, pages in zip(self._kinds, missing, strict=True)
        )
        if large > self.large.num_free:
            for k, count, pages in zip(self._kinds, counts, missing, strict=True):
                k.cut_runs(rows, count, pages)
        return False

    def free(self, kind: int, pages: IntArray) -> None:
        """Give small pages of ``kind`` back; a large page left empty returns to level 1 at once.

        Raises:
            ValueError: a page is not in use (a double free, or another kind's id), or is named
                twice; nothing changed.
        """
        if len(pages):
            self._kinds[kind].free(pages)
            self.version += 1

    def close(self, row: int) -> None:
        """The request on ``row`` ended: give the unused tails of its open runs back."""
        for k in self._kinds:
            length = k.open_pages(row)
            if length:
                k.cut_run(row, length)
        self.version += 1

    # ---- proof -----------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """Violations of the module's invariants, recomputed from scratch; empty when healthy."""
        return self.large.audit() + [line for k in self._kinds for line in audit_small_pages(k)]
