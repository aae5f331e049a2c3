# SPDX-License-Identifier: Apache-2.0
"""fa3, fa4 and trtllm_mha, called as SGLang's backends call them. They run on some GPUs only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from paged_cases import Problem
from sglang_jenga.core.kernels import AMPERE, BLACKWELL, BLACKWELL_RTX, FA4_COPIED_HEAD, HOPPER

Call = Callable[[], torch.Tensor]

#: SGLang's trtllm_mha takes these page sizes.
TRTLLM_PAGES = (16, 32, 64)
WORKSPACE_BYTES = 512 * 2**20


def as_pages(cache: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """``[slots, heads, dim]`` as ``[pages, page_tokens, heads, dim]`` without a copy."""
    num_slots, heads, dim = cache.shape
    slot, head, element = cache.stride()
    return cache.as_strided(
        (num_slots // page_tokens, page_tokens, heads, dim),
        (page_tokens * slot, slot, head, element),
    )


def page_table(problem: Problem) -> torch.Tensor:
    """``[requests, most pages]`` int32 page ids, short rows padded with the sink."""
    rows = [ids[:: problem.page_tokens] // problem.page_tokens for ids in problem.slots]
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(table).to(problem.q.device)


def _lengths(problem: Problem) -> torch.Tensor:
    lengths = [len(ids) for ids in problem.slots]
    return torch.tensor(lengths, dtype=torch.int32, device=problem.q.device)


def _starts(counts: Any, device: torch.device) -> torch.Tensor:
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    return torch.from_numpy(starts).to(device)


def flash_attention(problem: Problem, *, version: int) -> Call:
    """``flash_attn_with_kvcache`` of SGLang's fa3 and fa4 backends, decode and prefill alike."""
    from sglang.kernels.ops.attention.flash_attention import flash_attn_with_kvcache

    device = problem.q.device
    window = (-1, -1) if problem.window_tokens is None else (problem.window_tokens, 0)
    sinks = None if problem.sinks is None else problem.sinks.to(problem.q.dtype)
    return partial(
        flash_attn_with_kvcache,
        q=problem.q,
        k_cache=as_pages(problem.k, problem.page_tokens),
        v_cache=as_pages(problem.v, problem.page_tokens),
        page_table=page_table(problem),
        cache_seqlens=_lengths(problem),
        cu_seqlens_q=_starts(problem.num_new, device),
        cu_seqlens_k_new=_starts([len(ids) for ids in problem.slots], device),
        max_seqlen_q=max(problem.num_new),
        softmax_scale=problem.scale,
        causal=True,
        window_size=window,
        softcap=problem.logit_cap,
        sinks=sinks,
        ver=version,
    )


def _heads_first(cache: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """``[pages, heads, page_tokens, dim]``, as FlashInfer's trtllm kernels take it."""
    return as_pages(cache, page_tokens).permute(0, 2, 1, 3)


def _trtllm(problem: Problem) -> dict[str, Any]:
    device, page = problem.q.device, problem.page_tokens
    return {
        "query": problem.q,
        "kv_cache": (_heads_first(problem.k, page), _heads_first(problem.v, page)),
        "workspace_buffer": torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device),
        "block_tables": page_table(problem),
        "seq_lens": _lengths(problem),
        "bmm1_scale": problem.scale,
        "bmm2_scale": 1.0,
        "window_left": -1 if problem.window_tokens is None else problem.window_tokens,
        "sinks": problem.sinks,
    }


def trtllm_decode(problem: Problem) -> Call:
    """``trtllm_batch_decode_with_kv_cache``: XQA on Hopper and sm120, trtllm-gen on sm100."""
    from flashinfer.decode import trtllm_batch_decode_with_kv_cache

    longest = max(len(ids) for ids in problem.slots)
    return partial(trtllm_batch_decode_with_kv_cache, max_seq_len=longest, **_trtllm(problem))


def trtllm_prefill(problem: Problem) -> Call:
    """``trtllm_batch_context_with_kv_cache``, on sm100 alone: elsewhere SGLang copies the pages."""
    from flashinfer.prefill import trtllm_batch_context_with_kv_cache

    device = problem.q.device
    lengths = [len(ids) for ids in problem.slots]
    return partial(
        trtllm_batch_context_with_kv_cache,
        max_q_len=max(problem.num_new),
        max_kv_len=max(lengths),
        batch_size=len(lengths),
        cum_seq_lens_q=_starts(problem.num_new, device),
        cum_seq_lens_kv=_starts(lengths, device),
        **_trtllm(problem),
    )


def vendor_calls(problem: Problem, gpu: str) -> dict[str, Callable[[Problem], Call]]:
    """Kernels of these backends that serve the problem on a GPU of this generation, by name.

    What a start refuses is left out: fa4 with heads of 256.
    """
    dim, what = problem.q.shape[2], "decode" if problem.is_decode else "prefill"
    calls: dict[str, Callable[[Problem], Call]] = {}
    if gpu in (AMPERE, HOPPER) and dim <= 256:
        calls[f"fa3 {what}"] = partial(flash_attention, version=3)
    if gpu in (HOPPER, BLACKWELL, BLACKWELL_RTX) and dim < FA4_COPIED_HEAD:
        calls[f"fa4 {what}"] = partial(flash_attention, version=4)
    paged = problem.page_tokens in TRTLLM_PAGES and not problem.logit_cap and dim <= 256
    if paged and gpu in (HOPPER, BLACKWELL, BLACKWELL_RTX) and problem.is_decode:
        calls["trtllm_mha decode"] = trtllm_decode
    if paged and gpu == BLACKWELL and not problem.is_decode:
        calls["trtllm_mha prefill"] = trtllm_prefill
    return calls
