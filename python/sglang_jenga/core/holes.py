# SPDX-License-Identifier: Apache-2.0
"""Which large pages give holes to a request, where requests share large pages by design.

A large page comes free when its last user is gone. Beside recurrent states that is what everybody
waits for, so a request should sit in few pages and in the same ones: first in the page where it
already ends, then in the fullest page that has room for all of it, and only then in several, the
emptiest first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.large_pages import IntArray


def choose_pages(pages: IntArray, holes: IntArray, *, count: int, run: int, near: int) -> IntArray:
    """Large pages with ``count`` holes or all there are, in the order in which to use them.

    Args:
        pages: ids of the kind's large pages, ascending. holes: how many holes each has.
        count: small pages asked for. run: more that would be welcome behind them.
        near: the large page where the request ends, -1 where it has none.
    """
    return pages[np.array(_choose(holes, count, run, pages == near), dtype=np.int64)]


def _choose(holes: IntArray, count: int, run: int, is_near: npt.NDArray[np.bool_]) -> list[int]:
    """The same, as positions in ``holes``."""
    chosen: list[int] = np.flatnonzero(is_near & (holes > 0)).tolist()
    missing = count - int(holes[chosen].sum())
    if missing <= 0:
        return chosen
    others = np.where(is_near, 0, holes)
    for enough in (missing + run, missing):
        roomy = np.flatnonzero(others >= enough)
        if len(roomy):
            return [*chosen, int(roomy[np.argmin(others[roomy])])]
    emptiest = np.argsort(-others, kind="stable")
    emptiest = emptiest[others[emptiest] > 0]
    needed = int(np.searchsorted(np.cumsum(others[emptiest]), missing)) + 1
    return [*chosen, *emptiest[:needed].tolist()]
