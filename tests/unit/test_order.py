# SPDX-License-Identifier: Apache-2.0
"""Which cached piece goes next, as a table.

A row gives what each kind offers: the last use of its oldest piece, ``!`` where no hit can use it
any more, ``c`` where it is cheaper than what is reachable through it, ``s`` where it is shared as
well, ``L`` where it ends a leaf.
"""

from __future__ import annotations

from typing import Any

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from sglang_jenga.core.memory import Sparing
from sglang_jenga.sglang_ext.order import WORTHLESS, EvictionOrder, Victim

FULL, WINDOW, STATE = ComponentType.FULL, ComponentType.SWA, ComponentType.MAMBA
NO_NODE: Any = None


def victim(cell: str, kind: ComponentType) -> Victim | None:
    if not cell:
        return None
    digits = cell.strip("!csL")
    last_use = WORTHLESS if "!" in cell else float(digits)
    is_leaf = kind is FULL or "L" in cell
    return Victim(node=NO_NODE, last_use=last_use, is_leaf=is_leaf, kind=kind)


def choose(
    leaf: str, window: str, state: str = "", *, sparing: Sparing = Sparing.NOTHING, **rules: Any
) -> ComponentType | None:
    starving = rules.pop("starving", FULL)
    cells = {WINDOW: window, STATE: state}
    found = EvictionOrder(**rules).choose(
        victim(leaf, FULL),
        [piece for kind, cell in cells.items() if (piece := victim(cell, kind))],
        is_cheap=lambda piece: not {"c", "s"}.isdisjoint(cells[piece.kind]),
        is_shared=lambda piece: "s" in cells[piece.kind],
        starving=lambda: starving,
        sparing=sparing,
    )
    return None if found is None else found.kind


@pytest.mark.parametrize(
    ("leaf", "window", "state", "goes"),
    [
        ("", "", "", None),
        ("5", "", "", FULL),
        ("5", "7", "9", FULL),  # one clock: the leaf was useful longest ago
        ("5", "3", "9", WINDOW),
        ("5", "3", "2", STATE),
        ("5", "3c", "", FULL),  # a cheap window keeps more reachable than it holds
        ("5", "3c", "4", STATE),  # a state has no such privilege
        ("5", "3cL", "", WINDOW),  # at a leaf it keeps nothing reachable but the leaf
        ("5", "9!", "2", WINDOW),  # nobody will miss it
        ("5!", "9!", "", WINDOW),
        ("5!", "3", "", FULL),
        ("", "3c", "", WINDOW),  # nothing else is left
        ("", "3c", "2", STATE),
    ],
)
def test_who_goes_next(leaf: str, window: str, state: str, goes: ComponentType | None) -> None:
    assert choose(leaf, window, state) == goes


@pytest.mark.parametrize(
    ("leaf", "window", "state", "decoding", "next_chunk", "newcomer", "in_case"),
    [
        ("", "3", "", WINDOW, WINDOW, WINDOW, None),
        ("", "3c", "", WINDOW, WINDOW, None, None),  # ends a running prompt
        ("", "3s", "", WINDOW, None, None, None),  # the beginning of several
        ("5", "3s", "", FULL, FULL, FULL, None),
        ("", "3s", "9", STATE, STATE, STATE, None),
        ("", "!s", "", WINDOW, WINDOW, WINDOW, WINDOW),
        ("!", "3", "", FULL, FULL, FULL, None),
        ("5", "3", "!", STATE, STATE, STATE, STATE),
    ],
)
def test_who_asks_decides_what_is_spared(
    leaf: str,
    window: str,
    state: str,
    decoding: ComponentType,
    next_chunk: ComponentType | None,
    newcomer: ComponentType | None,
    in_case: ComponentType | None,
) -> None:
    takes = [choose(leaf, window, state, sparing=sparing) for sparing in Sparing]
    assert takes == [decoding, next_chunk, newcomer, in_case]


def test_without_retention_a_cheap_window_is_as_old_as_it_is() -> None:
    assert choose("5", "3c", retention=False) is WINDOW


def test_without_balance_the_starving_kind_gives_up_its_own() -> None:
    for starving in (FULL, WINDOW, STATE):
        assert choose("5", "3", "9", balanced=False, starving=starving) is starving
    assert choose("", "3", balanced=False, starving=STATE) is WINDOW, "or whoever has something"
    assert choose("", "", balanced=False) is None
