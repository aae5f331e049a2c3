# SPDX-License-Identifier: Apache-2.0
"""The memory of one server with nothing around it: no model, no GPU, no scheduler process.

Everything here is the real thing: SGLang's requests, batches and allocation functions on Jenga's
pools, allocator and radix cache. Only the forward pass is missing: its result is a made-up token.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req, ScheduleBatch, release_req
from sglang.srt.mem_cache.allocation import alloc_for_decode, alloc_for_extend
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.arena.tables import RowTable
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Cross, Full, Policy, TokenPolicy
from sglang_jenga.sglang_ext import decode
from sglang_jenga.sglang_ext.assembly import build_allocator, build_rows
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds
from sglang_jenga.sglang_ext.radix import ArenaRadixCache, build_radix_cache
from sglang_jenga.sglang_ext.states import StateLayers

DTYPE = torch.bfloat16
VOCABULARY = 1000


def make_kinds(
    *,
    full_layers: int = 2,
    window_layers: int = 0,
    cross_layers: int = 0,
    policy: TokenPolicy | None = None,
    full_heads: tuple[int, int, int] = (1, 8, 8),
    window_heads: tuple[int, int, int] = (1, 8, 8),
    states: StateLayers | None = None,
    embedding: tuple[int, torch.dtype] | None = None,
) -> ModelKinds:
    """Kinds of a model, windows before full before cross layers; heads: (heads, K dim, V dim).

    ``policy``: that of the window layers.
    """

    def layers(
        first: int, number: int, heads: tuple[int, int, int], policy: Policy | None
    ) -> tuple[AttentionLayer, ...]:
        return tuple(
            AttentionLayer(
                layer_id=first + i,
                num_kv_heads=heads[0],
                k_head_dim=heads[1],
                v_head_dim=heads[2],
                policy=policy,
            )
            for i in range(number)
        )

    return ModelKinds(
        full=layers(window_layers, full_layers, full_heads, Full()),
        window=layers(0, window_layers, window_heads, policy),
        cross=layers(window_layers + full_layers, cross_layers, full_heads, Cross()),
        states=states,
        embedding=embedding,
    )


def make_plan(kinds: ModelKinds, *, page_tokens: int, large_pages: int) -> ArenaPlan:
    """A plan with exactly ``large_pages`` large pages, the sink included."""
    specs = kinds.specs(DTYPE)
    sized = plan_arena(specs, arena_bytes=2**24, page_tokens=page_tokens)
    arena_bytes = large_pages * sized.large_page_bytes
    return plan_arena(specs, arena_bytes=arena_bytes, page_tokens=page_tokens)


class MirroredRows(RowTable):
    """A row table whose two sides are apart although both are on the CPU."""

    def __init__(self, device_table: torch.Tensor) -> None:
        super().__init__(device_table)
        self.shared = False
        self.req_to_token = torch.zeros_like(device_table)
        self.host = self.req_to_token.numpy()


class Machine:
    """Pools, allocator and radix cache of one server, and the life of its requests.

    Args:
        kinds: the layer kinds of the model.
        large_pages: size of the arena, the sink included.
        chunk_tokens: longest prefill chunk; None prefills whole prompts.
        device: where the KV and the tables that kernels read live.
        cached: whether the radix cache keeps prefixes.
        mirrored: keep the host's and the device's tables apart on a CPU too, as on a GPU.
        events: record KV-cache events, as a server with ``--kv-events-config`` does.
    """

    #: Where prefill leaves recurrent states for others; None: nowhere, or the model has none.
    snapshot_grid_tokens: int | None = None

    def __init__(
        self,
        kinds: ModelKinds,
        *,
        large_pages: int,
        page_tokens: int = 1,
        chunk_tokens: int | None = None,
        context_tokens: int = 512,
        rows: int = 32,
        device: str = "cpu",
        cached: bool = True,
        mirrored: bool = False,
        events: bool = False,
    ) -> None:
        self.kinds = kinds
        self.device = device
        self.page_tokens = page_tokens
        self.chunk_tokens = chunk_tokens
        self.plan = make_plan(kinds, page_tokens=page_tokens, large_pages=large_pages)
        self.demand = DemandModel(
            plan=self.plan, window=kinds.window_policy, chunk_tokens=chunk_tokens
        )
        buffer = ArenaBuffer(self.plan, device)
        self.rows = build_rows(
            buffer,
            kinds,
            num_rows=rows,
            context_tokens=context_tokens,
            device=device,
            snapshot_grid_tokens=self.snapshot_grid_tokens,
        )
        if mirrored:
            self.rows.rows = MirroredRows(self.rows.req_to_token)
        self.arena = build_allocator(
            buffer, kinds, self.rows, self.demand, dtype=DTYPE, device=device
        )
        if mirrored and isinstance(self.arena, HybridArenaAllocator):
            self.arena.translation.shared = False
            device_table = self.arena.translation.device_table.clone()
            self.arena.translation.device_table = device_table
            self.arena.full_to_swa_index_mapping = device_table
            self.arena.get_kvcache().register_mapping(device_table)
        decode.install(torch.device(device).type)
        self.tree = self._build_tree(cached, events)
        self._names = count()

    def _build_tree(self, cached: bool, events: bool) -> ArenaRadixCache:
        params = CacheInitParams(
            disable=not cached,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.arena,
            page_size=self.page_tokens,
            sliding_window_size=self.kinds.span_tokens,
            chunked_prefill_size=self.chunk_tokens,
            enable_mamba_extra_buffer=self.snapshot_grid_tokens is not None,
            enable_kv_cache_events=events,
        )
        none: Any = None
        return build_radix_cache(
            TreeCacheBuildContext(
                server_args=none,
                params=params,
                is_hybrid_swa=bool(self.kinds.window),
                is_hybrid_ssm=self.kinds.states is not None,
                enable_hierarchical_cache=False,
                disable_radix_cache=not cached,
                tp_worker=none,
                model_config=none,
                tp_size=1,
                tp_rank=0,
                tp_group=none,
            )
        )

    # ---- the life of a request ---------------------------------------------------------------

    def request(self, prompt: Sequence[int], *, max_new: int = 8, name: str | None = None) -> Req:
        """A request that has arrived and waits."""
        sampling = SamplingParams(max_new_tokens=max_new, temperature=0)
        sampling.normalize(None)
        name = name or f"r{next(self._names)}"
        return Req(name, "", array("q", prompt), sampling, vocab_size=VOCABULARY)

    def match(self, req: Req) -> int:
        """Look the request up in the cache; the length of its hit."""
        req.init_next_round_input(self.tree)
        return req.prefix_len

    def admit(self, req: Req, *, tokens: int | None = None) -> None:
        """Match and pin, as the scheduler does; the next prefill computes ``tokens`` tokens."""
        self.match(req)
        req.lock = self.tree.lock(req.last_node)
        self._set_end(req, tokens)

    def _set_end(self, req: Req, tokens: int | None) -> None:
        whole = len(req.full_untruncated_fill_ids)
        req.extend_end = whole if tokens is None else min(whole, req.prefix_len + tokens)

    def extend(self, reqs: Sequence[Req]) -> torch.Tensor:
        """Allocate one prefill batch; requests know their extents. Full slot ids, on the device."""
        batch = self.batch(reqs, ForwardMode.EXTEND)
        batch.prefix_lens = [req.prefix_len for req in reqs]
        batch.extend_lens = [req.extend_end - req.prefix_len for req in reqs]
        batch.extend_num_tokens = sum(batch.extend_lens)
        batch.seq_lens_cpu = torch.tensor([req.extend_end for req in reqs], dtype=torch.int64)
        batch.seq_lens = batch.seq_lens_cpu.to(self.device, non_blocking=True)
        slots, _, _ = alloc_for_extend(batch)
        self.forward_extend(batch)
        for req in reqs:
            req.extend_batch_idx += 1
        return slots

    def forward_extend(self, batch: ScheduleBatch) -> None:
        """What the model does to recurrent states in a prefill step."""

    def forward_decode(self, batch: ScheduleBatch) -> None:
        """What the model does to recurrent states in a decode step."""

    def prefill(self, prompt: Sequence[int], *, max_new: int = 8, chunk: int | None = None) -> Req:
        """One request's prefill, in chunks, up to its first output token."""
        req = self.request(prompt, max_new=max_new)
        self.admit(req, tokens=chunk)
        self.extend([req])
        while req.extend_end < len(req.full_untruncated_fill_ids):
            self.stash(req)
            self._set_end(req, chunk)
            self.extend([req])
        self.end_prefill(req)
        return req

    def stash(self, req: Req) -> None:
        """Between two chunks: what the first computed goes into the tree."""
        checkpoint_kv_cache(req, self.tree)
        req.init_next_round_input()

    def end_prefill(self, req: Req) -> None:
        """The prompt is computed: a token was sampled and the prompt goes into the tree."""
        self.sample(req)
        checkpoint_kv_cache(req, self.tree)

    def sample(self, req: Req) -> None:
        """A token that depends on all before it, as a model's would."""
        last = req.output_ids[-1] if req.output_ids else sum(req.origin_input_ids)
        req.output_ids.append((7 * last + req.seqlen) % VOCABULARY)

    def decode(self, reqs: Sequence[Req]) -> torch.Tensor:
        """One decode step. Full slot ids, on the device."""
        batch = self.batch(reqs, ForwardMode.DECODE)
        assert batch.check_decode_mem(), "the scheduler would retract here"
        slots = alloc_for_decode(batch, 1)
        self.forward_decode(batch)
        for req in reqs:
            req.decode_batch_idx += 1
            self.sample(req)
        return slots

    def finish(self, req: Req) -> None:
        """The request is answered: its tokens stay cached, the rest is freed."""
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        release_kv_cache(req, self.tree, checkpoint=True)

    def retract(self, req: Req) -> None:
        """Take the request's memory away; it has to start again."""
        release_req(
            req=req,
            remaing_req_count=0,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.arena,
            tree_cache=self.tree,
            hisparse_coordinator=None,
        )

    def flush(self) -> None:
        """``flush_cache`` of an idle server, in its order."""
        self.tree.reset()
        self.rows.clear()
        self.arena.clear()

    def batch(self, reqs: Sequence[Req], mode: ForwardMode) -> ScheduleBatch:
        """A batch of requests that hold rows (decode) or are about to (extend)."""
        batch = ScheduleBatch(
            reqs=list(reqs),
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.arena,
            tree_cache=self.tree,
            model_config=SimpleNamespace(is_encoder_decoder=False, vocab_size=VOCABULARY),
            device=self.device,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            sampling_info=SimpleNamespace(filter_batch=lambda *args: None),
        )
        batch.forward_mode = mode
        if mode is ForwardMode.DECODE:
            rows = [req.kv.req_pool_idx for req in reqs]
            lengths = [req.kv.kv_committed_len for req in reqs]
            batch.req_pool_indices_cpu = torch.tensor(rows, dtype=torch.int64)
            batch.seq_lens_cpu = torch.tensor(lengths, dtype=torch.int64)
            batch.req_pool_indices = batch.req_pool_indices_cpu.to(self.device, non_blocking=True)
            batch.seq_lens = batch.seq_lens_cpu.to(self.device, non_blocking=True)
            batch.orig_seq_lens = batch.seq_lens
        return batch

    # ---- questions ---------------------------------------------------------------------------

    def slots(self, req: Req) -> torch.Tensor:
        """Full slot ids of the request's tokens, from the host's table."""
        return self.rows.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len]

    def hit(self, tokens: Sequence[int]) -> int:
        """Length of the cached prefix that a prompt continuing ``tokens`` would reuse."""
        return self.match(self.request([*tokens, VOCABULARY]))

    def problems(self) -> list[str]:
        """Violated invariants of the arena and of SGLang's accounting; the tree asserts its own."""
        found = list(self.arena.core.audit())
        self.tree.sanity_check()
        for kind in self.arena.kinds:
            owned = self.tree_tokens(kind)
            used = self.arena.used_slots(kind)
            if owned != used:
                found.append(f"kind {kind}: {used} tokens in use, the tree has {owned}, idle")
        return found

    def tree_tokens(self, kind: int) -> int:
        """Tokens of the kind that the tree owns, or the cache of embeddings, pinned or not."""
        if kind == self.arena.vision_kind:
            entries = self.arena.embeddings._entries.values()
            return sum(len(entry.slots) for entry in entries)
        if not self.tree.supports_prefix_sharing():
            return 0
        if kind == 0:
            return self.tree.full_evictable_size() + self.tree.full_protected_size()
        if kind == self.arena.state_kind:
            return self.tree.mamba_evictable_size() + self.tree.mamba_protected_size()
        return self.tree.swa_evictable_size() + self.tree.swa_protected_size()


def evict_piece(machine: Machine, node: Any, kind: ComponentType) -> None:
    """Take the window or the state of this node, whatever the order of eviction says."""
    frees: Any = defaultdict(list)
    tracker = dict.fromkeys(machine.tree.tree_components, 0)
    machine.tree.tree_core.evict_piece(node, kind, tracker, frees)
    machine.tree._give_back(frees)
