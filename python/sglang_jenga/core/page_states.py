# SPDX-License-Identifier: Apache-2.0
"""What lies in each large page: the kind that owns it, and its small pages by state.

Read-only, and made from the sums that the allocator keeps anyway (small pages taken per large page)
and from the open runs, so it costs a few passes over the large pages, not over the small ones.

Whether a used small page is held by a running request or cached is not known per page: the prefix
tree knows its slots by node, and asking each node costs time that grows with the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.large_pages import SINK_LARGE_PAGE, IntArray

#: Owner of a large page that no kind owns.
NO_KIND = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PageStates:
    """One entry per usable large page; entry ``i`` is large page ``first_large_page + i``.

    owner: index of the kind in the plan, ``NO_KIND``: the large page is free.
    used_small_pages, reserved_small_pages: of the owner's size; 0 in free large pages. What is left
        of ``small_pages_per_large_page[owner]`` are holes.
    """

    first_large_page: int
    small_pages_per_large_page: tuple[int, ...]
    owner: npt.NDArray[np.int8]
    used_small_pages: IntArray
    reserved_small_pages: IntArray


def page_states(allocator: ArenaAllocator) -> PageStates:
    """The large pages of ``allocator``, the sink aside, in the order of their addresses."""
    first = SINK_LARGE_PAGE + 1
    num_large_pages = allocator.large.num_large_pages
    owner: npt.NDArray[np.int8] = np.full(num_large_pages, NO_KIND, dtype=np.int8)
    taken: IntArray = np.zeros(num_large_pages, dtype=np.int64)
    reserved: IntArray = np.zeros(num_large_pages, dtype=np.int64)
    for kind in allocator.small_pages:
        pages = allocator.large.pages_of(kind.index)
        owner[pages] = kind.index
        taken[pages] = kind.num_taken[pages]
        rows = (kind.limit > kind.cursor).nonzero()[0]
        # An open run lies in one large page; several rows may have theirs in the same one.
        np.add.at(
            reserved,
            kind.cursor[rows] // kind.pages_per_large,
            kind.limit[rows] - kind.cursor[rows],
        )
    return PageStates(
        first_large_page=first,
        small_pages_per_large_page=tuple(k.pages_per_large for k in allocator.small_pages),
        owner=owner[first:],
        used_small_pages=(taken - reserved)[first:],
        reserved_small_pages=reserved[first:],
    )
