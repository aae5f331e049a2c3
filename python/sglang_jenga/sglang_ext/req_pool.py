# SPDX-License-Identifier: Apache-2.0
"""SGLang's request table, which also tells the allocator who is about to ask.

No allocator call of SGLang 0.5.23 carries a request. But ``alloc(reqs)`` of this pool runs right
before the token allocation of the same batch, with the same requests in the same order: it leaves
their extents here for the allocator to pick up (seams 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from sglang_jenga.arena.tables import RowTable

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase


class Extent(NamedTuple):
    """Positions ``[start, end)`` of ``row`` that the next allocation fills.

    ``prefix`` holds host slot ids of ``[0, start)`` when the row is new and matched a prefix.
    ``image_tokens``: positions ``[0, image_tokens)`` are images, held by the cross kind alone.
    """

    row: int
    start: int
    end: int
    prefix: torch.Tensor | None
    image_tokens: int = 0

    @property
    def new_image_tokens(self) -> int:
        """How many of the positions are images."""
        return max(0, min(self.end, self.image_tokens) - self.start)


def image_tokens_of(req: Req) -> int:
    """Positions at the start of a request that are images (encoder-decoder models only)."""
    images = req.multimodal_inputs
    return (images.num_image_tokens or 0) if images is not None else 0


class ArenaReqToTokenPool(ReqToTokenPool):
    """``ReqToTokenPool`` with a host copy of its rows and the extents of the batch in hand.

    Its methods name the base they extend: a subclass for recurrent states also inherits SGLang's
    table for those, whose own allocation must not run.
    """

    def __init__(
        self,
        size: int,
        max_context_len: int,
        device: str,
        enable_memory_saver: bool,
        *,
        image_base: int | None = None,
    ) -> None:
        ReqToTokenPool.__init__(self, size, max_context_len, device, enable_memory_saver)
        self.rows = RowTable(self.req_to_token, image_base)
        self.num_rows = self._alloc_size
        self._arena: ArenaAllocatorBase | None = None
        self._tree_cache: Any = None
        self._extents: list[Extent] = []
        #: Host slot ids of a matched prefix by request id, left by the radix cache.
        self.matched_prefix: dict[str, torch.Tensor] = {}

    def attach(self, arena: ArenaAllocatorBase) -> None:
        """Rows that end report to ``arena``."""
        self._arena = arena

    def attach_tree(self, tree_cache: Any) -> None:
        """The cache that requests report to when they start, and that makes room for what they
        leave behind."""
        self._tree_cache = tree_cache

    def available_size(self) -> int:
        """Rows for newcomers: free ones, and those of sessions between their turns."""
        idle = 0 if self._tree_cache is None else self._tree_cache.session.num_idle
        return len(self.free_slots) + idle

    def alloc(self, reqs: list[Req]) -> list[int] | None:
        new = [not req.kv.holds_kv for req in reqs]
        if self._tree_cache is not None:
            sessions = self._tree_cache.session
            sessions.forget_candidate()
            for req in reqs:
                if sessions.borrowed_slot(req) is not None:
                    sessions.start(req.session.session_id)
            sessions.evict_for_rows(sum(new), "requests started, and rows ran out")
        has_images = self.rows.image_base is not None
        rows = ReqToTokenPool.alloc(self, reqs)
        if rows is None:
            return None
        found, self.matched_prefix = self.matched_prefix, {}
        self._extents = [
            Extent(
                row,
                req.prefix_len,
                req.extend_end,
                found.get(req.rid) if is_new else None,
                image_tokens_of(req) if has_images else 0,
            )
            for req, row, is_new in zip(reqs, rows, new, strict=True)
        ]
        if self._tree_cache is not None:
            for req, is_new in zip(reqs, new, strict=True):
                if is_new:
                    self._tree_cache.note_start(req)
        if self._arena is not None and self._arena.embeddings is not None:
            self._arena.embeddings.note_batch(reqs, rows)
        return rows

    @property
    def new_image_tokens(self) -> int:
        """Image positions that the next allocation fills."""
        return sum(extent.new_image_tokens for extent in self._extents)

    def take_extents(self, num_tokens: int) -> list[Extent]:
        """Extents of the batch whose tokens are being allocated.

        Raises:
            RuntimeError: they do not add up to ``num_tokens``; somebody else is allocating.
        """
        extents, self._extents = self._extents, []
        total = sum(extent.end - extent.start for extent in extents)
        if total != num_tokens:
            raise RuntimeError(
                f"{num_tokens} tokens asked for, the batch's requests extend by {total}: this "
                "allocation did not come from a prefill batch, which the arena does not support"
            )
        return extents

    def free_rows(self, indices: list[int]) -> None:
        ReqToTokenPool.free_rows(self, indices)
        if self._arena is not None:
            for row in indices:
                self._arena.close_row(row)
            if self._arena.embeddings is not None:
                self._arena.embeddings.forget_rows(indices)

    def clear(self) -> None:
        ReqToTokenPool.clear(self)
        self._extents = []
        self.matched_prefix.clear()


class HostRows:
    """The request table as the radix cache sees it: host rows, everything else passed on.

    SGLang's radix cache slices ``req_to_token`` rows to insert, re-point and free slots. Giving it
    the host's copy keeps every tree value a host tensor, so no tree operation waits for the device.
    """

    def __init__(self, pool: ArenaReqToTokenPool) -> None:
        self._pool = pool
        self.req_to_token = pool.rows.req_to_token

    def write(self, index: tuple[int, slice], values: torch.Tensor) -> None:
        self._pool.rows.write(index, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
