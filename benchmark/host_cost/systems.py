# SPDX-License-Identifier: Apache-2.0
"""The two memory systems that are compared, each made of the classes its server uses.

Both serve the same model shape and hold the same number of tokens; only who hands out slots
differs. K/V rows are as small as SGLang's layouts allow: no kernel runs here, and host work does
not depend on their size.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.allocation import alloc_for_decode_default, alloc_for_extend
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.memory_pool import (
    HybridReqToTokenPool,
    MHATokenToKVPool,
    ReqToTokenPool,
)
from sglang.srt.mem_cache.registry import TreeCacheBuildContext, create_unified_radix_cache
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.policies import Full, Policy, Window
from sglang_jenga.sglang_ext import decode
from sglang_jenga.sglang_ext.assembly import build_allocator, build_rows
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds
from sglang_jenga.sglang_ext.radix import build_radix_cache
from sglang_jenga.sglang_ext.states import StateLayers

DTYPE = torch.bfloat16
HEADS, DIM = 1, 8
VOCABULARY = 32_000
WINDOW = 256
#: Layers of a shape as (full, window, recurrent). Gemma-3-27B has 10 and 52: 26 full or 5 window
#: tokens fill a large page.
SHAPES = {"uniform": (4, 0, 0), "gemma3": (10, 52, 0), "small": (2, 4, 0), "state": (2, 0, 2)}
#: Prefills leave snapshots at multiples of it.
STATE_CHUNK_TOKENS = 64
STATE_SHAPE = Mamba2StateShape.create(
    tp_world_size=1,
    intermediate_size=8,
    n_groups=1,
    num_heads=2,
    head_dim=4,
    state_size=4,
    conv_kernel=4,
)
STATE_DTYPE = Mamba2StateDType(conv=torch.bfloat16, temporal=torch.float32)


class System:
    """Pools, allocator and radix cache of one server. Subclasses build them.

    Args:
        shape: a name in ``SHAPES``.
        tokens: full slots that the system holds.
        rows: requests that run at once.
        window: tokens of the windows of hybrid shapes.
    """

    name: str
    #: What SGLang's per-device table holds for this system.
    alloc_for_decode: Callable[[ScheduleBatch, int], torch.Tensor]
    #: SGLang's tree core, None: its default.
    tree_core: str | None = None
    rows: ReqToTokenPool
    allocator: Any
    tree: Any

    def __init__(
        self,
        *,
        shape: str,
        page_tokens: int,
        tokens: int,
        rows: int,
        context: int,
        device: str,
        window: int = WINDOW,
    ) -> None:
        self.full_layers, self.window_layers, self.state_layers = SHAPES[shape]
        self.page_tokens = page_tokens
        self.window = window
        self.device = device
        self._names = count()
        self._build(tokens, rows, context)

    def _build(self, tokens: int, rows: int, context: int) -> None:
        raise NotImplementedError

    @property
    def hybrid(self) -> bool:
        return self.window_layers > 0

    @property
    def state_layer_ids(self) -> list[int]:
        first = self.full_layers + self.window_layers
        return list(range(first, first + self.state_layers))

    def _context(self) -> TreeCacheBuildContext:
        none: Any = None
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            page_size=self.page_tokens,
            sliding_window_size=self.window if self.hybrid else None,
            tree_core_backend=self.tree_core,
            enable_mamba_extra_buffer=self.state_layers > 0,
        )
        return TreeCacheBuildContext(
            server_args=none,
            params=params,
            is_hybrid_swa=self.hybrid,
            is_hybrid_ssm=self.state_layers > 0,
            enable_hierarchical_cache=False,
            disable_radix_cache=False,
            tp_worker=none,
            model_config=none,
            tp_size=1,
            tp_rank=0,
            tp_group=none,
        )

    # ---- requests, by SGLang's own functions ------------------------------------------------

    def request(self, prompt: Sequence[int]) -> Req:
        sampling = SamplingParams(max_new_tokens=64, temperature=0)
        sampling.normalize(None)
        return Req(f"{next(self._names)}", "", array("q", prompt), sampling, vocab_size=VOCABULARY)

    def batch(self, reqs: Sequence[Req], mode: ForwardMode) -> ScheduleBatch:
        batch = ScheduleBatch(
            reqs=list(reqs),
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            tree_cache=self.tree,
            model_config=SimpleNamespace(is_encoder_decoder=False, vocab_size=VOCABULARY),
            device=self.device,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        batch.forward_mode = mode
        return batch

    def extend_batch(self, reqs: Sequence[Req]) -> ScheduleBatch:
        batch = self.batch(reqs, ForwardMode.EXTEND)
        batch.prefix_lens = [req.prefix_len for req in reqs]
        batch.extend_lens = [req.extend_end - req.prefix_len for req in reqs]
        batch.extend_num_tokens = sum(batch.extend_lens)
        batch.seq_lens_cpu = torch.tensor([req.extend_end for req in reqs], dtype=torch.int64)
        batch.seq_lens = batch.seq_lens_cpu.to(self.device, non_blocking=True)
        return batch

    def decode_batch(self, reqs: Sequence[Req]) -> ScheduleBatch:
        batch = self.batch(reqs, ForwardMode.DECODE)
        rows = [req.kv.req_pool_idx for req in reqs]
        lengths = [req.kv.kv_committed_len for req in reqs]
        batch.req_pool_indices_cpu = torch.tensor(rows, dtype=torch.int64)
        batch.seq_lens_cpu = torch.tensor(lengths, dtype=torch.int64)
        batch.req_pool_indices = batch.req_pool_indices_cpu.to(self.device)
        batch.seq_lens = batch.seq_lens_cpu.to(self.device)
        return batch

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Req]:
        """Requests that have prefilled their prompts and are about to decode."""
        reqs = [self.request(prompt) for prompt in prompts]
        for first in range(0, len(reqs), 16):
            some = reqs[first : first + 16]
            for req in some:
                req.init_next_round_input(self.tree)
                req.lock = self.tree.lock(req.last_node)
                req.extend_end = len(req.full_untruncated_fill_ids)
            alloc_for_extend(self.extend_batch(some))
            for req in some:
                req.output_ids.append(1)
                checkpoint_kv_cache(req, self.tree)
        return reqs

    def drop(self, reqs: Sequence[Req]) -> None:
        self.allocator.free_group_begin()
        for req in reqs:
            release_kv_cache(req, self.tree, checkpoint=False)
        self.allocator.free_group_end()


class Stock(System):
    """SGLang's static pools: ``TokenToKVPoolAllocator`` and ``SWATokenToKVPoolAllocator``."""

    name = "stock"
    alloc_for_decode = staticmethod(alloc_for_decode_default)

    def _build(self, tokens: int, rows: int, context: int) -> None:
        self.rows = self._build_rows(rows, context)
        common: dict[str, Any] = {
            "dtype": DTYPE,
            "page_size": self.page_tokens,
            "device": self.device,
            "head_num": HEADS,
            "head_dim": DIM,
        }
        if self.hybrid:
            pool: Any = SWAKVPool(
                size=tokens,
                size_swa=tokens,
                swa_attention_layer_ids=[0],
                full_attention_layer_ids=[1],
                **common,
            )
            self.allocator = SWATokenToKVPoolAllocator(
                tokens, tokens, self.page_tokens, DTYPE, self.device, pool, need_sort=False
            )
        else:
            pool = MHATokenToKVPool(size=tokens, layer_num=1, enable_memory_saver=False, **common)
            self.allocator = (
                TokenToKVPoolAllocator(tokens, DTYPE, self.device, pool, need_sort=False)
                if self.page_tokens == 1
                else PagedTokenToKVPoolAllocator(
                    tokens, self.page_tokens, DTYPE, self.device, pool, need_sort=False
                )
            )
        self.tree = create_unified_radix_cache(self._context())

    def _build_rows(self, rows: int, context: int) -> ReqToTokenPool:
        if not self.state_layers:
            return ReqToTokenPool(rows, context, self.device, enable_memory_saver=False)
        return HybridReqToTokenPool(
            size=rows,
            mamba_size=4 * rows,
            mamba_spec_state_size=rows,
            max_context_len=context,
            device=self.device,
            enable_memory_saver=False,
            cache_params=Mamba2CacheParams(
                shape=STATE_SHAPE, layers=self.state_layer_ids, dtype=STATE_DTYPE
            ),
            mamba_layer_ids=self.state_layer_ids,
            enable_mamba_extra_buffer=True,
            enable_mamba_extra_buffer_lazy=True,
        )


class Jenga(System):
    """The arena."""

    name = "jenga"
    alloc_for_decode = staticmethod(decode.alloc_for_decode)

    def _build(self, tokens: int, rows: int, context: int) -> None:
        window = self._layers(0, self.window_layers, Window(window_tokens=self.window))
        full = self._layers(self.window_layers, self.full_layers, Full())
        states = self._states() if self.state_layers else None
        kinds = ModelKinds(full=full, window=window, states=states)
        specs = kinds.specs(DTYPE)
        per_token = sum(s.payload_bytes for s in specs if s.policy.GROWS_WITH_TEXT)
        per_row = 4 * sum(s.payload_bytes for s in specs if not s.policy.GROWS_WITH_TEXT)
        plan = plan_arena(
            specs, arena_bytes=tokens * per_token + rows * per_row, page_tokens=self.page_tokens
        )
        demand = DemandModel(plan=plan, window=kinds.window_policy, chunk_tokens=None)
        buffer = ArenaBuffer(plan, self.device)
        self.rows = build_rows(
            buffer,
            kinds,
            num_rows=rows,
            context_tokens=context,
            device=self.device,
            snapshot_grid_tokens=STATE_CHUNK_TOKENS if states else None,
        )
        self.allocator = build_allocator(
            buffer, kinds, self.rows, demand, dtype=DTYPE, device=self.device
        )
        self.tree = build_radix_cache(self._context())

    def _states(self) -> StateLayers:
        return StateLayers(
            layer_ids=tuple(self.state_layer_ids),
            conv_shapes=tuple(STATE_SHAPE.conv),
            conv_dtype=STATE_DTYPE.conv,
            temporal_shape=STATE_SHAPE.temporal,
            temporal_dtype=STATE_DTYPE.temporal,
        )

    @staticmethod
    def _layers(first: int, number: int, policy: Policy) -> tuple[AttentionLayer, ...]:
        return tuple(
            AttentionLayer(
                layer_id=first + i,
                num_kv_heads=HEADS,
                k_head_dim=DIM,
                v_head_dim=DIM,
                policy=policy,
            )
            for i in range(number)
        )
