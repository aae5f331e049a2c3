# SPDX-License-Identifier: Apache-2.0
"""Seams of SGLang that make hooks needless: used where the running SGLang has them.

They are the patches of ``patches/`` (docs/upstream.md): a released SGLang has none of them yet.
Where one resolves, the hooks that it replaces are neither checked nor applied, and what they did
is registered with it instead.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from sglang_jenga.sglang_ext.config import BACKEND_NAME, add_flags, export_flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """A door of SGLang.

    symbol: dotted path that exists where SGLang has it.
    replaces: targets of the hook table that it makes needless.
    attach: registers with the resolved symbol, once per process; None: classes of ours override
        what the symbol names.
    """

    symbol: str
    replaces: tuple[str, ...]
    attach: Callable[[Any], None] | None = None


class ArenaPoolBuilder:
    """SGLang's ``KVPoolBuilder`` for servers with ``--radix-cache-backend jenga``."""

    def before_load_model(self, runner: Any) -> None:
        from sglang_jenga.models import register_models
        from sglang_jenga.sglang_ext import hooks

        hooks.require_intact()
        register_models(override=True)

    def after_load_model(self, runner: Any) -> None:
        from sglang_jenga.sglang_ext.setup import classify

        classify(runner)

    def mamba_slots_per_request(self, kvc: Any) -> int:
        return 1

    def config_from_budget(
        self, kvc: Any, budget_bytes: int, cap_tokens: int | None, default: Callable[..., Any]
    ) -> Any:
        from sglang_jenga.sglang_ext.setup import size_arena

        def stock(kvc: Any, budget_bytes: int, **kwargs: Any) -> Any:
            return default(budget_bytes, **kwargs)

        return size_arena(stock, kvc, budget_bytes, cap_tokens=cap_tokens)

    def init_pools(self, kvc: Any, sizes: Any) -> Any:
        from sglang_jenga.sglang_ext.assembly import build_pools

        return build_pools(kvc, sizes)


class ArenaObserver:
    """SGLang's ``SchedulerObserver`` for a scheduler whose pools are an arena."""

    def __init__(self, scheduler: Any, context: Any) -> None:
        from sglang_jenga.sglang_ext.metrics import attach

        self._scheduler = scheduler
        self._collector = context.collector
        attach(scheduler, context)

    def add_internal_state(self, state: dict[str, Any]) -> None:
        from sglang_jenga.sglang_ext.report import add_to_state

        add_to_state(self._scheduler, state)

    def correct_pool_stats(self, stats: Any) -> Any:
        from sglang_jenga.sglang_ext.pool_stats import on_arena

        scheduler = self._scheduler
        return on_arena(stats, scheduler.token_to_kv_pool_allocator, scheduler.tree_cache)

    def publish_metrics(self) -> None:
        from sglang_jenga.sglang_ext.metrics import publish

        publish(self._collector)

    def publish_idle_metrics(self) -> None:
        from sglang_jenga.sglang_ext.metrics import publish_idle

        publish_idle(self._collector)


def observe(scheduler: Any, context: Any) -> ArenaObserver | None:
    """An observer for ``scheduler`` if its pools are an arena."""
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

    if not isinstance(scheduler.token_to_kv_pool_allocator, ArenaAllocatorBase):
        return None
    return ArenaObserver(scheduler, context)


def _register_decode(register: Callable[..., None]) -> None:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
    from sglang_jenga.sglang_ext.decode import alloc_for_decode

    register(ArenaAllocatorBase, alloc_for_decode)


_SRT = "sglang.srt"
_CONFIGURATOR = f"{_SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_COMPONENTS = f"{_SRT}.managers.scheduler_components"
_REPORTER = f"{_COMPONENTS}.metrics_reporter.SchedulerMetricsReporter"
DECODE = f"{_SRT}.mem_cache.allocation.register_alloc_for_decode"
RETRACT_LAST = f"{_SRT}.environ.Envs.SGLANG_RETRACT_LAST_REQUEST"

SEAMS: tuple[Seam, ...] = (
    Seam(
        symbol=f"{_SRT}.mem_cache.base_prefix_cache.BasePrefixCache.observe_waiting_queue",
        replaces=(f"{_SRT}.managers.schedule_policy.SchedulePolicy.calc_priority",),
    ),
    Seam(
        symbol=f"{_SRT}.mem_cache.allocator.BaseTokenToKVPoolAllocator.supports_beam_search",
        replaces=(f"{_SRT}.beam_search.coordinator.BeamCoordinator.validate_and_init",),
    ),
    Seam(
        symbol=DECODE,
        replaces=(f"{_SRT}.mem_cache.allocation.ALLOC_FOR_DECODE_FUNCS",),
        attach=_register_decode,
    ),
    Seam(
        symbol=f"{_SRT}.mem_cache.base_prefix_cache.BasePrefixCache.make_embedding_cache",
        replaces=(
            f"{_SRT}.mem_cache.kv_cache_builder.build_kv_cache",
            f"{_SRT}.managers.mm_schedule.init_mm_embedding_cache",
        ),
    ),
    Seam(
        symbol=f"{_COMPONENTS}.observer.register_scheduler_observer",
        replaces=(
            f"{_COMPONENTS}.internal_state.SchedulerInternalStateController._add_memory_usage",
            f"{_REPORTER}.__post_init__",
            f"{_SRT}.observability.metrics_collector.SchedulerMetricsCollector.log_stats",
            f"{_REPORTER}._maybe_log_idle_metrics",
            f"{_COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver.get_pool_stats",
        ),
        attach=lambda register: register(observe),
    ),
    Seam(
        symbol=f"{_SRT}.plugins.cli.register_plugin_arguments",
        replaces=(
            f"{_SRT}.server_args.ServerArgs.add_cli_args",
            f"{_SRT}.server_args.ServerArgs.from_cli_args",
        ),
        attach=lambda register: register(add_flags, export_flags),
    ),
    Seam(
        symbol=f"{_SRT}.mem_cache.kv_pool_builder.register_kv_pool_builder",
        replaces=(
            f"{_SRT}.model_executor.model_runner.ModelRunner.load_model",
            f"{_CONFIGURATOR}.config_from_budget",
            f"{_CONFIGURATOR}._init_pools",
            f"{_CONFIGURATOR}._calculate_mamba_ratio",
        ),
        attach=lambda register: register(BACKEND_NAME, ArenaPoolBuilder()),
    ),
    Seam(  # switched on where pools are built
        symbol=RETRACT_LAST,
        replaces=(f"{_SRT}.managers.schedule_batch.ScheduleBatch.retract_decode",),
    ),
)


@cache
def resolved() -> dict[str, Any]:
    """The seams that the running SGLang has, by symbol."""
    found = {}
    for seam in SEAMS:
        try:
            found[seam.symbol] = pkgutil.resolve_name(seam.symbol)
        except (ImportError, AttributeError):
            continue
    return found


def replaced() -> frozenset[str]:
    """Targets of the hook table that a seam of the running SGLang makes needless."""
    there = resolved()
    return frozenset(t for seam in SEAMS if seam.symbol in there for t in seam.replaces)


def attach() -> None:
    """Register with every seam that the running SGLang has."""
    there = resolved()
    for seam in SEAMS:
        if seam.attach is not None and seam.symbol in there:
            seam.attach(there[seam.symbol])
