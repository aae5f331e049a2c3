# SPDX-License-Identifier: Apache-2.0
"""The parts of a jenga server that decide about memory, built without a model."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.runtime_context import publish, reset_context
from sglang.srt.server_args import ServerArgs

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import (
    STATE,
    AttentionLayer,
    ModelKinds,
    StateLayers,
    group_layers,
)
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.sglang_ext import plugin
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
from sglang_jenga.sglang_ext.assembly import build_allocator, build_rows
from sglang_jenga.sglang_ext.radix import ArenaRadixCache, build_radix_cache
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool
from sglang_jenga.sglang_ext.state_strategy import LAZY

#: A dtype by its size: only sizes matter where no byte exists.
_DTYPES = {1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32}
#: Grid of prefill snapshots: the chunk of SGLang's gated-delta-net kernels.
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


def layers_of(specs: Sequence[KindSpec]) -> ModelKinds:
    """Kinds as the layers that the plugin would read off the built model, byte for byte.

    Heads are not known any more, and nothing here asks for them: a layer has one, as wide as all.
    """
    layers: list[AttentionLayer] = []
    states = None
    for spec in specs:
        parts = {(row.layer_id, row.part): row for row in spec.rows}
        ids = tuple(dict.fromkeys(row.layer_id for row in spec.rows))
        if spec.name == STATE:
            convs = sorted({row.part for row in spec.rows if row.part != "temporal"})
            temporal = parts.get((ids[0], "temporal"))
            conv_rows = [parts[ids[0], part] for part in convs]
            states = StateLayers(
                layer_ids=ids,
                conv_shapes=tuple((r.row_bytes // r.itemsize_bytes,) for r in conv_rows),
                conv_dtype=_DTYPES[conv_rows[0].itemsize_bytes],
                temporal_shape=None
                if temporal is None
                else (temporal.row_bytes // temporal.itemsize_bytes,),
                temporal_dtype=_DTYPES[temporal.itemsize_bytes if temporal else 2],
            )
            continue
        for i in ids:
            k, v = parts[i, "k"], parts[i, "v"]
            layers.append(
                AttentionLayer(
                    layer_id=i,
                    num_kv_heads=1,
                    k_head_dim=k.row_bytes // k.itemsize_bytes,
                    v_head_dim=v.row_bytes // v.itemsize_bytes,
                    policy=spec.policy,
                )
            )
    return group_layers(sorted(layers, key=lambda layer: layer.layer_id), states)


def build(
    plan: ArenaPlan,
    demand: DemandModel,
    *,
    num_rows: int,
    context_tokens: int,
    disable_cache: bool = False,
) -> ServerParts:
    """Pools, allocator and radix cache over the kinds of ``plan``.

    num_rows: requests that may run at once; a row costs 4 bytes per position of host memory.
    context_tokens: positions of a row.
    disable_cache: as ``--disable-radix-cache`` does.
    """
    specs = [kind.spec for kind in plan.kinds]
    kinds = layers_of(specs)
    keeps_states = kinds.states is not None and not disable_cache
    reset_context()
    server_args = ServerArgs(
        model_path="dummy",
        device="cpu",
        page_size=plan.page_tokens,
        disable_radix_cache=disable_cache,
        **({"mamba_radix_cache_strategy": LAZY} if keeps_states else {}),
    )
    server_args._mamba_cache_chunk_size = STATE_CHUNK_TOKENS
    publish(server_args, role="tokenizer")
    plugin.load()
    dtype = _DTYPES[plan.kinds[0].spec.rows[0].itemsize_bytes]
    buffer = ArenaBuffer(plan, "meta")
    req_pool = build_rows(
        buffer,
        kinds,
        num_rows=num_rows,
        context_tokens=context_tokens,
        device="cpu",
        snapshot_grid_tokens=STATE_CHUNK_TOKENS if keeps_states else None,
    )
    arena = build_allocator(buffer, kinds, req_pool, demand, dtype=dtype, device="cpu")
    params = CacheInitParams(
        disable=disable_cache,
        req_to_token_pool=req_pool,
        token_to_kv_pool_allocator=arena,
        page_size=plan.page_tokens,
        sliding_window_size=kinds.span_tokens,
        chunked_prefill_size=demand.chunk_tokens,
        enable_mamba_extra_buffer=keeps_states,
    )
    tree: Any = build_radix_cache(
        TreeCacheBuildContext(
            server_args=server_args,
            params=params,
            is_hybrid_swa=bool(kinds.window),
            is_hybrid_ssm=kinds.states is not None,
            enable_hierarchical_cache=False,
            disable_radix_cache=disable_cache,
            tp_worker=None,
            model_config=None,
            tp_size=1,
            tp_rank=0,
            tp_group=None,
        )
    )
    return ServerParts(plan=plan, demand=demand, req_pool=req_pool, arena=arena, tree=tree)
