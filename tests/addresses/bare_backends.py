# SPDX-License-Identifier: Apache-2.0
"""SGLang's attention backends with their own Python and no GPU: kernels are replaced by notes.

Their constructors ask the GPU for this and that, so they are not called; what a forward then misses
is None, as for a model without the feature.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.kernels.ops.attention import flash_attention_v3, flash_attention_v4
from sglang.srt.layers.attention import flashinfer_backend
from sglang.srt.model_executor.forward_batch_info import ForwardMode


@contextmanager
def _without_its_libraries() -> Iterator[None]:
    """sgl_kernel's Python without its libraries, which load where there is a driver of NVIDIA.

    What is imported meanwhile is forgotten afterwards: other tests must not meet it.
    """
    before = dict(sys.modules)
    spec = importlib.util.find_spec("sgl_kernel")
    assert spec is not None and spec.submodule_search_locations, "sgl_kernel comes with sglang"
    package = ModuleType("sgl_kernel")
    package.__path__ = list(spec.submodule_search_locations)
    package.__getattr__ = lambda name: None  # type: ignore[method-assign]
    sys.modules["sgl_kernel"] = package
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
        sys.modules.update(before)


with _without_its_libraries():
    fa3 = importlib.import_module("sgl_kernel.flash_attn")
    flashattention_backend = importlib.import_module(
        "sglang.srt.layers.attention.flashattention_backend"
    )
    trtllm_mha_backend = importlib.import_module("sglang.srt.layers.attention.trtllm_mha_backend")


class Missing(SimpleNamespace):
    """Has the given attributes; any other is None."""

    def __getattr__(self, name: str) -> Any:
        return None


def bare(backend: type, **attributes: Any) -> Any:
    """An object of ``backend`` that was not constructed."""

    def missing(self: Any, name: str) -> Any:
        return None

    made = type(f"Bare{backend.__name__}", (backend,), {"__getattr__": missing})
    found = object.__new__(made)
    found.__dict__.update(attributes)
    return found


@dataclass(slots=True)
class Calls:
    """K and V as kernels were given them, and an answer of the right shape for each."""

    kv: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def note(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.kv.append((k, v))
        return torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)


def flashinfer(pool: Any, batch: Any, calls: Calls, patch: pytest.MonkeyPatch, **how: Any) -> Any:
    """``use_ragged``: prefill keeps new tokens apart from the paged prefix."""

    def paged(q: torch.Tensor, kv: Any, **_: Any) -> torch.Tensor:
        return calls.note(q, *kv)

    def with_lse(q: torch.Tensor, *kv: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = calls.note(q, *(kv[0] if len(kv) == 1 else kv))
        return found, torch.zeros(q.shape[:2])

    wrapper = SimpleNamespace(forward=paged, forward_return_lse=with_lse)
    patch.setattr(flashinfer_backend, "_safe_merge_state", lambda o, s, *_: (o, s), raising=False)
    return bare(
        flashinfer_backend.FlashInferAttnBackend,
        token_to_kv_pool=pool,
        num_wrappers=2,
        dispatch_reason=flashinfer_backend.WrapperDispatch.SLIDING_WINDOW,
        kv_cache_quant_method=SimpleNamespace(needs_global_scale=lambda: False),
        prefill_wrapper_ragged=wrapper,
        forward_metadata=Missing(
            decode_wrappers=[wrapper, wrapper],
            prefill_wrappers=[wrapper, wrapper],
            use_ragged=how["use_ragged"],
            swa_out_cache_loc=batch.out_cache_loc,
        ),
    )


def flash_attention(
    pool: Any, batch: Any, calls: Calls, patch: pytest.MonkeyPatch, *, version: int, page: int
) -> Any:
    """fa3 (``version`` 3) and fa4 (4), with SGLang's and sgl_kernel's Python down to the kernel."""
    if version == 3:
        _sgl_kernel_flash_attention(calls, patch)
    patch.setattr(
        flash_attention_v4,
        "_flash_attn_varlen_func",
        lambda *, q, k, v, **_: (calls.note(q, k, v), None),
    )
    table = torch.zeros(batch.batch_size, 1, dtype=torch.int32)
    lengths = torch.ones(batch.batch_size, dtype=torch.int32)
    return bare(
        flashattention_backend.FlashAttentionBackend,
        token_to_kv_pool=pool,
        page_size=page,
        fa_impl_ver=version,
        kv_cache_dtype_str="auto",
        use_mla=False,
        topk=0,
        num_splits=0,
        decode_num_splits=0,
        use_sliding_window_kv_pool=True,
        forward_metadata=Missing(
            page_table=table,
            swa_page_table=table,
            cache_seqlens_int32=lengths,
            swa_out_cache_loc=batch.out_cache_loc,
            max_seq_len_q=1,
        ),
    )


def _sgl_kernel_flash_attention(calls: Calls, patch: pytest.MonkeyPatch) -> None:
    """sgl_kernel's own Python for fa3 down to the operation of its library."""

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> Any:
        return calls.note(q, k, v), None

    ops = SimpleNamespace(sgl_kernel=SimpleNamespace(fwd=SimpleNamespace(default=kernel)))
    patch.setattr(fa3, "torch", _with(torch, ops=ops))
    patch.setattr(flash_attention_v3, "_is_fa3_supported", lambda *_: True)
    patch.setattr(
        flash_attention_v3,
        "_load_fa3_kernels",
        lambda: {"flash_attn_with_kvcache": fa3.flash_attn_with_kvcache},
    )


def _with(module: Any, **replaced: Any) -> Any:
    """``module`` with other attributes in the eyes of one reader."""
    found = ModuleType(module.__name__)
    found.__getattr__ = lambda name: getattr(module, name)  # type: ignore[method-assign]
    found.__dict__.update(replaced)
    return found


def trtllm(
    pool: Any, batch: Any, calls: Calls, patch: pytest.MonkeyPatch, *, page: int, xqa: bool
) -> Any:
    """``xqa``: as on sm90 and sm120, whose prefill is fmha_v2; else as on sm100."""

    def paged(*, query: torch.Tensor, kv_cache: Any, **_: Any) -> torch.Tensor:
        return calls.note(query, *kv_cache)

    def gathered(qkv: Any, **_: Any) -> torch.Tensor:
        q, kv = qkv
        return calls.note(q, kv[:, 0], kv[:, 1])

    kernels = SimpleNamespace(
        decode=SimpleNamespace(trtllm_batch_decode_with_kv_cache=paged),
        prefill=SimpleNamespace(
            trtllm_batch_context_with_kv_cache=paged, trtllm_fmha_v2_prefill=gathered
        ),
    )
    patch.setattr(trtllm_mha_backend, "flashinfer", kernels, raising=False)
    made = bare(
        trtllm_mha_backend.TRTLLMHAAttnBackend,
        token_to_kv_pool=pool,
        page_size=page,
        is_xqa_impl=xqa,
        use_fmha_v2=xqa,
        data_type=torch.bfloat16,
        q_data_type=torch.bfloat16,
        decode_seq_len_splits=1,
        kv_cache_quant_method=SimpleNamespace(needs_global_scale=lambda: False),
        _swa_kv_pool=pool,
    )
    lengths = torch.ones(batch.batch_size, dtype=torch.int32)
    made.forward_metadata = Missing(
        page_table=torch.zeros(batch.batch_size, 1, dtype=torch.int32),
        swa_page_table=torch.zeros(batch.batch_size, 1, dtype=torch.int32),
        cache_seqlens_int32=lengths,
        cu_seqlens_q=torch.arange(batch.batch_size + 1),
        mixed_prefill_reqs=-1,
        swa_out_cache_loc=batch.out_cache_loc,
        max_seq_len_q=1,
    )
    if xqa:
        made._init_fmha_v2_batch_pages(made.forward_metadata, batch)
    return made


def make_batch(mode: ForwardMode, slots: torch.Tensor) -> Any:
    """One new token for each of ``slots``."""
    number = len(slots)
    return Missing(
        forward_mode=mode,
        batch_size=number,
        out_cache_loc=slots,
        out_cache_loc_is_physical=True,
        seq_lens_cpu=torch.ones(number, dtype=torch.int64),
        seq_lens_sum=number,
        extend_prefix_lens_cpu=[0] * number,
        extend_seq_lens_cpu=[1] * number,
    )
