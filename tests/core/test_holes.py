# SPDX-License-Identifier: Apache-2.0
"""Where requests that share large pages get holes: few pages, the same ones, room to go on."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_jenga.core.holes import choose_pages

PAGES = [3, 5, 7, 9]


@pytest.mark.parametrize(
    ("holes", "count", "run", "near", "chosen", "why"),
    [
        ([4, 9, 6, 0], 3, 0, 7, [7], "where the request ends, although page 3 is fuller"),
        ([4, 9, 6, 0], 5, 0, -1, [7], "the fullest page with room for all of it"),
        ([4, 9, 6, 0], 5, 3, -1, [5], "and for a run behind it, if one has that"),
        ([4, 9, 6, 0], 5, 50, -1, [7], "else without the run"),
        ([4, 9, 6, 0], 8, 0, 7, [7, 3], "the rest of it in the fullest page with room"),
        ([4, 9, 6, 0], 12, 0, -1, [5, 7], "several pages: the emptiest first"),
        ([4, 9, 6, 0], 40, 0, -1, [5, 7, 3], "all there are"),
        ([4, 9, 6, 0], 2, 0, 9, [3], "its own page is full"),
        ([6, 6, 6, 6], 2, 0, 4, [3], "its own page is another kind's by now: lowest id"),
        ([0, 0, 0, 0], 2, 0, 5, [], "no holes at all"),
    ],
)
def test_which_pages(
    holes: list[int], count: int, run: int, near: int, chosen: list[int], why: str
) -> None:
    found = choose_pages(np.array(PAGES), np.array(holes), count=count, run=run, near=near)
    assert found.tolist() == chosen, why
