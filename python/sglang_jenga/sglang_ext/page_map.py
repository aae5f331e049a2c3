# SPDX-License-Identifier: Apache-2.0
"""The large pages of an arena as a short text: run lengths over cells of neighbouring large pages.

For ``/server_info``, where SGLang walks over every list item in Python: one string is nearly free.

    cells   = run (" " run)*
    run     = [length "*"] cell         so many equal cells in a row
    cell    = "-" | part ("+" part)*    "-": all its large pages are free
    part    = kind "." large_pages "." used_small_pages "." reserved_small_pages

``kind`` is an index into ``kinds`` of the snapshot. Cell ``i`` covers ``large_pages_per_cell``
large pages from ``first_large_page + i * large_pages_per_cell`` on, the last cell what is left. Up
to ``MAX_CELLS`` large pages a cell is one large page and nothing is lost; beyond, neighbours are
summed, so the text is bounded for any arena. The page of ``sglang-jenga map`` reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.core.page_states import PageStates, page_states

#: Cells of a map at most. A page of them is a square of 64 x 64.
MAX_CELLS = 4096


def large_page_map(allocator: ArenaAllocator, max_cells: int = MAX_CELLS) -> dict[str, Any]:
    """The map as JSON-ready data."""
    pages = page_states(allocator)
    num_pages = len(pages.owner)
    pages_per_cell = -(-num_pages // max_cells)
    columns = _columns(pages, pages_per_cell)
    changed = np.any(columns[:, 1:] != columns[:, :-1], axis=0)
    starts = np.concatenate(([0], np.flatnonzero(changed) + 1))
    num_cells = columns.shape[1]
    lengths = np.diff(starts, append=num_cells)
    return {
        "first_large_page": pages.first_large_page,
        "large_pages": num_pages,
        "large_pages_per_cell": pages_per_cell,
        "small_pages_per_large_page": list(pages.small_pages_per_large_page),
        "cells": _text(columns[:, starts], lengths),
    }


def _columns(pages: PageStates, pages_per_cell: int) -> IntArray:
    """Three rows for each kind (large pages, used, reserved small pages), one column per cell."""
    starts = np.arange(0, len(pages.owner), pages_per_cell)
    rows: list[npt.NDArray[Any]] = []
    for kind in range(len(pages.small_pages_per_large_page)):
        mine = pages.owner == kind
        for values in (mine, pages.used_small_pages * mine, pages.reserved_small_pages * mine):
            rows.append(np.add.reduceat(values.astype(np.int64), starts))
    return np.array(rows, dtype=np.int64)


def _text(columns: IntArray, lengths: IntArray) -> str:
    known: dict[tuple[int, ...], str] = {}
    runs = []
    for key, length in zip(zip(*columns.tolist(), strict=True), lengths.tolist(), strict=True):
        cell = known.get(key)
        if cell is None:
            cell = known[key] = _cell(key)
        runs.append(cell if length == 1 else f"{length}*{cell}")
    return " ".join(runs)


def _cell(numbers: tuple[int, ...]) -> str:
    parts = [
        f"{kind // 3}.{numbers[kind]}.{numbers[kind + 1]}.{numbers[kind + 2]}"
        for kind in range(0, len(numbers), 3)
        if numbers[kind]
    ]
    return "+".join(parts) or "-"
