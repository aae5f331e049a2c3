# SPDX-License-Identifier: Apache-2.0
"""SGLang's triton attention backend over an arena: its own metadata, its own launches.

The backend is given what a model runner has (pool, request table, translation, a configuration) and
nothing is replaced. Its index tensors are what the kernels' addresses are made of, so a test that
builds its own would prove nothing.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from transformers import PretrainedConfig

from paged_cases import FULL, WINDOW, Problem, Workload
from sglang_jenga.arena.tables import Translation


class TritonForward:
    """The backend, the tables that it reads and one batch of ``work``.

    The request table holds the full slots of every position, the translation the window slots of
    those that still have one; both are on the CPU.
    """

    def __init__(self, work: Workload) -> None:
        case = work.case
        self.work = work
        self.lengths = [request.num_tokens for request in case.requests]
        rows = len(case.requests)
        context = max(self.lengths) + 1
        self.table = torch.zeros(rows, context, dtype=torch.int32)
        self.translation = Translation(
            work.plan.num_slots(work.plan.kinds[FULL].spec.name), torch.device("cpu")
        )
        for row, (full, window) in enumerate(zip(*work.slots, strict=True)):
            self.table[row, : len(full)] = torch.from_numpy(full.astype(np.int32))
            self.translation.set(full[len(full) - len(window) :], window)
        work.pool.register_mapping(self.translation.device_table)
        self.backend = TritonAttnBackend(self._runner(context))
        self.batch = self._batch()

    def _runner(self, context: int) -> Any:
        case, pool = self.work.case, self.work.pool
        heads = max(case.full.num_q_heads, case.window.num_q_heads)
        translator = KVIndexTranslator(
            req_to_token=self.table,
            token_to_kv_pool_allocator=None,
            token_to_kv_pool=pool,
            page_size=case.page_tokens,
            device="cpu",
        )
        return SimpleNamespace(
            device="cpu",
            gpu_id=0,
            page_size=case.page_tokens,
            req_to_token_pool=SimpleNamespace(size=len(case.requests), req_to_token=self.table),
            token_to_kv_pool=pool,
            token_to_kv_pool_allocator=None,
            kv_index_translator=translator,
            sliding_window_size=case.window.window_tokens,
            decode_num_tokens_per_req=lambda: 1,
            spec_algorithm=None,
            is_draft_worker=False,
            kv_cache_dtype=self.work.dtype,
            model_config=SimpleNamespace(
                attention_arch=AttentionArch.MHA,
                context_len=context,
                head_dim=case.full.head_dim,
                v_head_dim=case.full.head_dim,
                swa_v_head_dim=case.window.head_dim,
                is_encoder_decoder=False,
                linear_attn_registry_result=None,
                hf_config=PretrainedConfig(architectures=["none"]),
                get_max_num_attention_heads=lambda: heads,
                get_num_kv_heads=lambda *sizes: case.full.num_kv_heads,
            ),
        )

    def _batch(self) -> Any:
        requests = self.work.case.requests
        prefix = [request.prefix_tokens for request in requests]
        new = [request.new_tokens for request in requests]
        decodes = set(new) == {1}
        last = [
            full[len(full) - count :]
            for full, count in zip(self.work.slots[FULL], new, strict=True)
        ]
        batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if decodes else ForwardMode.EXTEND,
            batch_size=len(requests),
            spec_info=None,
            req_pool_indices=torch.arange(len(requests)),
            seq_lens=torch.tensor(self.lengths),
            seq_lens_cpu=torch.tensor(self.lengths),
            seq_lens_sum=sum(self.lengths),
            extend_prefix_lens=torch.tensor(prefix),
            extend_prefix_lens_cpu=prefix,
            extend_seq_lens=torch.tensor(new),
            extend_seq_lens_cpu=new,
            extend_start_loc=torch.cumsum(torch.tensor([0, *new]), 0)[:-1],
            out_cache_loc=torch.from_numpy(np.concatenate(last)),
            encoder_lens=None,
            encoder_lens_cpu=None,
            mha_one_shot=False,
            attn_attend_prefix_cache=None,
            positions=None,
        )
        translator = self.backend.kv_index_translator
        translator.own_plan(batch).bind(batch, translator)
        return batch

    def layer(self, kind: int) -> RadixAttention:
        """The layer whose rows lie furthest inside a slot."""
        shape = self.work.case.shape(kind)
        return RadixAttention(
            shape.num_q_heads,
            shape.head_dim,
            shape.head_dim**-0.5,
            num_kv_heads=shape.num_kv_heads,
            layer_id=self.work.layer(kind),
            sliding_window_size=-1 if kind == FULL else shape.window_tokens,
        )

    def run(self, kind: int, *, index_dtype: torch.dtype = torch.int64) -> Answer:
        """Write new K/V of one layer and attend, as a forward does.

        ``index_dtype``: of the slot ids that attention reads; the backend's own are int64.
        """
        layer, shape = self.layer(kind), self.work.case.shape(kind)
        problem = self.work.problem(kind)
        new = len(self.batch.out_cache_loc)
        k, v = (self.work.random(new, shape.num_kv_heads, shape.head_dim) for _ in "kv")
        self.backend.init_forward_metadata(self.batch)
        metadata = self.backend.forward_metadata
        names = ("kv_indices", "window_kv_indices")
        ids = {name: getattr(metadata, name) for name in names}
        dtypes = {name: tensor.dtype for name, tensor in ids.items()}
        self.backend.forward_metadata = replace(
            metadata, **{name: tensor.to(index_dtype) for name, tensor in ids.items()}
        )
        decodes = self.batch.forward_mode.is_decode()
        forward = self.backend.forward_decode if decodes else self.backend.forward_extend
        out = forward(problem.q.reshape(new, -1), k, v, layer, self.batch, save_kv_cache=True).view(
            problem.q.shape
        )
        return Answer(problem=problem, out=out, k=k, v=v, index_dtypes=dtypes)


class Answer:
    """One layer's forward: the problem as it stands after the write, and what came out.

    k, v: what was written, ``[new tokens, heads, dim]``. index_dtypes: of the backend's own ids.
    """

    def __init__(
        self,
        *,
        problem: Problem,
        out: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        index_dtypes: dict[str, torch.dtype],
    ) -> None:
        self.problem = problem
        self.out = out
        self.k = k
        self.v = v
        self.index_dtypes = index_dtypes

    @property
    def new_slots(self) -> torch.Tensor:
        """Slots of the kind that were written, ``[new tokens]`` int64."""
        pairs = zip(self.problem.slots, self.problem.num_new, strict=True)
        return torch.from_numpy(np.concatenate([ids[len(ids) - n :] for ids, n in pairs]))


__all__ = ["FULL", "WINDOW", "Answer", "TritonForward"]
