# SPDX-License-Identifier: Apache-2.0
"""What Jenga refuses at start: one row per feature, with flag, value, reason and alternative.

The launcher checks twice: what the user wrote, before SGLang resolves defaults (early, so that the
message names what they wrote), and what SGLang resolved to, so that a feature it switches on by
itself is caught too. Models are refused after they are built, when their layers are known.

``docs/refusals.md`` is made from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.config import load_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused feature.

    flag: what the user writes, a command line flag or an environment variable.
    field: its name on ServerArgs, or on ``sglang.srt.environ.envs`` for a variable.
    values: the refused values in words. example: one of them, as written on the command line.
    refuses: whether a value of the field is refused.
    explicit_only: SGLang sets the field by itself for some models, where it is harmless; refuse it
        only when the user wrote it.
    """

    flag: str
    field: str
    reason: str
    alternative: str
    values: str = "on"
    example: str = ""
    refuses: Callable[[Any], bool] = bool
    explicit_only: bool = False

    @property
    def is_environment(self) -> bool:
        return not self.flag.startswith("--")

    def value_in(self, config: Any) -> Any:
        """The field's present value. AttributeError when SGLang has no such field."""
        if not self.is_environment:
            return getattr(config, self.field)
        from sglang.srt.environ import envs

        return getattr(envs, self.field).get()


def _other_than(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value not in allowed


def _more_than_one(value: Any) -> bool:
    return (value or 1) > 1


#: Attention backends that read K/V through strides and through the window translation table.
ATTENTION_BACKENDS = ("flashinfer", "triton", "fa3", "fa4", "trtllm_mha", "jenga_ref")
#: Reads window layers through untranslated slots: right only for a model without windows.
UNTRANSLATED_BACKEND = "torch_native"
#: Those that compute chunked-local attention; the others would attend to the whole prefix.
CHUNKED_BACKENDS = ("fa3", "fa4", "jenga_ref")

_STRIDED = "it copies per-layer contiguous regions, and the arena interleaves layers in a slot"
_DROP = "drop the flag"
_STATES = "recurrent states are not in the arena yet"


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
        reason=_STATES,
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-linear-replayssm",
        field="enable_linear_replayssm",
        reason=_STATES,
        alternative=_DROP,
    ),
    Refusal(
        flag="--enable-linear-replayssm-spec",
        field="enable_linear_replayssm_spec",
        reason=_STATES,
        alternative=_DROP,
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
)


def problem(row: Refusal, value: Any) -> str:
    """The message for one refused value."""
    return (
        f"{row.flag} (value {value!r}) does not work with --radix-cache-backend jenga: "
        f"{row.reason}. Instead: {row.alternative}."
    )


def _check(config: Any, rows: Iterable[Refusal]) -> None:
    problems = [problem(row, value) for row in rows if row.refuses(value := row.value_in(config))]
    if problems:
        raise ConfigError("\n".join(problems))


def check_early(server_args: Any) -> None:
    """Refuse what the user wrote, and settings that do not parse.

    Raises:
        ConfigError: every problem at once.
    """
    load_config()
    _check(server_args, REFUSALS)


def check_resolved(server_args: Any) -> None:
    """Refuse what SGLang resolved to, defaults and model overrides included.

    Raises:
        ConfigError: every problem at once.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    _check(resolving_view(server_args), [row for row in REFUSALS if not row.explicit_only])


def check_backends(backends: Iterable[str | None], *, has_windows: bool, is_chunked: bool) -> None:
    """Refuse attention backends that would read this model's window kind wrongly.

    Args:
        backends: the resolved prefill and decode backends.
        has_windows: the model has windowed or chunked layers. is_chunked: they are chunked.

    Raises:
        ConfigError: naming the backend and those that serve the model.
    """
    if not has_windows:
        return
    what, allowed = "sliding windows", ATTENTION_BACKENDS
    if is_chunked:
        what, allowed = "chunked-local attention", CHUNKED_BACKENDS
    for backend in backends:
        if backend is not None and backend not in allowed:
            raise ConfigError(
                f"--attention-backend {backend} does not work with --radix-cache-backend jenga for "
                f"this model: it would read {what} wrongly. Instead: use one of "
                f"{', '.join(allowed)}."
            )


def reject_beam_search() -> str:
    """The answer to a request with ``beam_width`` above 1."""
    return (
        "Beam search is not supported with --radix-cache-backend jenga: beam members fork rows "
        "without a request of their own. Instead: use parallel sampling (n above 1)."
    )
