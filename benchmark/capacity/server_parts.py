# SPDX-License-Identifier: Apache-2.0
"""The parts of a jenga server that decide about memory, for a geometry of the judge."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.runtime_context import publish, reset_context
from sglang.srt.server_args import ServerArgs

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, Window
from sglang_jenga.sglang_ext import plugin
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
from sglang_jenga.sglang_ext.assembly import build_allocator, build_rows
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds, group_layers
from sglang_jenga.sglang_ext.radix import ArenaRadixCache, build_radix_cache
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool
from sglang_jenga.sglang_ext.state_strategy import LAZY
from sglang_jenga.sglang_ext.states import StateLayers

DTYPE = torch.bfloat16
#: More rows than any row of the judge runs at once; a row costs 4 bytes per position of memory.
MAX_ROWS = 512
#: Grid of prefill snapshots: the chunk of SGLang's gated-delta-net kernels, as for every peer.
STATE_CHUNK_TOKENS = 64

# Pools ask torch for the module of their device; "meta" has none of its own.
torch._register_device_module("meta", types.ModuleType("torch.meta"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What a server builds at start. The buffer is a "meta" tensor: slot ids live on the host."""

    plan: ArenaPlan
    demand: DemandModel
    req_pool: ArenaReqToTokenPool
    arena: ArenaAllocatorBase
    tree: ArenaRadixCache


def kinds_of(model: Any) -> ModelKinds:
    """The judge's geometry as the layers that the plugin would read off the built model."""
    layers: list[AttentionLayer] = []
    states = None
    layer_id = 0
    for group in model.groups:
        ids = range(layer_id, layer_id + group.layers)
        layer_id += group.layers
        if group.kind == "mamba":
            states = _states(group, tuple(ids))
            continue
        layers += [
            AttentionLayer(
                layer_id=i,
                num_kv_heads=group.heads,
                k_head_dim=group.head_dim,
                v_head_dim=group.head_dim,
                policy=_policy(group),
            )
            for i in ids
        ]
    return group_layers(layers, states)


def _policy(group: Any) -> Policy:
    if group.kind == "swa":
        return Window(window_tokens=group.window)
    if group.kind == "chunk":
        return Chunked(chunk_tokens=group.window)
    return {"full": Full, "cross": Cross}[group.kind]()


def _states(group: Any, layer_ids: tuple[int, ...]) -> StateLayers:
    (conv, temporal), (conv_dtype, temporal_dtype) = group.shapes, group.dtypes
    return StateLayers(
        layer_ids=layer_ids,
        conv_shapes=(tuple(conv),),
        conv_dtype=getattr(torch, conv_dtype),
        temporal_shape=tuple(temporal),
        temporal_dtype=getattr(torch, temporal_dtype),
    )


def build(model: Any, budget_bytes: int, args: Any) -> ServerParts:
    """Pools, allocator and radix cache for ``model`` of the judge in ``budget_bytes``.

    ``args`` are the judge's command-line options (``token_budget``, ``max_seqs``).
    """
    kinds = kinds_of(model)
    reset_context()
    server_args = ServerArgs(
        model_path="dummy",
        device="cpu",
        page_size=1,
        **({} if kinds.states is None else {"mamba_radix_cache_strategy": LAZY}),
    )
    server_args._mamba_cache_chunk_size = STATE_CHUNK_TOKENS
    publish(server_args, role="tokenizer")
    plugin.load()
    plan = plan_arena(kinds.specs(DTYPE), arena_bytes=budget_bytes, page_tokens=1)
    demand = DemandModel(page_tokens=1, window=kinds.window_policy, chunk_tokens=args.token_budget)
    rows = min(args.max_seqs, MAX_ROWS)
    buffer = ArenaBuffer(plan, "meta")
    req_pool = build_rows(
        buffer,
        kinds,
        num_rows=rows,
        context_tokens=model.max_len + 64,
        device="cpu",
        snapshot_grid_tokens=STATE_CHUNK_TOKENS,
    )
    arena = build_allocator(buffer, kinds, req_pool, demand, dtype=DTYPE, device="cpu")
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=req_pool,
        token_to_kv_pool_allocator=arena,
        page_size=1,
        sliding_window_size=kinds.span_tokens,
        chunked_prefill_size=args.token_budget,
        enable_mamba_extra_buffer=kinds.states is not None,
    )
    tree = build_radix_cache(
        TreeCacheBuildContext(
            server_args=server_args,
            params=params,
            is_hybrid_swa=bool(kinds.window),
            is_hybrid_ssm=kinds.states is not None,
            enable_hierarchical_cache=False,
            disable_radix_cache=False,
            tp_worker=None,
            model_config=None,
            tp_size=1,
            tp_rank=0,
            tp_group=None,
        )
    )
    return ServerParts(plan=plan, demand=demand, req_pool=req_pool, arena=arena, tree=tree)
