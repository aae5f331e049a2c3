# SPDX-License-Identifier: Apache-2.0
"""The allocator of models with full and windowed (or chunked) layers.

A token's slot in the full kind is its name everywhere in SGLang; the :class:`Translation` says
which window slot belongs to it, page by page, for as long as the window holds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator

from sglang_jenga.arena.tables import Translation
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.sglang_ext.allocator import (
    FULL_INDEX,
    WINDOW_INDEX,
    ArenaAllocatorBase,
)
from sglang_jenga.sglang_ext.kind_face import KindFace


class HybridArenaAllocator(ArenaAllocatorBase, SWATokenToKVPoolAllocator):
    """Models with full layers and windowed (or chunked) layers."""

    free_pages = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        num_slots = self.plan.num_slots(self.plan.kinds[FULL_INDEX].spec.name)
        self.translation = Translation(num_slots, self.torch_device)
        self.full_to_swa_index_mapping = self.translation.device_table
        self._kvcache.register_mapping(self.full_to_swa_index_mapping)
        self.full_attn_allocator = KindFace(self, FULL_INDEX)
        self.swa_attn_allocator = KindFace(self, WINDOW_INDEX)
        self._swa_ring_cost = 0

    @property
    def size(self) -> int:
        return self.usable_slots(FULL_INDEX)

    @property
    def size_full(self) -> int:
        return self.usable_slots(FULL_INDEX)

    @property
    def size_swa(self) -> int:
        return self.usable_slots(WINDOW_INDEX)

    def full_available_size(self) -> int:
        return self.full_attn_allocator.available_size()

    def swa_available_size(self) -> int:
        return self.swa_attn_allocator.available_size()

    def new_pages_available(self, num_full_pages: int, num_swa_pages: int) -> bool:
        demand = self.demand_of(0)
        demand[FULL_INDEX], demand[WINDOW_INDEX] = num_full_pages, num_swa_pages
        return self.core.fits(demand)

    def swa_capacity_and_available(
        self, *, full_capacity: int, swa_capacity: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Per kind: capacity at this moment (available + used) and what is available."""
        full, window = self.full_available_size(), self.swa_available_size()
        return (
            (full + self.used_slots(FULL_INDEX), full),
            (window + self.used_slots(WINDOW_INDEX), window),
        )

    # ---- pairing of full and window slots --------------------------------------------------

    def _pair(self, pages: list[IntArray]) -> None:
        full, window = pages[FULL_INDEX], pages[WINDOW_INDEX]
        if self.page_size > 1:
            full, window = self._page_slots(full), self._page_slots(window)
        self.translation.set(full, window)

    def set_full_to_swa_mapping(
        self, full_indices: torch.Tensor, swa_indices: torch.Tensor
    ) -> None:
        self.translation.set(self._host_ids(full_indices), self._host_ids(swa_indices))

    def clear_full_to_swa_mapping(self, full_indices: torch.Tensor) -> None:
        if full_indices.numel():
            self.translation.forget(self._host_ids(full_indices))

    def translate_swa_indices_for_transfer(self, kv_indices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.translation.host[self._host_ids(kv_indices)])

    def clear(self) -> None:
        super().clear()
        self.translation.clear()

    # ---- giving back -----------------------------------------------------------------------

    def _free_full_pages(self, pages: IntArray) -> None:
        self._free_window_of(pages)
        self.core.free(FULL_INDEX, pages)

    def _free_window_of(self, full_pages: IntArray) -> None:
        """Free the window pages paired with these full pages."""
        heads = full_pages * self.page_size
        window = self.translation.host[heads]
        if not bool((window > 0).all()):
            raise ValueError("freeing a window slot that is already gone")
        self.translation.forget(self._page_slots(full_pages) if self.page_size > 1 else heads)
        self.core.free(WINDOW_INDEX, window // self.page_size)

    def free_swa(self, free_index: torch.Tensor) -> None:
        if free_index.numel():
            self._free_window_of(np.unique(self._host_ids(free_index) // self.page_size))

    def free_swa_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        self.check_start(start_pos)
        if free_index.numel():
            self._free_window_of(self.segment_pages(free_index))

    def free_full(self, free_index: torch.Tensor) -> None:
        if free_index.numel():
            self._free_full_only(np.unique(self._host_ids(free_index) // self.page_size))

    def free_full_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        self.check_start(start_pos)
        if free_index.numel():
            self._free_full_only(self.segment_pages(free_index))

    def _free_full_only(self, pages: IntArray) -> None:
        if bool((self.translation.host[pages * self.page_size] > 0).any()):
            raise ValueError("freeing a full slot whose window slot is still held")
        self.core.free(FULL_INDEX, pages)
