# SPDX-License-Identifier: Apache-2.0
"""The request table of models with recurrent states: whose state is whose.

A running request holds one state slot, its own. What it leaves for others are *snapshots*, states
at some earlier length: a prefill chunk writes one while it runs, and it passes into the tree with
the tokens (:mod:`sglang_jenga.sglang_ext.state_cache`), where it is evictable like anything cached.

    own state   admission ------- prefill ------- decode ------- end: into the tree, or free
    snapshot                |- one chunk -|- in the tree, until evicted

SGLang keeps two snapshot slots per request for its whole life ("ping-pong buffer"). Here they are
empty until a forward is about to write one; an empty one names the sink, so a write that nobody
asked for lands there. While decoding, snapshots are written only where a request's end could not
be cached otherwise (pages of several tokens): SGLang's lazy strategy takes a slot for one where one
is free, and all are dropped before a request is retracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.memory import Sparing
from sglang_jenga.core.model_kinds import StateLayers
from sglang_jenga.core.request_digest import digest_of
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool
from sglang_jenga.sglang_ext.states import SINK_SLOT, ArenaStatePool, ArenaStateSlots

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

#: Snapshot slots a request may have: the last one written, and the one being written.
_SNAPSHOTS = 2


class ArenaStateReqPool(ArenaReqToTokenPool, HybridReqToTokenPool):
    """``HybridReqToTokenPool`` over the arena.

    Args:
        snapshot_grid_tokens: prefill snapshots are taken at multiples of it (counted from the end
            of the prefix); None: the model's kernels write none ("no_buffer").
    """

    def __init__(
        self,
        size: int,
        max_context_len: int,
        device: str,
        enable_memory_saver: bool,
        *,
        buffer: ArenaBuffer,
        states: StateLayers,
        snapshot_grid_tokens: int | None,
    ) -> None:
        super().__init__(size, max_context_len, device, enable_memory_saver)
        self.mamba_allocator = ArenaStateSlots()
        self.mamba_pool = ArenaStatePool(buffer, states, self.mamba_allocator)
        self.mamba_map = {layer_id: i for i, layer_id in enumerate(states.layer_ids)}
        self.mamba_ckpt_pool = None
        self.layer_transfer_counter = None
        self.ple_window_cache = None
        self.start_layer = 0
        self.snapshot_grid_tokens = snapshot_grid_tokens
        self.enable_mamba_extra_buffer = snapshot_grid_tokens is not None
        self.enable_mamba_extra_buffer_lazy = self.enable_mamba_extra_buffer
        self.mamba_ping_pong_track_buffer_size = _SNAPSHOTS
        #: Counted by SGLang before a request starts: none is taken then.
        self.mamba_initial_tracking_slots = 0
        rows = self.req_to_token.shape[0]
        self.req_index_to_mamba_index_mapping = torch.zeros(
            rows, dtype=torch.int32, device=self.device
        )
        self.req_index_to_mamba_ping_pong_track_buffer_mapping = torch.zeros(
            (rows, _SNAPSHOTS), dtype=torch.int64, device=self.device
        )

    def attach(self, arena: ArenaAllocatorBase) -> None:
        super().attach(arena)
        self.mamba_allocator.attach(arena)

    # ---- starting a batch ------------------------------------------------------------------

    def alloc(self, reqs: list[Req]) -> list[int] | None:
        """Rows, a state for each request that has none, and what snapshots there is room for.

        Raises:
            Exhausted: a state does not fit, although admission reserved it.
        """
        new = [req for req in reqs if not req.kv.holds_mamba]
        rows = super().alloc(reqs)
        if rows is None:
            return None
        arena, kind = self.mamba_allocator.owner
        leaving = []
        if self.snapshot_grid_tokens is not None:
            _start_without_snapshots(reqs)
            leaving = [req for req in reqs if self._leaves_snapshot(req)]
            if arena.is_short:
                leaving = [req for req in leaving if self.is_looked_for(req)]
        # The batch's tokens are not allocated yet: they come before snapshots.
        pages = arena.pages_of(self._extents) if leaving else 0
        at_once = arena.core.fits_apart(arena.demand_of(pages, len(new) + len(leaving)))
        slots = arena.core.take(kind, len(new) + (len(leaving) if at_once else 0))
        for req, slot in zip(new, torch.from_numpy(slots), strict=False):
            req.kv.mamba_pool_idx = slot
            # A hit continues from a copy of the cached state, made by the first forward.
            hit = req.kv.mamba_cow_src_index is not None
            req.kv.mamba_needs_clear = not hit
        if at_once:
            for req, slot in zip(leaving, slots[len(new) :].tolist(), strict=True):
                _put(req, req.kv.mamba_next_track_idx, slot)
        else:
            self._grant_one_by_one(leaving, pages)
        self._write_mappings(rows, reqs)
        return rows

    def _grant_one_by_one(self, reqs: list[Req], pages: int) -> None:
        """A slot for each snapshot that the coming forward will take, while bytes allow."""
        arena, kind = self.mamba_allocator.owner
        for req in reqs:
            if self.make_room(req, pages):
                _put(req, req.kv.mamba_next_track_idx, int(arena.core.take(kind, 1)[0]))

    def _leaves_snapshot(self, req: Req) -> bool:
        """Whether the coming forward writes a snapshot of ``req`` that has no slot yet."""
        self._aim_at_branch(req)
        is_empty = req.kv.mamba_ping_pong_empty[req.kv.mamba_next_track_idx]
        # The kernels write none for less than a step of the grid.
        return is_empty and req.extend_len >= self.snapshot_grid_tokens

    def make_room(self, req: Req, pages: int = 0) -> bool:
        """Room for a state that ``req`` leaves behind, beside ``pages`` of each kind that grows by
        tokens. One that nobody is known to come for takes nothing but what is spare as well, and
        not even that while somebody waits for bytes."""
        arena = self.mamba_allocator.owner[0]
        is_looked_for = self.is_looked_for(req)
        if arena.is_short and not is_looked_for:
            return False
        sparing = Sparing.SHARED if is_looked_for else Sparing.ALL
        cause = f"request {digest_of(req)} left a state for others"
        demand = arena.demand_of(pages, 1)
        return arena.reclaim(self._tree_cache, demand, cause=cause, sparing=sparing)

    def is_looked_for(self, req: Req) -> bool:
        """Whether somebody is likely to continue where the chunk in hand leaves a state: at the end
        of the prompt, or where others leave it. At the end of a chunk between, who knows."""
        ends = (req.mamba_branching_seqlen or 0, len(req.full_untruncated_fill_ids))
        grid = self.snapshot_grid_tokens
        if grid is None:
            return req.extend_end in ends
        return any(req.prefix_len < end < req.extend_end + grid for end in ends)

    def _aim_at_branch(self, req: Req) -> None:
        """If the coming chunk is where the last state before ``req``'s branch can be left, name its
        place as SGLang does: whole grid steps from the chunk's beginning.

        Prefixes and chunks of any length begin anywhere, so no grid counted from 0 would do.
        """
        grid, begin, end = self.snapshot_grid_tokens, req.prefix_len, req.extend_end
        branch = req.mamba_branching_seqlen
        if grid is not None and branch is not None and begin < branch < end + grid:
            steps = (min(branch, end) - begin) // grid
            if steps:
                req.mamba_branching_seqlen = begin + steps * grid

    def _write_mappings(self, rows: list[int], reqs: list[Req]) -> None:
        """Tell kernels which row has which slots; one asynchronous copy each."""
        device = self.req_to_token.device
        index = to_device(np.array(rows, dtype=np.int64), device)
        own = np.array([int(req.kv.mamba_pool_idx) for req in reqs], dtype=np.int32)
        self.req_index_to_mamba_index_mapping.index_put_((index,), to_device(own, device))
        if self.snapshot_grid_tokens is not None:
            snapshots = np.stack([req.kv.mamba_ping_pong_track_buffer.numpy() for req in reqs])
            self.req_index_to_mamba_ping_pong_track_buffer_mapping.index_put_(
                (index,), to_device(snapshots, device)
            )

    # ---- snapshots -------------------------------------------------------------------------

    def set_mamba_ping_pong_slot(self, req: Req, idx: int, value: torch.Tensor | int) -> None:
        _put(req, idx, int(value) if torch.is_tensor(value) else SINK_SLOT)
        self._write_mappings([req.kv.req_pool_idx], [req])

    def has_snapshot(self, req: Req) -> bool:
        """Whether the last snapshot that ``req`` was to take had a slot to go to."""
        index = req.kv.mamba_last_track_idx
        return index is not None and not req.kv.mamba_ping_pong_empty[index]

    def take_snapshot(self, req: Req) -> torch.Tensor:
        """The last snapshot of ``req``, which is the caller's now. ``[1]`` host slot id."""
        index = req.kv.mamba_last_track_idx
        slot = req.kv.mamba_ping_pong_track_buffer[index : index + 1].clone()
        self.set_mamba_ping_pong_slot(req, index, -1)
        return slot

    def drop_snapshots(self, reqs: Sequence[Req]) -> None:
        """Running requests give back all they hold besides their own states."""
        holding = [req for req in reqs if not all(req.kv.mamba_ping_pong_empty or [True])]
        for req in holding:
            self._release_snapshots(req)
        if holding:
            self._write_mappings([req.kv.req_pool_idx for req in holding], holding)

    def _release_snapshots(self, req: Req) -> None:
        buffer = req.kv.mamba_ping_pong_track_buffer
        if buffer is not None:
            self.mamba_allocator.free(buffer)
            buffer.fill_(SINK_SLOT)
            req.kv.mamba_ping_pong_empty = [True] * _SNAPSHOTS
            req.kv.mamba_last_track_seqlen = req.kv.mamba_prev_track_seqlen = None

    # ---- giving back -----------------------------------------------------------------------

    def free_mamba_cache(
        self, req: Req, mamba_ping_pong_track_buffer_to_keep: int | None = None
    ) -> None:
        """The request gives up its own state and its snapshots."""
        self.mamba_allocator.free(req.kv.mamba_pool_idx.unsqueeze(0))
        self.forget_states(req)

    def forget_states(self, req: Req) -> None:
        """The request no longer has a state of its own (the tree may have it); snapshots go."""
        self._release_snapshots(req)
        kv = req.kv
        kv.mamba_pool_idx = None
        kv.mamba_ping_pong_track_buffer = kv.mamba_ping_pong_empty = None
        kv.mamba_next_track_idx = kv.mamba_last_track_idx = None
        kv.mamba_cow_src_index = None
        kv.mamba_needs_clear = False

    def clear(self) -> None:
        super().clear()
        self.req_index_to_mamba_index_mapping.zero_()
        self.req_index_to_mamba_ping_pong_track_buffer_mapping.zero_()


def _start_without_snapshots(reqs: list[Req]) -> None:
    """Those that have no place for snapshots yet get an empty one."""
    new = [req.kv for req in reqs if req.kv.mamba_ping_pong_track_buffer is None]
    if not new:
        return
    buffers = torch.full((len(new), _SNAPSHOTS), SINK_SLOT, dtype=torch.int64).unbind()
    for kv, buffer in zip(new, buffers, strict=True):
        kv.mamba_ping_pong_track_buffer = buffer
        kv.mamba_ping_pong_empty = [True] * _SNAPSHOTS
        kv.mamba_next_track_idx = kv.mamba_last_track_idx = 0
        kv.mamba_last_track_seqlen = kv.mamba_prev_track_seqlen = None


def _put(req: Req, index: int, slot: int) -> None:
    req.kv.mamba_ping_pong_track_buffer.numpy()[index] = slot
    req.kv.mamba_ping_pong_empty[index] = slot == SINK_SLOT
