# SPDX-License-Identifier: Apache-2.0
"""The invariants of level 2, recomputed from scratch (design section 4)."""

from __future__ import annotations

import numpy as np

from sglang_jenga.core.large_pages import NO_IDS
from sglang_jenga.core.small_pages import FREE, RESERVED, USED, SmallPages


def audit_small_pages(kind: SmallPages) -> list[str]:
    """Violations of the invariants of :mod:`sglang_jenga.core.small_pages`; empty when healthy."""
    n = kind.pages_per_large
    used = int((kind.state == USED).sum())
    reserved = int((kind.state == RESERVED).sum())
    owned = kind.large.pages_of(kind.index)
    taken = (kind.state_of_large != FREE).sum(axis=1)
    elsewhere = int(taken.sum() - taken[owned].sum())
    empty = owned[taken[owned] == 0].tolist()
    rows = np.flatnonzero(kind.cursor != kind.limit)
    crossing = rows[kind.cursor[rows] // n != (kind.limit[rows] - 1) // n].tolist()
    runs = [np.arange(kind.cursor[row], kind.limit[row]) for row in rows]
    tails = np.sort(np.concatenate([NO_IDS, *runs]))
    listed = set(kind.partial)
    holed = [page for page in owned.tolist() if taken[page] < n]
    lost = [page for page in holed if (n - int(taken[page]), page) not in listed]
    checks = (
        (
            (used, reserved) != (kind.used, kind.reserved),
            f"marked: {used} used, {reserved} reserved; recorded: {kind.used}, {kind.reserved}",
        ),
        (elsewhere, f"{elsewhere} small pages taken outside its large pages"),
        (empty, f"owns empty large pages {empty[:4]}"),
        (
            not np.array_equal(taken, kind.num_taken),
            "counts per large page disagree with the states of its small pages",
        ),
        (
            not np.array_equal(tails, np.flatnonzero(kind.state == RESERVED)),
            f"open runs hold {len(tails)} small pages, other than the {reserved} reserved ones",
        ),
        (crossing, f"open runs of rows {crossing[:4]} leave their large page"),
        (lost, f"large pages {lost[:4]} have holes that are not listed"),
    )
    return [f"{kind.name}: {line}" for broken, line in checks if broken]
