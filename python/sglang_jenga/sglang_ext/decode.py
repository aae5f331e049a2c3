# SPDX-License-Identifier: Apache-2.0
"""Decode-step allocation with request identity, registered in SGLang's per-device table.

SGLang looks the function up in ``ALLOC_FOR_DECODE_FUNCS`` by device type and hands it the batch:
rows and lengths are host tensors there, so the whole step is decided on the host:

    slide windows that are due -> one core step for the batch -> host rows -> one copy to the device
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.sglang_ext import native
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def install(device_type: str) -> None:
    """Make this the decode allocation of ``device_type`` in this process.

    Unless it is the arena's allocator's already, by a seam of SGLang.
    """
    from sglang.srt.mem_cache import allocation

    if native.DECODE in native.resolved():
        return
    allocation.ALLOC_FOR_DECODE_FUNCS[device_type] = alloc_for_decode


def alloc_for_decode(batch: ScheduleBatch, token_per_req: int) -> torch.Tensor:
    """One slot per request of a decode batch. ``[batch]`` int64 full slot ids on the device."""
    arena = batch.token_to_kv_pool_allocator
    if not isinstance(arena, ArenaAllocatorBase):  # another model in the same process
        from sglang.srt.mem_cache.allocation import alloc_for_decode_default

        return alloc_for_decode_default(batch, token_per_req)
    if token_per_req != 1:
        raise RuntimeError(f"{token_per_req} tokens per request and step: speculation is refused")
    rows = batch.req_pool_indices_cpu.numpy()
    try:
        slots = decode_step(arena, batch.tree_cache, batch.reqs, rows, batch.seq_lens_cpu.numpy())
    except Exhausted as error:
        raise RuntimeError(f"arena: decode allocation failed after its check: {error}") from error
    out_cache_loc = to_device(slots, arena.torch_device)
    if not arena.rows.shared:
        # In encoder-decoder models lengths count text; images come before it in the row.
        lens = batch.seq_lens if arena.cross_kind is None else batch.seq_lens + batch.encoder_lens
        batch.req_to_token_pool.write((batch.req_pool_indices, lens), out_cache_loc.to(torch.int32))
    return out_cache_loc


def decode_step(
    arena: ArenaAllocatorBase,
    tree_cache: Any,
    reqs: Sequence[Req],
    rows: IntArray,
    seq_lens: IntArray,
) -> IntArray:
    """Slide the windows that are due, then one more slot per request, all on the host.

    ``rows`` and ``seq_lens`` (tokens before this step) belong to ``reqs``, in order. Returns full
    slot ids, ``[len(reqs)]`` int64.

    Raises:
        Exhausted: ``check_decode_capacity`` was not asked or lied.
    """
    if len(arena.token_kinds) > 1:
        _slide_windows(arena, tree_cache, reqs, rows, seq_lens)
    slots = arena.decode(rows, seq_lens)
    for req in reqs:
        req.kv.kv_allocated_len += 1
        req.kv.kv_committed_len += 1
    return slots


def _slide_windows(
    arena: ArenaAllocatorBase,
    tree_cache: Any,
    reqs: Sequence[Req],
    rows: IntArray,
    seq_lens: IntArray,
) -> None:
    """Give back window slots of requests whose window moved far enough.

    ``slide_at`` says per row when to look again, so a step looks only at rows that are due.
    """
    due = np.flatnonzero(seq_lens >= arena.slide_at[rows])
    if not len(due):
        return
    # Under overlap scheduling the request's prefill may still be running in its first step.
    sliding = [(i, reqs[i]) for i in due.tolist() if reqs[i].decode_batch_idx >= 1]
    tree_cache.slide_windows([req for _, req in sliding])
    span = tree_cache.swa_retain_window
    interval = arena.demand.slide_interval_tokens
    for i, req in sliding:
        # What nothing reads of the prompt's window stays cached, no longer pinned; past a whole
        # span that is all of it. (Upstream's opt-in SGLANG_OPT_RELEASE_PREFILL_SWA does the latter;
        # without it a request pins two windows.)
        if req.decode_batch_idx > span:
            tree_cache.release_swa_prefix_lock(req)
        else:
            tree_cache.shorten_prefix_lock(req)
        arena.slide_at[rows[i]] = int(seq_lens[i]) + interval
