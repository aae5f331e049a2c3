# SPDX-License-Identifier: Apache-2.0
"""What Jenga refuses at start: one row per feature, with flag, value, reason and alternative.

``early`` rows look at what the user wrote, before SGLang resolves defaults; all rows are checked
again on the resolved configuration, so that a feature SGLang switches on by itself is caught too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.config import load_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused feature.

    flag: the command line flag. field: its name on ServerArgs.
    refuses: whether a value of the field is refused. explicit_only: SGLang sets the field by itself
        for some models, where it is harmless; refuse it only when the user wrote it.
    """

    flag: str
    field: str
    refuses: Callable[[Any], bool]
    reason: str
    alternative: str
    explicit_only: bool = False


def _is_set(value: Any) -> bool:
    return bool(value)


def _not(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value not in allowed


_STRIDED = "it copies per-layer contiguous regions, and the arena interleaves layers in a slot"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        flag="--enable-unified-memory",
        field="enable_unified_memory",
        refuses=_is_set,
        reason="both replace the KV pools",
        alternative="drop one of the two",
    ),
    Refusal(
        flag="--enable-page-major-kv-layout",
        field="enable_page_major_kv_layout",
        refuses=_is_set,
        reason="the arena has its own layout",
        alternative="drop the flag: the arena's slots are token-major already",
    ),
    Refusal(
        flag="--enable-kv-cache-sharding",
        field="enable_kv_cache_sharding",
        refuses=_is_set,
        reason="sharded pools address pages by owner rank",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--dcp-size",
        field="dcp_size",
        refuses=lambda value: (value or 1) > 1,
        reason="decode context parallelism widens slot ids across ranks",
        alternative="use tensor parallelism",
    ),
    Refusal(
        flag="--pp-size",
        field="pp_size",
        refuses=lambda value: (value or 1) > 1,
        reason="pipeline stages hold different layers, so their arenas would schedule differently",
        alternative="use tensor parallelism",
    ),
    Refusal(
        flag="--kv-cache-dtype",
        field="kv_cache_dtype",
        refuses=lambda value: value in ("fp4_e2m1", "nvfp4", "mxfp4", "mxfp8", "int4"),
        reason="block-scaled formats keep scales in separate buffers",
        alternative="use auto, bf16 or fp8_e4m3",
    ),
    Refusal(
        flag="--enable-hierarchical-cache",
        field="enable_hierarchical_cache",
        refuses=_is_set,
        reason=_STRIDED,
        alternative="drop the flag: the arena keeps more prefixes on the device",
    ),
    Refusal(
        flag="--enable-lmcache",
        field="enable_lmcache",
        refuses=_is_set,
        reason=_STRIDED,
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-flexkv",
        field="enable_flexkv",
        refuses=_is_set,
        reason=_STRIDED,
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-unified-cache-external-linker",
        field="enable_unified_cache_external_linker",
        refuses=_is_set,
        reason=_STRIDED,
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-hisparse",
        field="enable_hisparse",
        refuses=_is_set,
        reason="hierarchical sparse attention keeps its own device and host pools",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--disaggregation-mode",
        field="disaggregation_mode",
        refuses=_not("null", None),
        reason=_STRIDED + " when KV is sent between servers",
        alternative="serve prefill and decode in one server",
    ),
    Refusal(
        flag="--enable-pd-role-switch",
        field="enable_pd_role_switch",
        refuses=_is_set,
        reason="it needs the pools of a disaggregated server",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--speculative-algorithm",
        field="speculative_algorithm",
        refuses=_is_set,
        reason="a draft model's K/V is not a kind of the arena yet",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-memory-saver",
        field="enable_memory_saver",
        refuses=_is_set,
        reason="the arena is one buffer outside the memory saver's regions",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-session-radix-cache",
        field="enable_session_radix_cache",
        refuses=_is_set,
        reason="session-ordered eviction is not part of the arena's one order",
        alternative="use streaming sessions (--enable-streaming-session)",
    ),
    Refusal(
        flag="--radix-eviction-policy",
        field="radix_eviction_policy",
        refuses=_not("lru", None),
        reason="the arena evicts by one clock across kinds",
        alternative="leave it at lru",
    ),
    Refusal(
        flag="--enable-two-batch-overlap",
        field="enable_two_batch_overlap",
        refuses=_is_set,
        reason="it splits the translated read tables of a batch",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--dllm-algorithm",
        field="dllm_algorithm",
        refuses=_is_set,
        reason="diffusion decoding re-uses slots in place",
        alternative="drop the flag",
    ),
    Refusal(
        flag="--enable-beam-search",
        field="enable_beam_search",
        refuses=_is_set,
        reason="beam members fork rows without a request",
        alternative="use parallel sampling (n > 1)",
    ),
    Refusal(
        flag="--disable-hybrid-swa-memory",
        field="disable_hybrid_swa_memory",
        refuses=_is_set,
        reason="the arena always gives window slots back",
        alternative="drop the flag",
        explicit_only=True,
    ),
)


def problem(row: Refusal, value: Any) -> str:
    """The message for one refused value."""
    return (
        f"{row.flag} (value {value!r}) does not work with --radix-cache-backend jenga: "
        f"{row.reason}. Instead: {row.alternative}."
    )


def _check(config: Any, rows: tuple[Refusal, ...]) -> None:
    problems = [
        problem(row, value)
        for row in rows
        if row.refuses(value := getattr(config, row.field, None))
    ]
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

    _check(resolving_view(server_args), tuple(r for r in REFUSALS if not r.explicit_only))
