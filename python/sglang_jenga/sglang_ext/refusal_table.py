# SPDX-License-Identifier: Apache-2.0
"""The table of refused features and values: one row each, with flag, value, reason and alternative.

``docs/refusals.md`` is made from it; :mod:`sglang_jenga.sglang_ext.refusals` checks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_jenga.core.kernels import ATTENTION_BACKENDS
from sglang_jenga.sglang_ext.refusal import Refusal
from sglang_jenga.sglang_ext.refused_values import VALUES


def _other_than(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value not in allowed


def _more_than_one(value: Any) -> bool:
    return (value or 1) > 1


#: Reads window layers through untranslated slots: right only for a model without windows.
UNTRANSLATED_BACKEND = "torch_native"
#: Those that compute chunked-local attention; the others would attend to the whole prefix.
CHUNKED_BACKENDS = ("fa3", "fa4", "jenga_ref")
#: Those that ask a layer's own policy which keys it reads.
OWN_POLICY_BACKENDS = ("jenga_ref",)
#: Encoder-decoder models whose images were checked as a kind.
ENCODER_ARCHITECTURES = ("MllamaForConditionalGeneration",)

_STRIDED = "it copies per-layer contiguous regions, and the arena interleaves layers in a slot"
_DROP = "drop the flag"
#: Kernels that read and write recurrent states through their strides (SGLang's own list for its
#: strided layout, arg_groups/kv_cache_hook.py).
STATE_DECODE_KERNELS = ("triton", "flashinfer")
STATE_PREFILL_KERNELS = ("triton", "flashkda", "flashinfer")
STATE_KERNELS = ("triton",)


def _state_row(flag: str, field: str, allowed: tuple[str, ...], example: str) -> Refusal:
    return Refusal(
        flag=flag,
        field=field,
        values=f"other than {', '.join(allowed)}",
        example=example,
        refuses=_other_than(*allowed, None),
        reason="its kernels were not checked on strided recurrent states",
        alternative="use triton",
    )


def _attention_row(flag: str, field: str) -> Refusal:
    return Refusal(
        flag=flag,
        field=field,
        values=f"other than {', '.join((*ATTENTION_BACKENDS, UNTRANSLATED_BACKEND))}",
        example="flex_attention",
        refuses=_other_than(*ATTENTION_BACKENDS, UNTRANSLATED_BACKEND, None),
        reason="it was not checked on strided K/V with translated window slots",
        alternative="use flashinfer, triton or fa3 (jenga_ref on a CPU)",
    )


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        flag="--enable-unified-memory",
        field="enable_unified_memory",
        reason="both replace the KV pools",
        alternative="drop one of the two",
    ),
    Refusal(
        flag="--enable-page-major-kv-layout",
        field="enable_page_major_kv_layout",
        reason="the arena has its own layout",
        alternative=f"{_DROP}: the arena's slots are token-major already",
    ),
    Refusal(
        flag="--enable-kv-cache-sharding",
        field="enable_kv_cache_sharding",
        reason="sharded pools address pages by owner rank",
        alternative=_DROP,
    ),
    Refusal(
        flag="--dcp-size",
        field="dcp_size",
        values="above 1",
        example="2",
        refuses=_more_than_one,
        reason="decode context parallelism widens slot ids across ranks",
        alternative="use tensor parallelism",
    ),
    Refusal(
        flag="--pp-size",
        field="pp_size",
        values="above 1",
        example="2",
        refuses=_more_than_one,
        reason="pipeline stages hold different layers, so their arenas would schedule differently",
        alternative="use tensor parallelism",
    ),
    Refusal(
        flag="--kv-cache-dtype",
        field="kv_cache_dtype",
        values="mxfp8, nvfp4, fp4_mx_block16",
        example="mxfp8",
        refuses=lambda value: value in ("mxfp8", "nvfp4", "fp4_mx_block16"),
        reason="block-scaled formats keep scales in separate buffers",
        alternative="use auto, bf16 or fp8_e4m3",
    ),
    _attention_row("--attention-backend", "attention_backend"),
    _attention_row("--prefill-attention-backend", "prefill_attention_backend"),
    _attention_row("--decode-attention-backend", "decode_attention_backend"),
    Refusal(
        flag="--device",
        field="device",
        values="other than cuda, cpu",
        example="npu",
        refuses=_other_than("cuda", "cpu", None),
        reason="its attention backends were not checked on strided K/V",
        alternative="use cuda, or cpu for a test bed",
    ),
    Refusal(
        flag="--enable-hierarchical-cache",
        field="enable_hierarchical_cache",
        reason=_STRIDED,
        alternative=f"{_DROP}: the arena keeps more prefixes on the device",
    ),
    Refusal(flag="--enable-lmcache", field="enable_lmcache", reason=_STRIDED, alternative=_DROP),
    Refusal(flag="--enable-flexkv", field="enable_flexkv", reason=_STRIDED, alternative=_DROP),
    Refusal(
        flag="--enable-unified-cache-external-linker",
        field="enable_unified_cache_external_linker",
        reason=_STRIDED,
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-hisparse",
        field="enable_hisparse",
        reason="hierarchical sparse attention keeps its own device and host pools",
        alternative=_DROP,
    ),
    Refusal(
        flag="--disaggregation-mode",
        field="disaggregation_mode",
        values="prefill, decode",
        example="prefill",
        refuses=_other_than("null", None),
        reason=_STRIDED + " when KV is sent between servers",
        alternative="serve prefill and decode in one server",
    ),
    Refusal(
        flag="--enable-pd-role-switch",
        field="enable_pd_role_switch",
        reason="it needs the pools of a disaggregated server",
        alternative=_DROP,
    ),
    Refusal(
        flag="--disaggregation-decode-enable-offload-kvcache",
        field="disaggregation_decode_enable_offload_kvcache",
        reason=_STRIDED,
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-pdmux",
        field="enable_pdmux",
        reason="prefill and decode run on two streams, and slots are reused in the order of one",
        alternative="use chunked prefill (--chunked-prefill-size)",
    ),
    Refusal(
        flag="--speculative-algorithm",
        field="speculative_algorithm",
        values="any",
        example="NGRAM",
        reason="a draft model's K/V is not a kind of the arena yet",
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-memory-saver",
        field="enable_memory_saver",
        reason="the arena is one buffer outside the memory saver's regions",
        alternative=_DROP,
    ),
    Refusal(
        flag="--prefill-only-disable-kv-cache",
        field="prefill_only_disable_kv_cache",
        reason="it serves without a KV cache, which is what the arena is",
        alternative="drop --radix-cache-backend",
    ),
    Refusal(
        flag="--enable-session-radix-cache",
        field="enable_session_radix_cache",
        reason="session-ordered eviction is not part of the arena's one order",
        alternative="use streaming sessions (--enable-streaming-session)",
    ),
    Refusal(
        flag="--radix-eviction-policy",
        field="radix_eviction_policy",
        values="other than lru",
        example="lfu",
        refuses=_other_than("lru", None),
        reason="the arena evicts by one clock across kinds",
        alternative="leave it at lru",
    ),
    Refusal(
        flag="--disable-hybrid-swa-memory",
        field="disable_hybrid_swa_memory",
        reason="the arena always gives window slots back",
        alternative=_DROP,
        explicit_only=True,
    ),
    Refusal(
        flag="--enable-encoder-swa-bounded-replay",
        field="enable_encoder_swa_bounded_replay",
        reason="it keeps windows per request, outside the prefix tree",
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-decoder-swa-bounded-replay",
        field="enable_decoder_swa_bounded_replay",
        reason="it writes windows of a prompt's tail only, and the tree would hit unwritten slots",
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-int8-mamba-checkpoint",
        field="enable_int8_mamba_checkpoint",
        reason="it keeps cached states in a second pool, outside the arena",
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-linear-replayssm",
        field="enable_linear_replayssm",
        reason="its records are kept per state slot, in buffers outside the arena",
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-linear-replayssm-spec",
        field="enable_linear_replayssm_spec",
        reason="its records are kept per state slot, in buffers outside the arena",
        alternative=_DROP,
    ),
    _state_row("--mamba-backend", "mamba_backend", STATE_KERNELS, "flashinfer"),
    _state_row("--linear-attn-backend", "linear_attn_backend", STATE_DECODE_KERNELS, "cutedsl"),
    _state_row(
        "--linear-attn-decode-backend",
        "linear_attn_decode_backend",
        STATE_DECODE_KERNELS,
        "cutedsl",
    ),
    _state_row(
        "--linear-attn-prefill-backend",
        "linear_attn_prefill_backend",
        STATE_PREFILL_KERNELS,
        "cutedsl",
    ),
    Refusal(
        flag="--enable-two-batch-overlap",
        field="enable_two_batch_overlap",
        reason="it splits the translated read tables of a batch",
        alternative=_DROP,
    ),
    Refusal(
        flag="--dllm-algorithm",
        field="dllm_algorithm",
        values="any",
        example="LowConfidence",
        reason="diffusion decoding re-uses slots in place",
        alternative=_DROP,
    ),
    Refusal(
        flag="--kv-canary",
        field="kv_canary",
        values="log, raise",
        example="log",
        refuses=_other_than("none", None),
        reason="it patches SGLang's own pool classes and knows no others",
        alternative="SGLang's memory checks and the arena's audit run without it",
    ),
    Refusal(
        flag="SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        field="SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        example="1",
        reason="the arena is sized once, before graphs are captured",
        alternative="unset it",
    ),
    Refusal(
        flag="SGLANG_USE_HND_KVCACHE",
        field="SGLANG_USE_HND_KVCACHE",
        example="1",
        reason="it stores heads before tokens, and a slot of the arena is one token",
        alternative="unset it",
    ),
    Refusal(
        flag="SGLANG_OPT_UNIFIED_CACHE_FREE_OUT_OF_WINDOW_SLOTS",
        field="SGLANG_OPT_UNIFIED_CACHE_FREE_OUT_OF_WINDOW_SLOTS",
        values="off",
        example="0",
        refuses=lambda value: not value,
        reason="a long prompt would keep every window slot until its last chunk",
        alternative="unset it",
    ),
    *VALUES,
)
