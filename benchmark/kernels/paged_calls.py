# SPDX-License-Identifier: Apache-2.0
"""The kernels under test, called as SGLang calls them, planned once and run many times.

Each function takes a Problem and returns a function without arguments that computes
``[new tokens, q heads, dim]``: planning is host work and outside of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from paged_cases import Problem, paged_indices
from vendor_calls import as_pages, vendor_calls

Call = Callable[[], torch.Tensor]

#: What SGLang gives FlashInfer by default (SGLANG_FLASHINFER_WORKSPACE_SIZE).
WORKSPACE_BYTES = 384 * 2**20
#: --triton-attention-num-kv-splits
MAX_KV_SPLITS = 8


def flashinfer_prefill(problem: Problem) -> Call:
    """``BatchPrefillWithPagedKVCacheWrapper``, causal, over prefix and new tokens (fa2)."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    device = problem.q.device
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")
    indices = paged_indices(problem.slots, problem.num_new, problem.page_tokens)
    wrapper.plan(
        indices.qo_indptr.to(device),
        indices.kv_indptr.to(device),
        indices.kv_indices.to(device),
        indices.last_page_len.to(device),
        problem.q.shape[1],
        problem.k.shape[1],
        problem.q.shape[2],
        problem.page_tokens,
        causal=True,
        sm_scale=problem.scale,
        window_left=-1 if problem.window_tokens is None else problem.window_tokens,
        logits_soft_cap=problem.logit_cap,
        q_data_type=problem.q.dtype,
        kv_data_type=problem.k.dtype,
    )
    cache = (as_pages(problem.k, problem.page_tokens), as_pages(problem.v, problem.page_tokens))
    return partial(wrapper.run, problem.q, cache)


def flashinfer_decode(problem: Problem, *, use_tensor_cores: bool) -> Call:
    """``BatchDecodeWithPagedKVCacheWrapper``, one query per request.

    SGLang gives it exactly the tokens a window layer sees; with pages of several tokens the oldest
    page may hold older ones, so the window is stated as well.
    """
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    device = problem.q.device
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=use_tensor_cores, backend="fa2"
    )
    indices = paged_indices(problem.slots, problem.num_new, problem.page_tokens)
    wrapper.plan(
        indices.kv_indptr.to(device),
        indices.kv_indices.to(device),
        indices.last_page_len.to(device),
        problem.q.shape[1],
        problem.k.shape[1],
        problem.q.shape[2],
        problem.page_tokens,
        sm_scale=problem.scale,
        window_left=-1 if problem.window_tokens is None else problem.window_tokens,
        logits_soft_cap=problem.logit_cap,
        q_data_type=problem.q.dtype,
        kv_data_type=problem.k.dtype,
    )
    cache = (as_pages(problem.k, problem.page_tokens), as_pages(problem.v, problem.page_tokens))
    return partial(wrapper.run, problem.q, cache)


def _seen_by_decode(problem: Problem) -> list[np.ndarray]:
    """Slots that one query per request attends to: the window and the token itself."""
    if problem.window_tokens is None:
        return list(problem.slots)
    return [ids[-(problem.window_tokens + 1) :] for ids in problem.slots]


def triton_decode(problem: Problem) -> Call:
    """``decode_attention_fwd`` of SGLang's triton backend."""
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

    device = problem.q.device
    slots = _seen_by_decode(problem)
    batch, heads, dim = problem.q.shape
    indptr = np.concatenate(([0], np.cumsum([len(ids) for ids in slots]))).astype(np.int32)
    out = torch.empty_like(problem.q)
    scratch = torch.empty(batch, heads, MAX_KV_SPLITS, dim, dtype=torch.float32, device=device)
    lse = torch.empty(batch, heads, MAX_KV_SPLITS, dtype=torch.float32, device=device)
    splits = torch.full((batch,), MAX_KV_SPLITS, dtype=torch.int32, device=device)
    arguments = (
        problem.q,
        problem.k,
        problem.v,
        out,
        torch.from_numpy(indptr).to(device),
        torch.from_numpy(np.concatenate(slots)).to(device),
        scratch,
        lse,
        splits,
        MAX_KV_SPLITS,
        problem.scale,
        1.0,
        1.0,
    )

    def run() -> torch.Tensor:
        decode_attention_fwd(
            *arguments,
            logit_cap=problem.logit_cap,
            sinks=problem.sinks,
            page_size=problem.page_tokens,
        )
        return out

    return run


def triton_extend(problem: Problem) -> Call:
    """``extend_attention_fwd`` of SGLang's triton backend: prefix from slots, new tokens dense."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    device = problem.q.device
    prefixes = [
        ids[: len(ids) - new] for ids, new in zip(problem.slots, problem.num_new, strict=True)
    ]
    if problem.window_tokens is not None:
        # The first new token sees this far back; the kernel's own mask does the rest.
        prefixes = [ids[max(0, len(ids) - problem.window_tokens) :] for ids in prefixes]
    new_slots = np.concatenate(
        [ids[len(ids) - new :] for ids, new in zip(problem.slots, problem.num_new, strict=True)]
    )
    new = torch.from_numpy(new_slots).to(device)
    indptr = np.concatenate(([0], np.cumsum([len(ids) for ids in prefixes]))).astype(np.int32)
    queries = np.concatenate(([0], np.cumsum(problem.num_new))).astype(np.int32)
    out = torch.empty_like(problem.q)
    arguments = (
        problem.q,
        problem.k[new],
        problem.v[new],
        out,
        problem.k,
        problem.v,
        torch.from_numpy(queries).to(device),
        torch.from_numpy(indptr).to(device),
        torch.from_numpy(np.concatenate(prefixes)).to(device),
        None,  # custom mask
        True,  # causal
        None,  # mask indptr
        max(problem.num_new),
        1.0,
        1.0,
    )

    def run() -> torch.Tensor:
        extend_attention_fwd(
            *arguments,
            sm_scale=problem.scale,
            logit_cap=problem.logit_cap,
            sliding_window_size=-1 if problem.window_tokens is None else problem.window_tokens,
            sinks=problem.sinks,
            page_size=problem.page_tokens,
        )
        return out

    return run


def calls_for(problem: Problem, gpu: str | None = None) -> dict[str, Callable[[Problem], Call]]:
    """Every kernel that serves this problem, by name.

    ``gpu``: the generation whose own kernels are asked too, None: those that run everywhere.

    As SGLang's flashinfer backend, FlashInfer is given no attention sinks and no head above 256.
    """
    calls: dict[str, Callable[[Problem], Call]] = {}
    flashinfer = problem.sinks is None and problem.q.shape[2] <= 256
    if problem.is_decode:
        calls["triton decode"] = triton_decode
        if flashinfer:
            calls["flashinfer decode"] = partial(flashinfer_decode, use_tensor_cores=False)
            calls["flashinfer decode, tensor cores"] = partial(
                flashinfer_decode, use_tensor_cores=True
            )
    else:
        calls["triton extend"] = triton_extend
        if flashinfer:
            calls["flashinfer prefill"] = flashinfer_prefill
    return calls if gpu is None else {**calls, **vendor_calls(problem, gpu)}
