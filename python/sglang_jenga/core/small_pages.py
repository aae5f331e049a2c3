# SPDX-License-Identifier: Apache-2.0
"""Level 2: the small pages of one kind (design section 4, Jenga paper section 4.3).

Small pages are numbered over the whole arena: small page ``p`` lies in large page
``p // pages_per_large``. Each is free, reserved (set aside in some row's open run) or used (handed
out). The free ones inside large pages that the kind owns are its *holes*.

Where pages come from is decided by :mod:`sglang_jenga.core.allocator`, which sees every kind. Its
word for the whole demand is ``roomy``: free large pages suffice even if no hole is used.

Invariants, recomputed by :func:`sglang_jenga.core.audit.audit_small_pages`:

* the state array counts exactly ``used`` and ``reserved`` pages, all in owned large pages
* an owned large page holds at least one used or reserved page
* the reserved pages are those of the open runs, each run inside one large page, no two overlapping
* every large page with a hole is listed in ``partial`` with its present number of holes
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.holes import choose_pages
from sglang_jenga.core.large_pages import NO_IDS, IntArray, LargePages, join, ranges

#: Up to here one row after the other is faster than all at once.
_FEW_ROWS: Final = 2

FREE: Final = 0
RESERVED: Final = 1
USED: Final = 2


class SmallPages:
    """State of every small page of one kind, and the open run of every row.

    Args:
        name: of the kind, for messages.
        index: of the kind, its name towards ``large``.
        large: level 1, shared by all kinds.
        pages_per_large: small pages per large page.
        run: longest open run in small pages. Runs shorter than the large page let several rows
            share it: state models have large pages that are big beside a request.
        num_rows: rows are ``0 .. num_rows - 1``.
    """

    def __init__(
        self,
        name: str,
        index: int,
        large: LargePages,
        *,
        pages_per_large: int,
        run: int,
        num_rows: int,
    ) -> None:
        if run < 1:
            raise ValueError(f"{name}: a run needs at least 1 small page, got {run}")
        self.name = name
        self.index = index
        self.large = large
        self.pages_per_large = pages_per_large
        self.run = run
        self.packs = run < pages_per_large
        self._offsets = np.arange(pages_per_large, dtype=np.int64)
        self.used = 0
        self.reserved = 0
        #: Per row: the next small page of its open run, and the first one after the run.
        self.cursor: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.limit: IntArray = np.zeros(num_rows, dtype=np.int64)
        #: Per small page.
        self.state: npt.NDArray[np.uint8] = np.zeros(
            large.num_large_pages * pages_per_large, dtype=np.uint8
        )
        #: Per large page: its used and reserved small pages.
        self.num_taken: IntArray = np.zeros(large.num_large_pages, dtype=np.int64)
        #: Heap of (holes, large page), fullest first; outdated entries are skipped when popped.
        self.partial: list[tuple[int, int]] = []

    def clear(self) -> None:
        """Forget everything; the caller clears level 1."""
        self.used = self.reserved = 0
        for array in (self.cursor, self.limit, self.state, self.num_taken):
            array.fill(0)
        self.partial.clear()

    @property
    def num_large(self) -> int:
        """Large pages that the kind owns."""
        return self.large.num_owned(self.index)

    @property
    def num_holes(self) -> int:
        """Free small pages inside the kind's large pages."""
        return self.num_large * self.pages_per_large - self.used - self.reserved

    def unused(self) -> IntArray:
        """Ids of its holes and of all small pages in free large pages, ascending; for debugging."""
        reachable = self.large.reachable_by(self.index)[:, None]
        return np.flatnonzero((self.state_of_large == FREE) & reachable)

    @property
    def state_of_large(self) -> npt.NDArray[np.uint8]:
        return self.state.reshape(-1, self.pages_per_large)

    def open_pages(self, row: int) -> int:
        """Small pages left in the row's open run."""
        return int(self.limit[row] - self.cursor[row])

    # ---- taking ----------------------------------------------------------------------------

    def take(
        self, rows: Sequence[int], counts: Sequence[int], *, roomy: bool, apart: bool
    ) -> IntArray:
        """``counts[i]`` pages for ``rows[i]``, row after row.

        Each row's own run first, then fresh pages or holes as ``roomy`` says; ``apart``: where rows
        share large pages, whole ones for what fills them.
        """
        if not any(counts):
            return NO_IDS
        if roomy and not self.packs and len(rows) > _FEW_ROWS:
            return self._take_runs(np.array(rows, dtype=np.int64), np.array(counts, dtype=np.int64))
        heirs = roomy or self._has_holes_for_runs(len(rows), sum(counts))
        parts = []
        for row, count in zip(rows, counts, strict=True):
            own = min(count, self.open_pages(row))
            if own:
                parts.append(self._take_own(row, own))
            more = count - own
            whole = more // self.pages_per_large * self.pages_per_large
            if self.packs and apart and whole:
                parts.append(self._take_fresh(whole, None))
                more -= whole
            if more:
                parts.append(self._take_more(more, row if heirs else None))
        return join(parts)

    def _has_holes_for_runs(self, num_rows: int, count: int) -> bool:
        """Whether rows share large pages, and holes serve ``count`` pages and a run for each."""
        return self.packs and self.num_holes >= count + num_rows * self.run

    def take_holes_first(self, count: int) -> IntArray:
        """``count`` pages outside every run; free large pages only where holes are short."""
        return self._take_more(count, None)

    def _take_own(self, row: int, count: int) -> IntArray:
        start = int(self.cursor[row])
        self.state[start : start + count] = USED
        self.cursor[row] += count
        self.reserved -= count
        self.used += count
        return np.arange(start, start + count, dtype=np.int64)

    def _take_runs(self, rows: IntArray, counts: IntArray) -> IntArray:
        """Own runs, then free large pages, whose rest becomes the row's run; all rows at once."""
        n = self.pages_per_large
        start = self.cursor[rows]
        own = np.minimum(counts, self.limit[rows] - start)
        num_own = int(own.sum())
        more = counts - own if num_own else counts
        self.cursor[rows] = start + own
        num_large = -(-more // n)
        last = num_large.cumsum() - 1
        large = self.large.take(self.index, int(last[-1]) + 1)
        self.num_taken[large] = n
        self.state_of_large[large] = USED
        given = large
        if n > 1:  # the first ``more`` of a row are handed out, the rest of its pages is its run
            rest = num_large * n - more
            opened = rest.nonzero()[0]
            rest, limits = rest[opened], (large[last[opened]] + 1) * n
            self.limit[rows[opened]] = limits
            self.cursor[rows[opened]] = limits - rest
            self.state[ranges(limits - rest, rest)] = RESERVED
            is_given = np.ones((len(large), n), dtype=np.bool_)
            is_given.reshape(-1)[ranges((last[opened] + 1) * n - rest, rest)] = False
            given = (large[:, None] * n + self._offsets)[is_given]
            self.reserved += int(rest.sum())
        self.used += len(given) + num_own
        self.reserved -= num_own
        if not num_own:
            return given
        ids = ranges(start, counts)
        of_run = ids < (start + own).repeat(counts)
        self.state[ids[of_run]] = USED
        ids[~of_run] = given
        return ids

    def step(self, rows: IntArray, ids: IntArray, short: IntArray, roomy: bool) -> None:
        """One page per row, written into ``ids``, which holds the rows' cursors.

        ``short`` are the positions in ``rows`` whose run is used up: they open new ones.
        """
        if len(short):
            ids[short] = self._open_runs(rows[short], roomy)
        self.cursor[rows] = ids + 1
        self.state[ids] = USED
        bumped = len(ids) - len(short)
        self.used += bumped
        self.reserved -= bumped

    def _open_runs(self, rows: IntArray, roomy: bool) -> IntArray:
        """The first page of a new run for each row; cursors are left to :meth:`step`."""
        if roomy and not self.packs:
            n = self.pages_per_large
            large = self.large.take(self.index, len(rows))
            first = large * n
            if n > 1:  # else nothing but the page that step() hands out
                self.state_of_large[large] = RESERVED
            self.num_taken[large] = n
            self.used += len(rows)
            self.reserved += len(rows) * (n - 1)
            self.limit[rows] = first + n
            return first
        if not roomy and not self._has_holes_for_runs(len(rows), len(rows)):
            ids = self._take_more(len(rows), None)
            self.limit[rows] = ids + 1  # single pages: no run to bump through
            return ids
        ids = np.array([self._take_more(1, row)[0] for row in rows.tolist()])
        alone = self.cursor[rows] == self.limit[rows]  # no run followed the page
        self.limit[rows[alone]] = ids[alone] + 1
        return ids

    def _take_more(self, count: int, heir: int | None) -> IntArray:
        """``count`` pages from outside open runs.

        Pages that follow the last one become the run of the row ``heir``, whose own is used up.
        Nobody inherits on the tight path: the rest of the same demand counts on holes.
        """
        if (heir is not None and not self.packs) or not self.num_holes:
            return self._take_fresh(count, heir)
        holes = self._take_holes(count, heir)
        if len(holes) == count:
            return holes
        return join([holes, self._take_fresh(count - len(holes), heir)])

    def _take_fresh(self, count: int, heir: int | None) -> IntArray:
        ids = self._own_large(-(-count // self.pages_per_large))
        return self._hand_out(ids, count, len(ids) - count, heir)

    def _own_large(self, count: int) -> IntArray:
        """The small pages of ``count`` more large pages; the caller takes or vacates them all."""
        large = self.large.take(self.index, count)
        self.num_taken[large] = self.pages_per_large
        return (large[:, None] * self.pages_per_large + self._offsets).reshape(-1)

    def _take_holes(self, count: int, heir: int | None) -> IntArray:
        """Up to ``count`` holes, fullest large page first, so that emptier ones drain.

        Where rows share large pages: see :mod:`sglang_jenga.core.holes`.
        """
        n = self.pages_per_large
        if self.packs:
            owned = self.large.pages_of(self.index)
            near = -1 if heir is None else (int(self.limit[heir]) - 1) // n  # -1: it has no page
            run = 0 if heir is None else self.run
            holes = n - self.num_taken[owned]
            large = choose_pages(owned, holes, count=count, run=run, near=near)
            found = len(large) * n - int(self.num_taken[large].sum())
            self.num_taken[large] = n
        else:
            large, found = self._fullest_pages(count)
        at = np.flatnonzero(self.state_of_large[large] == FREE)[: count + self.run]
        return self._hand_out(large[at // n] * n + at % n, count, max(0, found - count), heir)

    def _fullest_pages(self, count: int) -> tuple[IntArray, int]:
        """Large pages with ``count`` holes or all there are, now taken, and how many they have."""
        pages: list[int] = []
        found = 0
        while found < count and self.partial:
            free, page = heapq.heappop(self.partial)
            if self.pages_per_large - int(self.num_taken[page]) == free:  # else it is outdated
                self.num_taken[page] = self.pages_per_large
                pages.append(page)
                found += free
        return np.array(pages, dtype=np.int64), found

    def _hand_out(self, ids: IntArray, count: int, spare: int, heir: int | None) -> IntArray:
        """The first ``count`` of ``ids``; ``spare`` more pages of the last one's large page remain.

        ``ids`` goes on with those, as far as a run can reach.
        """
        given = ids[:count]
        self.state[given] = USED
        self.used += len(given)
        if spare and heir is not None:
            after = ids[count : count + self.run]
            length = len(after)
            if int(after[-1]) - int(given[-1]) != length:  # there are pages in use between them
                length = int((after == given[-1] + 1 + np.arange(length)).sum())
            if length:
                self.state[after[:length]] = RESERVED
                self.cursor[heir] = after[0]
                self.limit[heir] = after[0] + length
                self.reserved += length
                spare -= length
        if spare:
            self._vacate(int(given[-1]) // self.pages_per_large, spare)
        return given

    # ---- making room -----------------------------------------------------------------------

    def missing(self, rows: IntArray, counts: IntArray) -> int:
        """Pages of this demand that neither the rows' own runs nor holes can serve."""
        return max(0, int(self._beyond_runs(rows, counts).sum()) - self.num_holes)

    def large_pages_apart(self, rows: IntArray, counts: IntArray) -> int:
        """Large pages this demand takes if rows that share large pages get whole ones first."""
        beyond = self._beyond_runs(rows, counts)
        n = self.pages_per_large
        whole = int((beyond // n).sum()) if self.packs else 0
        return whole - (-max(0, int(beyond.sum()) - whole * n - self.num_holes) // n)

    def _beyond_runs(self, rows: IntArray, counts: IntArray) -> IntArray:
        return np.maximum(counts - (self.limit[rows] - self.cursor[rows]), 0)

    def cut_runs(self, rows: IntArray, counts: IntArray, missing: int) -> None:
        """Turn ``missing`` pages of open runs, or all there are, into holes, longest tail first.

        What ``rows`` are about to take from their own runs (``counts``) is left alone.
        """
        if missing <= 0:
            return
        unused = self.limit - self.cursor
        unused[rows] = np.maximum(unused[rows] - counts, 0)
        for row in np.argsort(-unused, kind="stable").tolist():
            length = min(missing, int(unused[row]))
            if length == 0:
                return
            self.cut_run(row, length)
            missing -= length

    def cut_run(self, row: int, length: int) -> None:
        """Give the last ``length`` pages of the row's open run back."""
        end = int(self.limit[row])
        self.state[end - length : end] = FREE
        self.limit[row] = end - length
        self.reserved -= length
        self._vacate((end - 1) // self.pages_per_large, length)

    # ---- giving back -----------------------------------------------------------------------

    def free(self, pages: IntArray) -> None:
        """Give used pages back, in any order; empty large pages return to level 1 at once.

        Raises:
            ValueError: a page is not in use, or named twice; nothing changed.
        """
        n = self.pages_per_large
        pages = np.sort(pages, kind="stable")  # fast on runs, and ids of a request come in runs
        if pages[0] < 0 or pages[-1] >= len(self.state):
            raise ValueError(
                f"{self.name}: freeing small pages {pages[0]} to {pages[-1]}, the arena has "
                f"0 to {len(self.state) - 1}: these ids come from elsewhere"
            )
        wrong = self.state[pages] != USED
        wrong[1:] |= pages[1:] == pages[:-1]
        if wrong.any():
            raise ValueError(
                f"{self.name}: freeing {int(wrong.sum())} of {len(pages)} small pages that are "
                f"not in use, first {pages[wrong][0]}: freed twice, or ids of another kind"
            )
        self.state[pages] = FREE
        self.used -= len(pages)
        # Ascending, so the pages of one large page lie side by side: no sort, no scatter-add.
        large = pages // n
        starts = np.concatenate(([0], np.flatnonzero(large[1:] != large[:-1]) + 1, [len(large)]))
        large = large[starts[:-1]]
        left = self.num_taken[large] - (starts[1:] - starts[:-1])
        self.num_taken[large] = left
        self.large.give_back(self.index, large[left == 0])
        partly = left > 0
        for taken, page in zip(left[partly].tolist(), large[partly].tolist(), strict=True):
            heapq.heappush(self.partial, (n - taken, page))
        self._shrink_partial()

    def _vacate(self, page: int, length: int) -> None:
        """``length`` taken pages of one large page have become free."""
        self.num_taken[page] -= length
        if self.num_taken[page]:
            heapq.heappush(self.partial, (self.pages_per_large - int(self.num_taken[page]), page))
        else:
            self.large.give_back(self.index, np.array([page], dtype=np.int64))
        self._shrink_partial()

    def _shrink_partial(self) -> None:
        """Drop outdated heap entries once they outnumber the pages they could describe."""
        if len(self.partial) <= 64 + 4 * self.num_large:
            return
        pages = self.large.pages_of(self.index)
        holes = self.pages_per_large - self.num_taken[pages]
        self.partial = [(h, p) for h, p in zip(holes.tolist(), pages.tolist(), strict=True) if h]
        heapq.heapify(self.partial)
