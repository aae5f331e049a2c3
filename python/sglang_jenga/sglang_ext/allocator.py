# SPDX-License-Identifier: Apache-2.0
"""Jenga's allocator behind SGLang's token-to-KV allocator interface.

Units: SGLang speaks tokens and slot ids; the core speaks small pages of ``page_size`` slots. Kinds
are indexed as in the plan: the full kind is 0, the window kind, where there is one, is 1, and kinds
without a slot per token of text (images in cross layers, recurrent states) come last.

Every id array on these paths lives on the host; a device tensor is made from it once, by an
asynchronous copy, for the kernels. Nothing here reads a device tensor back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.core.memory import ArenaMemory, Sparing
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.sglang_ext.explain import Eviction
from sglang_jenga.sglang_ext.idle_audit import IdleAudit
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool, Extent
from sglang_jenga.sglang_ext.starvation import Starvation

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import KVCache

    from sglang_jenga.sglang_ext.embeddings import ArenaEmbeddings

logger = logging.getLogger(__name__)

FULL_INDEX = 0
WINDOW_INDEX = 1


class ArenaAllocatorBase(ArenaMemory, BaseTokenToKVPoolAllocator):
    """What one kind and two kinds have in common. See the module docstring for units."""

    starvation: Starvation

    #: Members of a beam free single slots of one row; here a run of slots has one owner.
    supports_beam_search = False

    def __init__(
        self,
        plan: ArenaPlan,
        kvcache: KVCache,
        req_pool: ArenaReqToTokenPool,
        demand: DemandModel,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        # Upstream constructors build free lists of their own: not called.
        ArenaMemory.__init__(self, plan, demand, num_rows=req_pool.num_rows)
        self.dtype = dtype
        self.device = device
        self.torch_device = torch.device(device)
        self._kvcache = kvcache
        self.need_sort = False
        self.release_pages = None
        self.free_group: list[torch.Tensor] | None = None
        #: The cache over the vision kind, where there is one.
        self.embeddings: ArenaEmbeddings | None = None
        self.req_pool = req_pool
        self.rows = req_pool.rows
        self.starvation = Starvation(kind.spec.name for kind in plan.kinds)
        self._idle_audit = IdleAudit(self.core)
        self._offsets = np.arange(self.page_size, dtype=np.int64)
        req_pool.attach(self)

    # ---- capacity, in tokens ---------------------------------------------------------------

    def available_size(self) -> int:
        """Tokens that could be extended now in every kind at once."""
        low = 0
        high = min(self.core.num_available(kind) for kind in self.token_kinds)
        while low < high:
            middle = (low + high + 1) // 2
            if self.core.fits(self.demand_of(middle)):
                low = middle
            else:
                high = middle - 1
        return low * self.page_size

    def max_new_tokens_for_memory(
        self,
        input_tokens: int,
        max_new_tokens: int,
        *,
        token_capacity: int,
        sliding_window_size: int | None,
        chunk_size: int | None,
    ) -> int | None:
        longest = min(token_capacity, self.demand.longest_request_tokens)
        room = longest - input_tokens - self.page_size
        return None if room < 0 else min(max_new_tokens, room)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    # ---- making room -----------------------------------------------------------------------

    def reclaim(
        self,
        tree_cache: Any,
        small_pages: Sequence[int],
        *,
        cause: str = "SGLang asked for room",
        sparing: Sparing = Sparing.NOTHING,
    ) -> bool:
        """Evict cached slots, least valuable first, until the demand fits. False: it cannot.

        ``cause``: who asks, for those who will miss what goes. ``sparing``: what it leaves rather
        than take.
        """
        if self.core.fits_apart(small_pages):
            return True
        if tree_cache is None:
            return self.core.fits(small_pages)
        tree_cache.evict_until(
            lambda: self.core.fits_apart(small_pages),
            sparing=sparing,
            why=lambda: Eviction(cause=cause, starving_kind=self.core.starving_kind(small_pages)),
        )
        return self.core.fits(small_pages)

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> bool | None:
        return self.reclaim(tree_cache, self.demand_of(self._pages(num_tokens)))

    def get_extend_allocation_demand(
        self,
        prefix_lens_cpu: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        *,
        conservative_num_tokens: int,
        shard_size: int,
    ) -> int:
        page = self.page_size
        pages = (seq_lens_cpu + page - 1) // page - (prefix_lens_cpu + page - 1) // page
        return int(pages.sum()) * page

    def check_decode_capacity(
        self,
        *,
        num_tokens: int,
        tree_cache: Any,
        requests: Sequence[Any] | None = None,
        spec_algorithm: Any = None,
    ) -> bool:
        num_pages = self._pages(num_tokens)
        if requests is not None and self.page_size > 1:
            num_pages = sum(req.kv.kv_allocated_len % self.page_size == 0 for req in requests)
        demand = self.demand_of(num_pages)
        if tree_cache is not None:
            tree_cache.session.forget_candidate()
        if self.reclaim(tree_cache, demand, cause="running requests decoded"):
            return True
        if self.state_kind is not None and requests is not None:
            # Snapshots of running requests only save work later: they go before a request does.
            self.req_pool.drop_snapshots(requests)
            if self.core.fits(demand):
                return True
        self.is_short = True
        self.starvation.note_shortage(self, tree_cache, demand)
        return False

    def create_prefill_budget(self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> Any:
        from sglang_jenga.sglang_ext.admission import ArenaPrefillBudget

        tree_cache.session.forget_candidate()
        if tree_cache.starts_over:
            tree_cache.start_over()
        return ArenaPrefillBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    # ---- allocation ------------------------------------------------------------------------

    def alloc(self, need_size: int) -> torch.Tensor | None:
        return self._extend(self.req_pool.take_extents(need_size))

    def alloc_extend(
        self,
        prefix_lens: torch.Tensor,
        prefix_lens_cpu: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        last_loc: torch.Tensor,
        extend_num_tokens: int,
    ) -> torch.Tensor | None:
        return self._extend(self.req_pool.take_extents(extend_num_tokens))

    def alloc_decode(
        self, seq_lens: torch.Tensor, seq_lens_cpu: torch.Tensor, last_loc: torch.Tensor
    ) -> torch.Tensor | None:
        raise RuntimeError("decode batches allocate through sglang_jenga.sglang_ext.decode")

    def _new_pages(self, extents: list[Extent]) -> list[int]:
        page = self.page_size
        if page == 1:
            return [extent.end - extent.start for extent in extents]
        return [-(-extent.end // page) - -(-extent.start // page) for extent in extents]

    def pages_of(self, extents: list[Extent]) -> int:
        """Small pages that filling these extents takes in each kind that grows by tokens."""
        return sum(self._new_pages(extents))

    def _extend(self, extents: list[Extent]) -> torch.Tensor | None:
        rows = [extent.row for extent in extents]
        counts = self._new_pages(extents)
        none = [0] * len(rows)
        try:
            pages = self.core.extend(
                rows, [counts if k in self.token_kinds else none for k in self.kinds]
            )
        except Exhausted as error:
            # Admission reserved this very demand: reaching here is a bug worth its numbers.
            logger.error("arena: prefill allocation failed: %s", error)
            return None
        self._pair(pages)
        slots = self._slots_of_extents(extents, counts, pages[FULL_INDEX])
        self._write_rows(extents, slots)
        return to_device(slots, self.torch_device)

    def _slots_of_extents(
        self, extents: list[Extent], counts: list[int], pages: IntArray
    ) -> IntArray:
        """Full slot ids of every extent's tokens, request after request."""
        if self.page_size == 1:
            return pages
        parts = []
        taken = 0
        for extent, count in zip(extents, counts, strict=True):
            begun = -extent.start % self.page_size  # tokens that still fit the last page
            begun = min(begun, extent.end - extent.start)
            if begun:
                last = int(self.rows.host[extent.row, extent.start - 1])
                parts.append(np.arange(last + 1, last + 1 + begun, dtype=np.int64))
            new = self._page_slots(pages[taken : taken + count])
            parts.append(new[: extent.end - extent.start - begun])
            taken += count
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _page_slots(self, pages: IntArray) -> IntArray:
        return (pages[:, None] * self.page_size + self._offsets).reshape(-1)

    def _write_rows(self, extents: list[Extent], slots: IntArray) -> None:
        taken = 0
        table = self.rows.host
        slots = slots.astype(table.dtype)  # once, not row by row
        for row, start, end, prefix, _ in extents:
            if prefix is not None:
                table[row, :start] = prefix[:start].numpy()
            more = taken + end - start
            table[row, start:end] = slots[taken:more]
            self.row_tokens[row] = end
            self.slide_at[row] = 0
            taken = more

    def decode(self, rows: IntArray, seq_lens: IntArray) -> IntArray:
        """One more token for each row; returns its full slot id. ``seq_lens``: tokens before it.

        Raises:
            Exhausted: ``check_decode_capacity`` was not asked or lied.
        """
        if self.page_size == 1:
            pages = self.core.step(rows, self.token_kinds)
            self._pair(pages)
            slots = pages[FULL_INDEX]
        else:
            slots = self.rows.host[rows, seq_lens - 1].astype(np.int64) + 1
            due = np.flatnonzero(seq_lens % self.page_size == 0)
            if len(due):
                pages = self.core.step(rows[due], self.token_kinds)
                self._pair(pages)
                slots[due] = pages[FULL_INDEX] * self.page_size
        self.rows.host[rows, seq_lens] = slots
        self.row_tokens[rows] = seq_lens + 1
        return slots

    def _pair(self, pages: list[IntArray]) -> None:
        """Tell the other kinds' tables which slots belong to the new full slots."""

    # ---- giving back -----------------------------------------------------------------------

    def _host_ids(self, ids: torch.Tensor) -> IntArray:
        """Ids as a host array. Only error paths hand a device tensor in, and they wait for it."""
        return ids.cpu().numpy().astype(np.int64, copy=False)

    def segment_pages(self, free_index: torch.Tensor) -> IntArray:
        """Small pages of a row segment that starts on a page boundary."""
        return self._host_ids(free_index[:: self.page_size]) // self.page_size

    def free(self, free_index: torch.Tensor) -> None:
        """Give back an arbitrary set of full slots (whole pages) and what is paired with them."""
        if free_index.numel():
            self._free_full_pages(np.unique(self._host_ids(free_index) // self.page_size))

    def free_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        self.check_start(start_pos)
        if free_index.numel():
            self._free_full_pages(self.segment_pages(free_index))

    def check_start(self, start_pos: int) -> None:
        if start_pos % self.page_size:
            raise ValueError(
                f"segment start {start_pos} is not a multiple of the page size {self.page_size}"
            )

    def _free_full_pages(self, pages: IntArray) -> None:
        self.core.free(FULL_INDEX, pages)

    def free_group_begin(self) -> None:
        # Frees are cheap host work: a group only marks its extent.
        if self.free_group is not None:
            raise RuntimeError("free groups cannot be nested")
        self.free_group = []

    def free_group_end(self) -> None:
        self.free_group = None

    def clear(self) -> None:
        self.core.clear()
        self.row_tokens.fill(0)
        self.slide_at.fill(0)
        self.free_group = None
        if self.embeddings is not None:
            self.embeddings.forget()

    # ---- reports ---------------------------------------------------------------------------

    def verify_byte_accounting(self) -> list[str]:
        """Asked on every turn of SGLang's idle loop."""
        return self._idle_audit.violations()

    def debug_print(self) -> str:
        return f"arena: {self.core.explain_holders()}\n"

    def resize(self, config: Any) -> None:
        raise NotImplementedError(
            "the arena is sized once at start; post-capture KV sizing is refused"
        )
