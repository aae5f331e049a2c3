# SPDX-License-Identifier: Apache-2.0
"""One claim about pool writes, checked on whatever device has one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from batches import make_case
from paged_cases import FULL, WINDOW, Workload


def assert_only_written_rows_changed(
    *, device: str, dtype: torch.dtype, page_tokens: int, below_bytes: int = 0
) -> None:
    """``set_kv_buffer`` of both kinds puts K and V where the views read them, other bytes stay.

    Locations are the batch's slots in the given order; location 0 of every kind is the sink, which
    the kernel may skip.
    """
    case = make_case("full 1x128, window 2x64", "prefill", page_tokens)
    workload = Workload(replace(case, below_bytes=below_bytes), device=device, dtype=dtype)
    pool, kinds = workload.pool, workload.kinds
    before = workload.buffer.bytes.clone()
    written = torch.zeros_like(before, dtype=torch.bool)
    full, window = (
        torch.from_numpy(np.concatenate(workload.slots[kind])).to(device) for kind in (FULL, WINDOW)
    )
    for layers, kind in ((kinds.full, FULL), (kinds.window, WINDOW)):
        slots = full if kind == FULL else window
        plan = workload.plan.kinds[kind]
        for layer in layers:
            k, v = (
                workload.random(len(slots), layer.num_kv_heads, dim)
                for dim in (layer.k_head_dim, layer.v_head_dim)
            )
            # A window layer writes at swa_loc; its loc is only there for the full layers.
            loc = KVWriteLoc(slots, swa_loc=slots if kind == WINDOW else None)
            pool.set_kv_buffer(SimpleNamespace(layer_id=layer.layer_id), loc, k, v)
            assert torch.equal(pool.get_key_buffer(layer.layer_id)[slots], k)
            assert torch.equal(pool.get_value_buffer(layer.layer_id)[slots], v)
            for part, values in (("k", k), ("v", v)):
                row_bytes = values[0].numel() * dtype.itemsize
                start = slots * plan.slot_bytes + plan.row_offset_bytes(layer.layer_id, part)
                rows = start[:, None] + torch.arange(row_bytes, device=device)
                written[rows.flatten()] = True
    changed = workload.buffer.bytes != before
    assert not (changed & ~written).any(), "a write reached bytes outside of its rows"
    assert (changed & written).any(), "nothing was written"
