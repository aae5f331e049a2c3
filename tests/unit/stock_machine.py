# SPDX-License-Identifier: Apache-2.0
"""SGLang's own pools and prefix cache of a model with recurrent states, driven like ours.

What a stock server hits is asked of it, not written down: requests, chunks and batches are those of
:class:`machine.Machine`, and everything below them is SGLang's.
"""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from machine import DTYPE
from state_machine import StateMachine

_FULL_LAYER, _STATE_LAYER = 0, 1


class StockMachine(StateMachine):
    """A roomy stock server: nothing it caches is ever evicted. ``snapshots``: see the base."""

    def __init__(
        self,
        *,
        snapshots: bool,
        page_tokens: int,
        context_tokens: int = 2048,
        tokens: int = 1 << 15,
        states: int = 512,
    ) -> None:
        self.device, self.page_tokens, self.chunk_tokens = "cpu", page_tokens, None
        self.snapshot_grid_tokens = 1 if snapshots else None
        self.marks = None
        shape = SimpleNamespace(conv=[(1, 2)], temporal=(1, 1, 2), conv_slice_axis=0)
        params = SimpleNamespace(
            shape=shape,
            dtype=SimpleNamespace(conv=torch.bfloat16, temporal=torch.float32),
            layers=[_STATE_LAYER],
            is_kda=False,
        )
        place: Any = {"device": self.device, "enable_memory_saver": False}
        self.rows = HybridReqToTokenPool(
            size=8,
            mamba_size=states,
            mamba_spec_state_size=1,
            max_context_len=context_tokens,
            cache_params=params,
            mamba_layer_ids=[_STATE_LAYER],
            enable_mamba_extra_buffer=snapshots,
            enable_mamba_extra_buffer_lazy=False,
            enable_overlap_schedule=snapshots,
            **place,
        )
        pool = HybridLinearKVPool(
            size=tokens,
            dtype=DTYPE,
            page_size=page_tokens,
            full_attention_layer_ids=[_FULL_LAYER],
            mamba_pool=self.rows.mamba_pool,
            head_num=1,
            head_dim=8,
            **place,
        )
        sizes: Any = {"size": tokens, "dtype": DTYPE, "device": self.device, "kvcache": pool}
        if page_tokens > 1:
            self.arena = PagedTokenToKVPoolAllocator(
                page_size=page_tokens, need_sort=False, **sizes
            )
        else:
            self.arena = TokenToKVPoolAllocator(need_sort=False, **sizes)
        self.tree = UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.arena,
                page_size=page_tokens,
                tree_components=(ComponentType.FULL, ComponentType.MAMBA),
                enable_mamba_extra_buffer=snapshots,
            )
        )
        self._names = count()

    def forward_extend(self, batch: ScheduleBatch) -> None:
        """Only what SGLang decides: where the kernels would write a state."""
        for req in batch.reqs:
            self._snapshot_length(req)
        batch._collect_deferred_mamba_cow_and_clear(batch.reqs)
