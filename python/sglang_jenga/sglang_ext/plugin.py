# SPDX-License-Identifier: Apache-2.0
"""Entry point of group ``sglang.srt.plugins``: attach to SGLang, do nothing until asked.

Runs in every SGLang process. Nothing here changes a server that was started without
``--radix-cache-backend jenga``: every wrapper falls through to the original. (Jamba's states are
registered everywhere, so that SGLang's own pools can serve it with this package's model file;
SGLang alone cannot.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sglang_jenga.models.registration import announce_models
from sglang_jenga.sglang_ext import hooks, native
from sglang_jenga.sglang_ext.config import BACKEND_NAME, add_flags, export_flags, without_effect
from sglang_jenga.sglang_ext.refusals import check_early, check_resolved, reject_beam_search
from sglang_jenga.sglang_ext.state_strategy import resolve_state_strategy

logger = logging.getLogger(__name__)

_loaded = False
_SRT = "sglang.srt"
_COMPONENTS = f"{_SRT}.managers.scheduler_components"


def is_requested(server_args: Any) -> bool:
    """Whether these server arguments ask for the jenga backend."""
    from sglang.srt.arg_groups.overrides import resolving_view

    return bool(resolving_view(server_args).radix_cache_backend == BACKEND_NAME)


def is_active() -> bool:
    """Whether this process serves with the jenga backend (its configuration is published)."""
    from sglang.srt.runtime_context import get_memory

    return bool(get_memory().radix_cache_backend == BACKEND_NAME)


def load() -> None:
    """Register hooks, the radix backend, the reference attention backend and what SGLang must know
    of models that it lacks. Idempotent."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    from sglang_jenga.models.jamba_config import register_jamba

    hooks.register({t: f for t, f in _wrappers().items() if t not in native.replaced()})
    native.attach()
    _register_backends()
    _register_resolution_steps()
    register_jamba()


def _register_backends() -> None:
    from sglang.srt.mem_cache.registry import register_radix_cache_backend
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend

    from sglang_jenga.attention.register import register_reference_backend

    def cache_factory(ctx: Any) -> Any:
        from sglang_jenga.sglang_ext.radix import build_radix_cache

        return build_radix_cache(ctx)

    def core_factory(params: Any, components: Any) -> Any:
        from sglang_jenga.sglang_ext.radix import make_tree_core

        return make_tree_core(params, components)

    register_radix_cache_backend(BACKEND_NAME, cache_factory)
    register_tree_core_backend(BACKEND_NAME, core_factory)
    register_reference_backend(is_requested)


def _register_resolution_steps() -> None:
    """Check the command line in the launcher: errors there are clean and come before any spawn."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_deprecated_dp_attention")
    def first_step(server_args: Any, previous: Callable[[Any], None]) -> None:
        if is_requested(server_args):
            hooks.require_intact()
            check_early(server_args)
            announce_models()
        else:
            for ignored in without_effect():
                logger.warning("Jenga: %s", ignored)
        previous(server_args)

    @register_resolution_hook("handle_other_validations")
    def late_step(server_args: Any, previous: Callable[[Any], None]) -> None:
        previous(server_args)
        if is_requested(server_args):
            resolve_state_strategy(server_args)
            check_resolved(server_args)


def _wrappers() -> dict[str, Callable[..., Any]]:
    """Wrappers by target; the table in hook_table.py says why each is needed."""
    configurator = f"{_SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator"
    return {
        f"{_SRT}.model_executor.model_runner.ModelRunner.load_model": _load_model,
        f"{configurator}.config_from_budget": _config_from_budget,
        f"{configurator}._init_pools": _init_pools,
        f"{configurator}._calculate_mamba_ratio": _states_per_request,
        f"{_SRT}.mem_cache.kv_cache_builder.build_kv_cache": _build_kv_cache,
        f"{_SRT}.managers.schedule_policy.SchedulePolicy.calc_priority": _calc_priority,
        f"{_SRT}.managers.schedule_batch.ScheduleBatch.retract_decode": _retract_decode,
        f"{_SRT}.managers.schedule_policy.PrefillAdder.add_chunked_req": _add_chunked_req,
        f"{_SRT}.managers.scheduler.Scheduler._handle_generate_request": _handle_generate,
        f"{_SRT}.managers.scheduler.Scheduler._handle_embedding_request": _handle_embedding,
        f"{_SRT}.beam_search.coordinator.BeamCoordinator.validate_and_init": _validate_beam,
        (
            f"{_SRT}.managers.scheduler_components.internal_state"
            ".SchedulerInternalStateController._add_memory_usage"
        ): _add_memory_usage,
        f"{_COMPONENTS}.metrics_reporter.SchedulerMetricsReporter.__post_init__": _init_reporter,
        (f"{_SRT}.observability.metrics_collector.SchedulerMetricsCollector.log_stats"): _log_stats,
        f"{_COMPONENTS}.metrics_reporter.SchedulerMetricsReporter._maybe_log_idle_metrics": (
            _log_idle_metrics
        ),
        f"{_COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver.get_pool_stats": (
            _get_pool_stats
        ),
        f"{_SRT}.server_args.ServerArgs.add_cli_args": _add_cli_args,
        f"{_SRT}.server_args.ServerArgs.from_cli_args": _from_cli_args,
    }


def _load_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_active():
        return original(runner, *args, **kwargs)
    from sglang_jenga.models import register_models
    from sglang_jenga.sglang_ext.setup import classify

    hooks.require_intact()
    register_models(override=True)
    result = original(runner, *args, **kwargs)
    classify(runner)
    return result


def _config_from_budget(
    original: Callable[..., Any], kvc: Any, budget_bytes: int, **kwargs: Any
) -> Any:
    if not is_active() or kvc.is_draft_worker:
        return original(kvc, budget_bytes, **kwargs)
    from sglang_jenga.sglang_ext.setup import size_arena

    return size_arena(original, kvc, budget_bytes, **kwargs)


def _init_pools(original: Callable[..., Any], kvc: Any, **kwargs: Any) -> Any:
    if not is_active() or kvc.is_draft_worker:
        return original(kvc, **kwargs)
    from sglang_jenga.sglang_ext.assembly import build_pools

    return build_pools(kvc, kwargs["sizes"])


def _states_per_request(original: Callable[..., int], kvc: Any) -> int:
    return 1 if is_active() else original(kvc)


def _build_kv_cache(result: Any, **kwargs: Any) -> Any:
    embeddings = getattr(result.tree_cache, "embeddings", None)
    if embeddings is not None:
        from sglang.srt.managers import mm_schedule

        mm_schedule.embedding_cache = embeddings
    return result


def _calc_priority(
    result: Any, policy: Any, waiting_queue: list[Any], *args: Any, **kwargs: Any
) -> Any:
    if hasattr(policy.tree_cache, "waiting"):
        policy.tree_cache.observe_waiting_queue(waiting_queue)
    return result


def _retract_decode(result: Any, batch: Any) -> Any:
    from sglang_jenga.sglang_ext.retraction import retract_the_last_too

    return retract_the_last_too(result, batch)


def _add_chunked_req(original: Callable[..., Any], adder: Any, req: Any) -> Any:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
    from sglang_jenga.sglang_ext.retraction import retract_half_done

    unfinished = original(adder, req)
    is_ours = isinstance(adder.token_to_kv_pool_allocator, ArenaAllocatorBase)
    if is_ours and unfinished is req and req not in adder.can_run_list:
        return retract_half_done(req, adder)
    return unfinished


def _handle_generate(
    original: Callable[..., Any], scheduler: Any, recv_req: Any, *args: Any, **kwargs: Any
) -> Any:
    if is_active():
        from sglang_jenga.sglang_ext.vocabulary import answer_400, problem_for

        why = problem_for(scheduler, recv_req)
        if why is not None:
            return answer_400(scheduler, recv_req, why)
    return original(scheduler, recv_req, *args, **kwargs)


def _handle_embedding(
    original: Callable[..., Any], scheduler: Any, recv_req: Any, *args: Any, **kwargs: Any
) -> Any:
    if not is_active():
        return original(scheduler, recv_req, *args, **kwargs)
    from sglang_jenga.sglang_ext.vocabulary import mark_400, problem_for

    why = problem_for(scheduler, recv_req)
    if why is None:
        return original(scheduler, recv_req, *args, **kwargs)
    recv_req.input_ids = recv_req.input_ids[:1]
    recv_req.input_ids[0] = 0
    recv_req.mm_inputs = None
    original(scheduler, recv_req, *args, **kwargs)
    return mark_400(scheduler, recv_req.rid, why)


def _validate_beam(
    original: Callable[..., str | None], coordinator: Any, req: Any, recv_req: Any
) -> str | None:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

    if isinstance(coordinator.token_to_kv_pool_allocator, ArenaAllocatorBase):
        return reject_beam_search()
    return original(coordinator, req, recv_req)


def _add_memory_usage(result: Any, controller: Any, state: dict[str, Any]) -> None:
    from sglang_jenga.sglang_ext.report import add_to_state

    add_to_state(controller.scheduler, state)


def _init_reporter(result: Any, reporter: Any) -> None:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
    from sglang_jenga.sglang_ext.metrics import attach

    if isinstance(reporter.scheduler.token_to_kv_pool_allocator, ArenaAllocatorBase):
        attach(reporter.scheduler, reporter.metrics_collector_context)


def _log_stats(result: Any, collector: Any, stats: Any) -> None:
    from sglang_jenga.sglang_ext.metrics import publish

    publish(collector)


def _log_idle_metrics(result: Any, reporter: Any) -> None:
    from sglang_jenga.sglang_ext.metrics import publish_idle

    publish_idle(reporter.metrics_collector)


def _get_pool_stats(result: Any, observer: Any) -> Any:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
    from sglang_jenga.sglang_ext.pool_stats import on_arena

    arena = observer.token_to_kv_pool_allocator
    if not isinstance(arena, ArenaAllocatorBase):
        return result
    return on_arena(result, arena, observer.tree_cache)


def _add_cli_args(result: Any, parser: Any, *args: Any, **kwargs: Any) -> Any:
    add_flags(parser)
    return result


def _from_cli_args(original: Callable[..., Any], cls: Any, args: Any, **kwargs: Any) -> Any:
    export_flags(args)
    return original(cls, args, **kwargs)
