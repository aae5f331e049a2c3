# SPDX-License-Identifier: Apache-2.0
"""From a plan to what a server runs on: the buffer, the pools, the allocator, the request table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext import decode, retraction
from sglang_jenga.sglang_ext.kernel_checks import gpu_of, known_of
from sglang_jenga.sglang_ext.model_kinds import FULL, ModelKinds
from sglang_jenga.sglang_ext.setup import is_cuda, setup_of

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.mem_cache.memory_pool import KVCache

    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
    from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool

logger = logging.getLogger(__name__)


def build_pools(kvc: KVCacheConfigurator, sizes: Any) -> Any:
    """The arena's ``_InitializedPools``."""
    from sglang.srt.mem_cache.allocation_sizing import get_req_to_token_extra_context_len
    from sglang.srt.mem_cache.kv_cache_configurator import _InitializedPools
    from sglang.srt.runtime_context import attention_backends

    setup = setup_of(kvc.model_config)
    plan, demand = setup.plan, setup.demand
    if plan is None or demand is None:
        raise ConfigError("--radix-cache-backend jenga: pools are built before they are sized")
    for line in plan.describe():
        logger.info("Jenga: %s", line)
    logger.info("Jenga: %s", plan.explanation)
    for line in known_of(
        backends=attention_backends(), gpu=gpu_of(kvc.device), states=setup.state_kernels
    ):
        logger.info("Jenga: kernels: %s", line)
    buffer = ArenaBuffer(plan, kvc.device)
    req_pool = build_rows(
        buffer,
        setup.kinds,
        num_rows=sizes.max_running_requests,
        context_tokens=kvc.model_config.context_len + get_req_to_token_extra_context_len(),
        device=kvc.device,
        snapshot_grid_tokens=_snapshot_grid_tokens(kvc),
    )
    allocator = build_allocator(
        buffer, setup.kinds, req_pool, demand, dtype=kvc.kv_cache_dtype, device=kvc.device
    )
    decode.install(str(kvc.device).split(":")[0])
    retraction.install()
    choose_strided_kernels(setup.kinds, kvc.device)
    return _InitializedPools(
        req_to_token_pool=req_pool,
        token_to_kv_pool=allocator.get_kvcache(),
        token_to_kv_pool_allocator=allocator,
    )


def choose_strided_kernels(kinds: ModelKinds, device: Any) -> None:
    """Let SGLang convolve states on a GPU by triton: its CUDA kernel multiplies in 32 bits."""
    from sglang.srt.runtime_context import get_context

    if kinds.states is not None and is_cuda(device):
        # The name of SGLang's own strided layout. Its kernels choose those that follow strides by
        # it; set earlier, it would have chosen other pools.
        get_context().override("jenga.arena", enable_page_major_kv_layout=True)


def _snapshot_grid_tokens(kvc: KVCacheConfigurator) -> int | None:
    from sglang.srt.runtime_context import get_exec, mamba_checkpoint_grid

    if kvc.mambaish_config is None or not get_exec().mamba.enable_mamba_extra_buffer:
        return None
    return int(mamba_checkpoint_grid(kvc.page_size))


def build_rows(
    buffer: ArenaBuffer,
    kinds: ModelKinds,
    *,
    num_rows: int,
    context_tokens: int,
    device: str,
    snapshot_grid_tokens: int | None = None,
) -> ArenaReqToTokenPool:
    """The table of running requests, which also holds the states of recurrent models.

    ``snapshot_grid_tokens``: where prefill leaves states for others, None: it leaves none.
    """
    from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool
    from sglang_jenga.sglang_ext.state_rows import ArenaStateReqPool

    if kinds.states is None:
        return ArenaReqToTokenPool(
            num_rows,
            context_tokens,
            device,
            enable_memory_saver=False,
            image_base=buffer.plan.num_slots(FULL) if kinds.cross else None,
        )
    return ArenaStateReqPool(
        num_rows,
        context_tokens,
        device,
        enable_memory_saver=False,
        buffer=buffer,
        states=kinds.states,
        snapshot_grid_tokens=snapshot_grid_tokens,
    )


def build_allocator(
    buffer: ArenaBuffer,
    kinds: ModelKinds,
    req_pool: ArenaReqToTokenPool,
    demand: DemandModel,
    *,
    dtype: torch.dtype,
    device: str,
) -> ArenaAllocatorBase:
    """The KV pool over ``buffer`` and the allocator that hands out its slots.

    ``device``: where the tables lie that kernels read.
    """
    from sglang_jenga.sglang_ext.embeddings import ArenaEmbeddings

    allocator_class, pool = _class_and_pool(buffer, kinds, req_pool, dtype)
    allocator = allocator_class(buffer.plan, pool, req_pool, demand, dtype, device)
    if kinds.embedding is not None:
        allocator.embeddings = ArenaEmbeddings(buffer, allocator)
    return allocator


def _class_and_pool(
    buffer: ArenaBuffer, kinds: ModelKinds, req_pool: ArenaReqToTokenPool, dtype: torch.dtype
) -> tuple[type[ArenaAllocatorBase], KVCache]:
    """The allocator that these kinds need and the KV pool that it hands slots of."""
    from sglang_jenga.sglang_ext.cross import CrossArenaAllocator
    from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator
    from sglang_jenga.sglang_ext.pools import ArenaHybridKVPool, ArenaKVPool, state_model_pool
    from sglang_jenga.sglang_ext.uniform import StateArenaAllocator, UniformArenaAllocator

    if kinds.window:
        return HybridArenaAllocator, ArenaHybridKVPool(buffer, kinds, dtype)
    plan = buffer.plan
    pool = ArenaKVPool(buffer, plan.kinds[0], kinds.full, dtype, cross=kinds.cross)
    pool.mem_usage = plan.arena_bytes / 2**30
    if kinds.cross:
        return CrossArenaAllocator, pool
    if kinds.states is not None:
        return StateArenaAllocator, state_model_pool(pool, kinds, req_pool)
    return UniformArenaAllocator, pool
