# SPDX-License-Identifier: Apache-2.0
"""Which kernels read and write an arena right, and how that is known: one row each.

A view spans the whole arena, so its addresses outgrow 32 bits where a stock pool's do not. A kernel
serves an arena when it multiplies slot ids in 64 bits, follows strides, and its Python copies
nothing. Each row says for which GPUs that is known and how; what is known in no way says so.

Sources are named as in the installed packages: ``sglang/...:line``, ``flashinfer/...:line`` of the
release that the hooks are checked against. Tests are named as pytest takes them. That an operation
runs right says nothing of its speed, nor of what only a GPU can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sglang_jenga.core.kernels import AMPERE, BLACKWELL, BLACKWELL_RTX, EVERY_GPU, HOPPER

#: How far a verdict reaches, best first. ran: the kernel (or, on a CPU, the same source in an
#: interpreter, or its host code) was run and its result compared. compiled: the machine or
#: intermediate code that it is launched with was checked. read: its source was. unchecked: nobody
#: has. refused: a start with it is refused, the reason is in ``finding``.
Verdict = Literal["ran", "compiled", "read", "unchecked", "refused"]
VERDICTS: tuple[Verdict, ...] = ("ran", "compiled", "read", "unchecked", "refused")

#: The machine of the tests: not a GPU at all.
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """What is known of one operation of one backend.

    backend: as ``--attention-backend`` names it; ``states`` for kernels of recurrent layers and
        ``pools`` for what SGLang's pools do whatever the backend is.
    operation: what a forward asks of it.
    architectures: the GPUs that the row speaks of, of :data:`EVERY_GPU`, or :data:`CPU`.
    finding: how the address is made, or why it is refused.
    limit: what must hold for the verdict, empty: nothing.
    evidence: tests and places in source.
    """

    backend: str
    operation: str
    architectures: tuple[str, ...]
    verdict: Verdict
    finding: str
    evidence: tuple[str, ...]
    limit: str = ""


def rows_for(backend: str, architecture: str) -> tuple[KernelRow, ...]:
    """Rows of ``backend`` that speak of ``architecture``, in the order of the table."""
    return tuple(
        row for row in KERNELS if row.backend == backend and architecture in row.architectures
    )


_T = "tests/addresses"
_K = "sglang/kernels/ops"
_SRT = "sglang/srt/layers/attention"
_JIT = "sglang/kernels/jit/csrc"
_FI = "flashinfer/data"

KERNELS: tuple[KernelRow, ...] = (
    KernelRow(
        backend="jenga_ref",
        operation="decode and extend",
        architectures=(CPU,),
        verdict="ran",
        finding="torch indexes with int64; answers of real servers equal those of stock pools",
        evidence=("tests/attention", "benchmark/identity/results/table.md"),
    ),
    KernelRow(
        backend="jenga_ref",
        operation="decode and extend",
        architectures=EVERY_GPU,
        verdict="unchecked",
        finding="torch indexes with int64; made for a CPU, on a GPU it has not been run",
        evidence=(),
    ),
    KernelRow(
        backend="torch_native",
        operation="decode and extend, models without windows",
        architectures=(*EVERY_GPU, CPU),
        verdict="read",
        finding="torch indexes with int64",
        evidence=(f"{_SRT}/torch_native_backend.py:140",),
    ),
    KernelRow(
        backend="fa3",
        operation="decode and extend",
        architectures=(AMPERE,),
        verdict="unchecked",
        finding="a shipped binary; upstream's source has int64 strides",
        evidence=(),
    ),
    KernelRow(
        backend="trtllm_mha",
        operation="decode and extend, K and V of two widths",
        architectures=EVERY_GPU,
        verdict="refused",
        finding="its kernels take one head size for both",
        evidence=("sglang/srt/arg_groups/kv_cache_hook.py:767",),
    ),
    KernelRow(
        backend="flashinfer",
        operation="decode and prefill, K and V of two widths",
        architectures=EVERY_GPU,
        verdict="refused",
        finding="its kernels take one head size for both",
        evidence=("sglang/srt/arg_groups/kv_cache_hook.py:767",),
    ),
    KernelRow(
        backend="pools",
        operation="reads and writes by torch",
        architectures=(CPU,),
        verdict="ran",
        finding="index_put_ and index_select count bytes in int64",
        evidence=("tests/unit/test_pools.py",),
    ),
    KernelRow(
        backend="flashinfer",
        operation="decode",
        architectures=EVERY_GPU,
        verdict="read",
        finding="an int32 page id becomes size_t before it meets a uint32 stride",
        limit="page_tokens * slot elements below 2^32; K and V of one stride",
        evidence=(
            f"{_T}/test_no_copies.py::test_kernels_get_the_views_themselves",
            f"{_T}/test_cuda_products.py::test_slot_ids_are_multiplied_in_64_bits",
            f"{_FI}/include/flashinfer/page.cuh:199",
            f"{_FI}/csrc/batch_decode.cu:179",
            f"{_SRT}/flashinfer_backend.py:1563",
        ),
    ),
    KernelRow(
        backend="flashinfer",
        operation="prefill (fa2)",
        architectures=EVERY_GPU,
        verdict="read",
        finding="the same header; offsets are kept as size_t",
        limit="page_tokens * slot elements below 2^32",
        evidence=(
            f"{_T}/test_no_copies.py::test_kernels_get_the_views_themselves",
            f"{_T}/test_cuda_products.py::test_slot_ids_are_multiplied_in_64_bits",
            f"{_FI}/include/flashinfer/page.cuh:199",
            f"{_FI}/include/flashinfer/attention/prefill.cuh:3938",
            f"{_SRT}/flashinfer_backend.py:335",
        ),
    ),
    KernelRow(
        backend="triton",
        operation="decode",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="slot id times stride without a cast; the backend's ids are int64",
        evidence=(
            f"{_T}/test_far_attention.py::test_attention_is_right_beyond_32_bits",
            f"{_T}/test_compiled_attention.py::test_no_32_bit_product_of_a_slot_id_reaches_an_address",
            f"{_K}/attention/decode_attention.py:332",
            f"{_SRT}/triton_backend.py:907",
        ),
    ),
    KernelRow(
        backend="triton",
        operation="extend",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="slot id times stride without a cast; the backend's ids are int64",
        evidence=(
            f"{_T}/test_far_attention.py::test_attention_is_right_beyond_32_bits",
            f"{_T}/test_compiled_attention.py::test_no_32_bit_product_of_a_slot_id_reaches_an_address",
            f"{_K}/attention/extend_attention.py:591",
            f"{_SRT}/triton_backend.py:1022",
        ),
    ),
    KernelRow(
        backend="fa3",
        operation="decode and extend",
        architectures=(HOPPER,),
        verdict="unchecked",
        finding="a shipped binary; upstream's source has int64 strides",
        evidence=(),
    ),
    KernelRow(
        backend="fa4",
        operation="decode and extend, heads other than 256",
        architectures=(HOPPER, BLACKWELL, BLACKWELL_RTX),
        verdict="read",
        finding="64-bit pointers and strides",
        evidence=(
            f"{_T}/test_no_copies.py::test_kernels_get_the_views_themselves",
            f"{_K}/attention/flash_attention_v4.py:231",
        ),
    ),
    KernelRow(
        backend="fa4",
        operation="decode and extend, heads of 256",
        architectures=(HOPPER, BLACKWELL, BLACKWELL_RTX),
        verdict="refused",
        finding="it makes K and V contiguous first: a copy of the whole arena for every layer",
        evidence=(
            f"{_T}/test_no_copies.py::test_fa4_copies_views_of_heads_of_256",
            f"{_K}/attention/flash_attention_v4.py:235",
        ),
    ),
    KernelRow(
        backend="trtllm_mha",
        operation="decode and extend",
        architectures=(BLACKWELL,),
        verdict="read",
        finding="TMA with byte strides; the stride of a page is a C int",
        limit="page_tokens * slot elements below 2^31",
        evidence=(
            f"{_T}/test_no_copies.py::test_kernels_get_the_views_themselves",
            f"{_FI}/csrc/trtllm_fmha_kernel_launcher.cu:508",
        ),
    ),
    KernelRow(
        backend="trtllm_mha",
        operation="decode (XQA)",
        architectures=(HOPPER, BLACKWELL_RTX),
        verdict="read",
        finding="the stride is divided by a head row, rounding down, then int32 times uint32",
        limit="a slot is a multiple of a head (every plan's is); arena bytes / head below 2^32",
        evidence=(f"{_FI}/csrc/xqa/mha.cu:3047", f"{_FI}/csrc/xqa/mhaUtils.cuh:85"),
    ),
    KernelRow(
        backend="trtllm_mha",
        operation="prefill",
        architectures=(HOPPER, BLACKWELL_RTX),
        verdict="read",
        finding="right, and slow: it copies the pages of the batch for every layer",
        limit="the host knows the batch's lengths; without them it copies the whole arena",
        evidence=(
            f"{_T}/test_no_copies.py::test_xqa_prefill_without_host_lengths_stacks_the_arena",
            f"{_SRT}/trtllm_mha_backend.py:455",
            f"{_SRT}/trtllm_mha_backend.py:1441",
        ),
    ),
    KernelRow(
        backend="pools",
        operation="store_cache",
        architectures=EVERY_GPU,
        verdict="compiled",
        finding="64-bit products of slot id and stride",
        evidence=(
            f"{_T}/test_cuda_products.py::test_slot_ids_are_multiplied_in_64_bits",
            f"{_JIT}/elementwise/kvcache.cuh:77",
        ),
    ),
    KernelRow(
        backend="pools",
        operation="rope and store",
        architectures=EVERY_GPU,
        verdict="compiled",
        finding="64-bit products of slot id and stride",
        limit="K and V of one stride",
        evidence=(
            f"{_T}/test_cuda_products.py::test_slot_ids_are_multiplied_in_64_bits",
            f"{_JIT}/elementwise/rope.cuh:225",
        ),
    ),
    KernelRow(
        backend="pools",
        operation="fp8 write",
        architectures=EVERY_GPU,
        verdict="compiled",
        finding="64-bit products of slot id and stride",
        evidence=(
            f"{_T}/test_cuda_products.py::test_slot_ids_are_multiplied_in_64_bits",
            f"{_JIT}/attention/fused_fp8_qkv_kv_cache.cuh:82",
        ),
    ),
    KernelRow(
        backend="states",
        operation="conv1d update and prefill (triton)",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="the slot id becomes int64 before it meets a stride",
        evidence=(
            f"{_T}/test_far_states.py::test_states_are_read_and_written_beyond_32_bits",
            f"{_T}/test_compiled_states.py::test_no_32_bit_product_of_a_slot_id_reaches_a_state",
            f"{_K}/mamba/causal_conv1d_triton.py:116",
        ),
    ),
    KernelRow(
        backend="states",
        operation="SSM update (triton)",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="the slot id becomes int64 before it meets a stride",
        evidence=(
            f"{_T}/test_far_states.py::test_states_are_read_and_written_beyond_32_bits",
            f"{_T}/test_compiled_states.py::test_no_32_bit_product_of_a_slot_id_reaches_a_state",
            f"{_K}/mamba/triton_ops/mamba_ssm.py:178",
        ),
    ),
    KernelRow(
        backend="states",
        operation="gated delta net decode (triton)",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="the slot id becomes int64 before it meets a stride",
        evidence=(
            f"{_T}/test_far_states.py::test_states_are_read_and_written_beyond_32_bits",
            f"{_T}/test_compiled_states.py::test_no_32_bit_product_of_a_slot_id_reaches_a_state",
            f"{_K}/attention/fla/fused_recurrent.py:223",
        ),
    ),
    KernelRow(
        backend="states",
        operation="gated delta net prefill",
        architectures=EVERY_GPU,
        verdict="read",
        finding="gathers and scatters the states of the batch: a copy, small",
        evidence=(f"{_SRT}/linear/gdn_backend.py:1022", f"{_SRT}/linear/gdn_backend.py:1213"),
    ),
    KernelRow(
        backend="states",
        operation="snapshot copies (triton)",
        architectures=EVERY_GPU,
        verdict="ran",
        finding="the slot id becomes int64 before it meets a stride",
        evidence=(
            f"{_T}/test_far_states.py::test_snapshots_are_copied_in_every_layer",
            f"{_T}/test_compiled_states.py::test_no_32_bit_product_of_a_slot_id_reaches_a_state",
            f"{_K}/mamba/mamba_state_scatter_triton.py:108",
        ),
    ),
    KernelRow(
        backend="states",
        operation="conv1d of CUDA (short convolutions, LFM2)",
        architectures=EVERY_GPU,
        verdict="read",
        finding="it follows strides; int32 slot id times uint32 stride wraps at 2^32",
        limit="slot id * slot elements below 2^32; a larger arena is refused, with the slot",
        evidence=(f"{_JIT}/mamba/causal_conv1d.cuh:210",),
    ),
    KernelRow(
        backend="states",
        operation="lightning and seg_la (linear attention)",
        architectures=EVERY_GPU,
        verdict="read",
        finding="int32 slot id times stride without a cast: wraps where slot * stride reaches 2^31",
        limit="(slot id + 1) * slot elements up to 2^31; a larger arena is refused, with the slot",
        evidence=(
            f"{_K}/attention/linear/lightning_attn.py:632",
            f"{_K}/attention/linear/seg_la.py:119",
        ),
    ),
)
