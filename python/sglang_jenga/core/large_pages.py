# SPDX-License-Identifier: Apache-2.0
"""Level 1: large pages, the unit that kinds exchange (design section 4, Jenga paper section 4.2).

A large page is free, the sink, or owned by exactly one kind. Level 1 knows nothing of the
small pages inside it: level 2 (:mod:`sglang_jenga.core.allocator`) takes whole large pages from
here and brings each back as soon as its last small page is free.

Invariants (all recomputed by :meth:`LargePages.audit`):

* ``num_free + sum(num_owned(kind)) + 1 == num_large_pages`` (the 1 is the sink, large page 0)
* a free page is on the free stack exactly once and has no owner
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.errors import Exhausted

IntArray = npt.NDArray[np.int64]
#: No page at all. Shared, so never written to (it has nothing to write to).
NO_IDS: IntArray = np.empty(0, dtype=np.int64)

SINK_LARGE_PAGE = 0
_FREE = -1
_SINK = -2


def join(parts: list[IntArray]) -> IntArray:
    """Ids one list after the other; may be one of ``parts`` itself."""
    return parts[0] if len(parts) == 1 else np.concatenate([NO_IDS, *parts])


def ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """``starts[i] .. starts[i] + lengths[i] - 1`` for every i, one after the other."""
    before = lengths.cumsum() - lengths
    ids: IntArray = np.arange(int(lengths.sum())) + (starts - before).repeat(lengths)
    return ids


class LargePages:
    """The free stack of large pages and the owner (kind index) of each.

    Args:
        num_large_pages: all large pages of the arena, the sink (large page 0) included.
        num_kinds: kinds are the integers ``0 .. num_kinds - 1``.

    Pages come off the stack lowest id first on a fresh arena and last-in first-out afterwards:
    decisions depend only on the sequence of calls, so tensor-parallel ranks agree.
    """

    def __init__(self, num_large_pages: int, num_kinds: int) -> None:
        if num_large_pages < 2:
            raise ValueError(f"an arena needs a sink and one more page, got {num_large_pages}")
        self.num_large_pages = num_large_pages
        self.num_kinds = num_kinds
        self._stack: IntArray = np.zeros(num_large_pages, dtype=np.int64)
        self._owner: npt.NDArray[np.int8] = np.zeros(num_large_pages, dtype=np.int8)
        #: Large pages owned by each kind.
        self.num_owned_by_kind = [0] * num_kinds
        self.num_free = 0
        self.clear()

    @property
    def num_usable(self) -> int:
        """Large pages that kinds can own: all but the sink."""
        return self.num_large_pages - 1

    def clear(self) -> None:
        """Return every page to the free stack (owners forget theirs too)."""
        self._owner.fill(_FREE)
        self._owner[SINK_LARGE_PAGE] = _SINK
        self.num_free = self.num_usable
        self._stack[: self.num_free] = np.arange(self.num_usable, 0, -1, dtype=np.int64)
        self.num_owned_by_kind = [0] * self.num_kinds

    def num_owned(self, kind: int) -> int:
        """Large pages owned by ``kind``."""
        return self.num_owned_by_kind[kind]

    def reachable_by(self, kind: int) -> npt.NDArray[np.bool_]:
        """Per large page: whether it is free or owned by ``kind``."""
        mask: npt.NDArray[np.bool_] = (self._owner == _FREE) | (self._owner == kind)
        return mask

    def pages_of(self, kind: int) -> IntArray:
        """Ids of the large pages that ``kind`` owns, ascending."""
        return np.flatnonzero(self._owner == kind)

    def take(self, kind: int, count: int) -> IntArray:
        """Give ``count`` free large pages to ``kind``; all or nothing.

        Raises:
            Exhausted: fewer than ``count`` pages are free.
        """
        if count > self.num_free:
            raise Exhausted(
                f"{count} large pages asked for, {self.num_free} of {self.num_usable} are free"
            )
        pages = self._stack[self.num_free - count : self.num_free][::-1].copy()
        self.num_free -= count
        self._owner[pages] = kind
        self.num_owned_by_kind[kind] += count
        return pages

    def give_back(self, kind: int, pages: IntArray) -> None:
        """Return empty large pages of ``kind``. No page may appear twice."""
        count = len(pages)
        if count == 0:
            return
        self._owner[pages] = _FREE
        self._stack[self.num_free : self.num_free + count] = pages
        self.num_free += count
        self.num_owned_by_kind[kind] -= count

    def audit(self) -> list[str]:
        """Violations of the invariants above, empty when healthy."""
        out = []
        total = self.num_free + sum(self.num_owned_by_kind) + 1
        if total != self.num_large_pages:
            out.append(
                f"large pages: free {self.num_free} + owned {self.num_owned_by_kind} + sink 1 "
                f"= {total}, expected {self.num_large_pages}"
            )
        if self._owner[SINK_LARGE_PAGE] != _SINK:
            out.append("large pages: the sink lost its mark, padded writes would hit live data")
        stack = self._stack[: self.num_free]
        stacked = np.zeros(self.num_large_pages, dtype=np.bool_)
        stacked[stack] = True
        if np.count_nonzero(stacked) != self.num_free:
            out.append("large pages: a page is on the free stack twice")
        if self.num_free and not bool((self._owner[stack] == _FREE).all()):
            out.append("large pages: a page on the free stack has an owner")
        for kind in range(self.num_kinds):
            counted = int((self._owner == kind).sum())
            if counted != self.num_owned_by_kind[kind]:
                out.append(
                    f"large pages: kind {kind} owns {counted} pages,"
                    f" recorded {self.num_owned_by_kind[kind]}"
                )
        return out
