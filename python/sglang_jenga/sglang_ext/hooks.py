# SPDX-License-Identifier: Apache-2.0
"""The one table of everything Jenga attaches to in SGLang, checked before it is relied on.

SGLang logs and swallows a hook that fails to apply, and a server would then run on its own pools.
So every symbol is checked twice: that it exists with the parameters we call (``check_symbols``, at
start, in the launcher), and that its hook is in place (``check_applied``, where it matters).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.native import replaced

SUPPORTED_SGLANG = ("0.5.23",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One attachment.

    target: dotted path of the symbol. parameters: names its signature must have.
    kind: ``after`` or ``around`` (SGLang's HookRegistry), or ``uses`` for a private symbol that is
        called or overridden, not wrapped.
    reason: why it is needed. upstream: the seam that would replace it.
    """

    target: str
    parameters: tuple[str, ...]
    kind: str
    reason: str
    upstream: str


_SRT = "sglang.srt"
_CONFIGURATOR = f"{_SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_CORE = f"{_SRT}.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore"
_REPORTER = f"{_SRT}.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter"
_SWA = f"{_SRT}.mem_cache.unified_cache.components.SWAComponent"

HOOKS: tuple[Hook, ...] = (
    Hook(
        target=f"{_SRT}.model_executor.model_runner.ModelRunner.load_model",
        parameters=("self",),
        kind="around",
        reason="read the kinds off the built model before SGLang derives its layer split",
        upstream="a layer-kind provider registry consulted after the model is built",
    ),
    Hook(
        target=f"{_CONFIGURATOR}.config_from_budget",
        parameters=("self", "budget_bytes", "cap_tokens"),
        kind="around",
        reason="size the arena from the byte budget and publish capacities that it can hold",
        upstream="hand the raw byte budget to a registered pool builder",
    ),
    Hook(
        target=f"{_CONFIGURATOR}._init_pools",
        parameters=("self", "sizes", "req_to_token_pool", "token_to_kv_pool_allocator"),
        kind="around",
        reason="build the arena's pools and allocator instead of SGLang's",
        upstream="a pool builder registry in KVCacheConfigurator",
    ),
    Hook(
        target=f"{_CONFIGURATOR}._calculate_mamba_ratio",
        parameters=("self",),
        kind="around",
        reason="a running request holds one recurrent state, not three to five",
        upstream="ask the pool builder how many requests may run",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.kv_cache_builder.build_kv_cache",
        parameters=("server_args", "model_config"),
        kind="after",
        reason="keep embeddings of images in the arena instead of SGLang's side cache",
        upstream="a registry of embedding caches that init_mm_embedding_cache consults",
    ),
    Hook(
        target=f"{_SRT}.managers.mm_schedule.init_mm_embedding_cache",
        parameters=("max_size",),
        kind="uses",
        reason="sets mm_schedule.embedding_cache, which is set again: forwards look there",
        upstream="a registry of embedding caches that init_mm_embedding_cache consults",
    ),
    Hook(
        target=f"{_SRT}.managers.schedule_policy.SchedulePolicy.calc_priority",
        parameters=("self", "waiting_queue"),
        kind="after",
        reason="know the queue: a window and a state are kept where a waiting prompt will branch",
        upstream="tell the tree cache what waits",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache.touch_prefix",
        parameters=("self", "key"),
        kind="uses",
        reason="a waiting prompt counts as a use of what it will hit",
        upstream="none needed",
    ),
    Hook(
        target=f"{_SRT}.managers.schedule_batch.ScheduleBatch.retract_decode",
        parameters=("self",),
        kind="after",
        reason="retract the last running request instead of aborting it for want of memory",
        upstream="retract the last request while a half-done prompt can still make progress",
    ),
    Hook(
        target=f"{_SRT}.beam_search.coordinator.BeamCoordinator.validate_and_init",
        parameters=("self", "req", "recv_req"),
        kind="around",
        reason="answer a beam search request with why it is not served",
        upstream="a capability of the allocator that the coordinator asks for",
    ),
    Hook(
        target=(
            f"{_SRT}.managers.scheduler_components.internal_state"
            ".SchedulerInternalStateController._add_memory_usage"
        ),
        parameters=("self", "state"),
        kind="after",
        reason="show the arena in /server_info",
        upstream="contributors registered by allocators",
    ),
    Hook(
        target=f"{_REPORTER}.__post_init__",
        parameters=("self",),
        kind="after",
        reason="register metrics of the arena with the labels of SGLang's own",
        upstream="collectors contributed by allocators",
    ),
    Hook(
        target=f"{_SRT}.observability.metrics_collector.SchedulerMetricsCollector.log_stats",
        parameters=("self", "stats"),
        kind="after",
        reason="publish metrics of the arena when SGLang publishes its own",
        upstream="collectors contributed by allocators",
    ),
    Hook(
        target=f"{_REPORTER}._maybe_log_idle_metrics",
        parameters=("self",),
        kind="after",
        reason="publish them once more when a server goes idle or its cache is flushed",
        upstream="collectors contributed by allocators",
    ),
    Hook(
        target=(
            f"{_SRT}.managers.scheduler_components.pool_stats_observer"
            ".SchedulerPoolStatsObserver.get_pool_stats"
        ),
        parameters=("self",),
        kind="after",
        reason="measure usages in SGLang's gauges and log lines against the arena",
        upstream="let allocators make the PoolStats",
    ),
    Hook(
        target=f"{_SRT}.server_args.ServerArgs.add_cli_args",
        parameters=("parser",),
        kind="after",
        reason="--jenga-* flags",
        upstream="a plugin namespace in ServerArgs",
    ),
    Hook(
        target=f"{_SRT}.server_args.ServerArgs.from_cli_args",
        parameters=("args",),
        kind="around",
        reason="carry --jenga-* values to every process",
        upstream="a plugin namespace in ServerArgs",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.allocation.ALLOC_FOR_DECODE_FUNCS",
        parameters=(),
        kind="uses",
        reason="decode allocation with request identity (a table meant for devices)",
        upstream="pass the batch to allocators that declare they want it",
    ),
    Hook(
        target=f"{_SRT}.model_executor.pool_configurator.create_memory_pool_configurator",
        parameters=("kvc",),
        kind="uses",
        reason="the bytes the stock server would take: its configurator's bytes per token",
        upstream="expose bytes per token on MemoryPoolConfigurator",
    ),
    Hook(
        target=f"{_CORE}._update_evictable_leaf_sets",
        parameters=("self", "node"),
        kind="uses",
        reason="overridden: keep evictable leaves in a persistent heap",
        upstream="a persistent heap in FullComponent",
    ),
    Hook(
        target=f"{_CORE}._evict_component_and_detach_lru",
        parameters=("self", "node", "comp", "device_frees", "host_frees", "cache_actions"),
        kind="uses",
        reason="evict the window slots of one chosen node",
        upstream="an evict-this-node step in TreeCore",
    ),
    Hook(
        target=f"{_CORE}._cascade_evict",
        parameters=("self", "node", "trigger", "tracker", "device_frees", "host_frees"),
        kind="uses",
        reason="evict the window slots of one chosen node",
        upstream="an evict-this-node step in TreeCore",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache._evict_components",
        parameters=("self", "request_by_type", "tracker", "available_size_targets"),
        kind="uses",
        reason="overridden: one eviction order across kinds",
        upstream="an eviction order strategy across components",
    ),
    Hook(
        target=f"{_CORE}._split_node",
        parameters=("self", "key", "child", "split_len"),
        kind="uses",
        reason="make the window at the end of a prefix whole nodes, pinned and evicted by itself",
        upstream="a cut-window step in SWAComponent",
    ),
    Hook(
        target=f"{_CORE}._add_new_node",
        parameters=("self", "parent", "key", "value"),
        kind="uses",
        reason="overridden: a node of the tree is all image or all text",
        upstream="node boundaries that components ask for",
    ),
    Hook(
        target=f"{_CORE}.set_component_device_value",
        parameters=("self", "node_id", "component_type", "value"),
        kind="uses",
        reason="overridden: a window or state that came may make what is cached a hit again",
        upstream="KV-cache events that ask the components what can be hit",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.events.KVCacheEventRecorder.record_store",
        parameters=("self", "node", "medium", "session_id"),
        kind="uses",
        reason="overridden: a block is published while it leads to a hit",
        upstream="KV-cache events that ask the components what can be hit",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.events.KVCacheEventRecorder.record_remove",
        parameters=("self", "node", "medium"),
        kind="uses",
        reason="overridden: and taken back when it does not any more",
        upstream="KV-cache events that ask the components what can be hit",
    ),
    Hook(
        target=f"{_SRT}.mem_cache.events.KVCacheEventRecorder.take",
        parameters=("self",),
        kind="uses",
        reason="overridden: what changed since the last step is settled first",
        upstream="KV-cache events that ask the components what can be hit",
    ),
    Hook(
        target=f"{_CORE}._create_match_validators",
        parameters=("self", "params", "match_device_only"),
        kind="uses",
        reason="overridden: a request hits all of its images or none; what a match saw is noted",
        upstream="hand the match parameters to a component's validator",
    ),
    Hook(
        target=(f"{_SRT}.mem_cache.unified_cache.unified_tree_core.UnifiedLRUList._add_node_after"),
        parameters=("self", "prev_node", "new_node"),
        kind="uses",
        reason="overridden: stamp window nodes with the clock that full nodes use",
        upstream="one clock for all components",
    ),
    Hook(
        target=f"{_SWA}._maybe_split_leaf_for_swa_lock",
        parameters=("self", "leaf", "cache_actions"),
        kind="uses",
        reason="overridden: windows are cut where they are pinned",
        upstream="a cut-window step in SWAComponent",
    ),
    Hook(
        target=f"{_SWA}.create_match_validator",
        parameters=("self", "match_device_only"),
        kind="uses",
        reason="overridden: a hit is what the kind's policy says",
        upstream="a policy object on SWAComponent",
    ),
    Hook(
        target=f"{_SWA}.acquire_component_lock",
        parameters=("self", "node", "result", "lock_host"),
        kind="uses",
        reason="overridden: pins what the kind's policy needs, head and tail, not whole nodes",
        upstream="a policy object on SWAComponent",
    ),
    Hook(
        target=f"{_SWA}.release_component_lock",
        parameters=("self", "node", "params", "lock_host"),
        kind="uses",
        reason="overridden: and releases the same",
        upstream="a policy object on SWAComponent",
    ),
    Hook(
        target=f"{_SWA}.free_out_of_window_slots",
        parameters=("self", "req", "pre_len", "insert_params"),
        kind="uses",
        reason="overridden: window slots of a prompt go into the tree, spare, not back",
        upstream="a retention policy on SWAComponent",
    ),
    Hook(
        target=f"{_SWA}._free_out_of_window_slots",
        parameters=("self", "req", "pre_len"),
        kind="uses",
        reason="overridden: window slots of a prompt go into the tree, spare, not back",
        upstream="a retention policy on SWAComponent",
    ),
)


def needed() -> tuple[Hook, ...]:
    """The rows of the table that no seam of the running SGLang replaces."""
    native_targets = replaced()
    return tuple(hook for hook in HOOKS if hook.target not in native_targets)


def check_symbols() -> list[str]:
    """Problems with this SGLang, empty when every symbol of the table is as expected."""
    from sglang.version import __version__

    problems = []
    if __version__ not in SUPPORTED_SGLANG:
        problems.append(
            f"sglang {__version__} is installed, sglang-jenga attaches to "
            f"{', '.join(SUPPORTED_SGLANG)}: pip install sglang=={SUPPORTED_SGLANG[-1]}"
        )
    for hook in needed():
        try:
            symbol = pkgutil.resolve_name(hook.target)
        except (ImportError, AttributeError) as error:
            problems.append(f"{hook.target} is missing ({error}); needed to {hook.reason}")
            continue
        if not hook.parameters:
            continue
        found = inspect.signature(inspect.unwrap(symbol)).parameters
        missing = [name for name in hook.parameters if name not in found]
        if hook.target.endswith("from_cli_args") or hook.target.endswith("add_cli_args"):
            missing = [name for name in missing if name != "self"]
        if missing:
            problems.append(
                f"{hook.target} has no parameter {', '.join(missing)} (it has "
                f"{', '.join(found)}); needed to {hook.reason}"
            )
    return problems


def register(functions: dict[str, Callable[..., Any]]) -> None:
    """Register the wrappers, one per ``after``/``around`` row of the table, by target.

    Raises:
        ConfigError: the table and the functions do not match (a programming error).
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    wrapped = {hook.target: hook for hook in needed() if hook.kind != "uses"}
    if set(wrapped) != set(functions):
        raise ConfigError(f"hook table and wrappers differ: {set(wrapped) ^ set(functions)}")
    for target, function in functions.items():
        HookRegistry.register(target, function, HookType(wrapped[target].kind))


def check_applied() -> list[str]:
    """Hooks of the table that SGLang did not put in place in this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [
        f"{hook.target} is not hooked in this process; needed to {hook.reason}"
        for hook in needed()
        if hook.kind != "uses" and hook.target not in HookRegistry._patched
    ]


def require_intact() -> None:
    """Refuse to go on unless every symbol is as expected and every hook in place.

    Raises:
        ConfigError: with all problems and what to do.
    """
    problems = check_symbols() + check_applied()
    if problems:
        raise ConfigError(
            "--radix-cache-backend jenga cannot attach to this SGLang:\n  "
            + "\n  ".join(problems)
            + "\nInstall the SGLang version that sglang-jenga supports, or drop the flag."
        )
