# SPDX-License-Identifier: Apache-2.0
"""An arena of any size on a machine without memory for it: only what is touched costs any.

The operating system maps anonymous memory on first use (``MAP_NORESERVE``: without promising it),
so slots at the far end of 130 GiB cost their own pages. In front of the arena lies a guard: an
address that wrapped around below zero reads its zeros instead of ending the process.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch

from paged_cases import FULL, NAN_BYTE, WINDOW, Workload
from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.plan import ArenaPlan

#: Linux; mmap of Python 3.11 does not name it.
_MAP_NORESERVE = 0x4000
#: Furthest that a wrapped 32-bit product of up to 4-byte elements lies below the arena.
_GUARD_BYTES = 2**31 * 4


class SparseArena(ArenaBuffer):
    """The bytes of an arena, zero until written. Two of them are never the same memory."""

    def __init__(self, plan: ArenaPlan) -> None:
        self.plan = plan
        # The array holds the mapping: it lives as long as a tensor over it does.
        mapping = mmap.mmap(
            -1,
            _GUARD_BYTES + plan.arena_bytes,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
        )
        self.bytes = torch.from_numpy(np.frombuffer(mapping, dtype=np.uint8)[_GUARD_BYTES:])


class FarWorkload(Workload):
    """A batch above ``case.below_bytes`` of a sparse arena.

    Everything else in its large pages is NaN; other pages hold zeros, which no answer hides behind.
    """

    def _make_buffer(self, device: str) -> ArenaBuffer:
        return SparseArena(self.plan)

    def _poison(self) -> None:
        size = self.plan.large_page_bytes
        for kind in (FULL, WINDOW):
            per_page = self.plan.kinds[kind].slots_per_large_page
            for page in np.unique(np.concatenate(self.slots[kind]) // per_page).tolist():
                self.buffer.bytes[page * size : (page + 1) * size] = NAN_BYTE

    def far_bytes(self) -> torch.Tensor:
        """Bytes of the arena from the batch's first large page on, and nothing else that is used.
        ``[n]`` uint8, a view."""
        size = self.plan.large_page_bytes
        return self.buffer.bytes[self.case.below_bytes // size * size :]
