# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images (video, audio), kept in the arena instead of in a cache of fixed size.

An encoder turns an image into one row per token. SGLang keeps the results, so that an image whose
K/V is not cached is not encoded again, and so that a prompt whose chunks cut an image encodes it
once. Here their rows are slots of a kind of its own:

    encoder --> rows --copy--> slots of the vision kind --gathered copy--> a forward that needs them

A forward works on copies, and every copy is work on the stream of forwards: bytes that an evicted
entry leaves are overwritten by a later forward, never under one that reads them.

Entries give way by the clock of the radix tree, whole. Those that a half-done prompt will read
again go last, when nothing else is left: encoding twice is better than waiting for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultimodalCache
from sglang.srt.mem_cache.unified_cache.components.base import get_and_increase_time_counter

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.sglang_ext.model_kinds import VISION

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One embedding. ``slots`` hold its bytes, ``result`` everything else that SGLang stored.

    ``is_new``: nobody read it yet but the forward that encoded it, which does so at once.
    """

    slots: IntArray
    result: EmbeddingResult
    shape: torch.Size
    dtype: torch.dtype
    last_use: float
    is_new: bool = True


class ArenaEmbeddings(MultimodalCache):
    """SGLang's embedding cache over slots of the vision kind.

    ``encoded``: embeddings that an encoder had to compute since start; ``reused``: those that it
    had not.
    """

    def __init__(self, buffer: ArenaBuffer, arena: ArenaAllocatorBase) -> None:
        kind = buffer.plan.kind(VISION)
        self._row_bytes = kind.spec.payload_bytes
        #: ``[num_slots, row_bytes]`` uint8 over the whole arena.
        self._view = buffer.view(kind, 0, "embed", torch.uint8, (self._row_bytes,))
        self._arena = arena
        #: Index of the vision kind in the plan.
        self.kind = buffer.plan.kinds.index(kind)
        self._tree: Any = None
        #: Least recently used first.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        #: Row of a half-done prompt -> hashes that its next chunks may read.
        self._needed: dict[int, frozenset[int]] = {}
        self.encoded = self.reused = self.evicted_slots = 0

    def attach_tree(self, tree_cache: Any) -> None:
        """The cache whose evictable slots make room for embeddings."""
        self._tree = tree_cache

    # ---- SGLang's interface ----------------------------------------------------------------

    def get(self, mm_hashes: list[int], combined_hash: int | None = None) -> EmbeddingResult | None:
        return self.get_single(self.combine_hashes(mm_hashes))

    def get_single(self, mm_hash: int | None) -> EmbeddingResult | None:
        """A copy of the embedding, None: it has to be encoded."""
        entry = None if mm_hash is None else self._entries.get(mm_hash)
        if mm_hash is None or entry is None:
            return None
        self._touch(mm_hash, entry)
        self.reused += not entry.is_new
        entry.is_new = False
        rows = self._view[to_device(entry.slots, self._view.device)]
        num_bytes = entry.shape.numel() * entry.dtype.itemsize
        flat = rows.view(-1)[:num_bytes]
        return replace(entry.result, embedding=flat.view(entry.dtype).view(entry.shape))

    def set(self, mm_hash: int, embedding: EmbeddingResult, loc: Any = None) -> bool:
        """Keep a copy; False: there is no room, which costs another run of the encoder."""
        entry = self._entries.get(mm_hash)
        if entry is not None:
            self._touch(mm_hash, entry)
            return True
        self.encoded += 1
        tensor = embedding.embedding.detach().contiguous()
        flat = tensor.view(-1).view(torch.uint8)
        num_slots = -(-flat.numel() // self._row_bytes)
        demand = self._arena.demand_of(0)
        demand[self.kind] = num_slots
        possible = self._arena.fits_once_evicted(self._tree, demand)
        if not possible or not self._arena.reclaim(self._tree, demand):
            return False
        slots = self._arena.core.take(self.kind, num_slots)
        missing = num_slots * self._row_bytes - flat.numel()
        if missing:
            flat = torch.nn.functional.pad(flat, (0, missing))
        rows = flat.view(num_slots, self._row_bytes)
        self._view.index_copy_(0, to_device(slots, self._view.device), rows)
        self._entries[mm_hash] = entry = _Entry(
            slots=slots,
            result=replace(embedding, embedding=tensor[:0]),
            shape=tensor.shape,
            dtype=tensor.dtype,
            last_use=0.0,
        )
        self._touch(mm_hash, entry)
        return True

    def _touch(self, mm_hash: int, entry: _Entry) -> None:
        entry.last_use = float(get_and_increase_time_counter())
        self._entries.move_to_end(mm_hash)

    def has(self, mm_hash: int) -> bool:
        return mm_hash in self._entries

    def free(self, mm_hash: int, mm_embedding_allocator: Any = None) -> bool:
        entry = self._entries.pop(mm_hash, None)
        if entry is None:
            return False
        self._arena.core.free(self.kind, entry.slots)
        return True

    def clear(self) -> None:
        for mm_hash in list(self._entries):
            self.free(mm_hash)

    def available_size(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self._entries)

    # ---- giving way ------------------------------------------------------------------------

    def note_batch(self, reqs: Iterable[Req], rows: Iterable[int]) -> None:
        """A prefill batch is about to run: what will its half-done prompts read after it?"""
        for req, row in zip(reqs, rows, strict=True):
            self._needed.pop(row, None)
            images = req.multimodal_inputs
            if images is None or req.extend_end >= len(req.full_untruncated_fill_ids):
                continue
            items = images.mm_items
            later = {i.hash for i in items if i.offsets and i.offsets[-1][-1] >= req.extend_end}
            if later:
                together = self.combine_hashes([item.hash for item in items])
                self._needed[row] = frozenset((*later, together))

    def forget_rows(self, rows: Iterable[int]) -> None:
        """These rows have no request any more."""
        for row in rows:
            self._needed.pop(row, None)

    def oldest(self) -> tuple[int, float] | None:
        """(hash, last use) of the entry whose last use is longest ago, but for those needed."""
        needed = frozenset().union(*self._needed.values())
        for mm_hash, entry in self._entries.items():
            if mm_hash not in needed:
                return mm_hash, entry.last_use
        return None

    def evict(self, mm_hash: int | None = None) -> bool:
        """Evict an entry; without a name the oldest, needed or not. False: there is none."""
        if mm_hash is None:
            mm_hash = next(iter(self._entries), None)
        if mm_hash is None:
            return False
        self.evicted_slots += len(self._entries[mm_hash].slots)
        return self.free(mm_hash)

    def forget(self) -> None:
        """The arena was cleared: no slot is anybody's."""
        self._entries.clear()
        self._needed.clear()
