# SPDX-License-Identifier: Apache-2.0
"""The one table of everything Jenga attaches to in SGLang; :mod:`sglang_jenga.sglang_ext.hooks`
checks it."""

from __future__ import annotations

from dataclasses import dataclass


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
_SESSIONS = f"{_SRT}.session.streaming_session.StreamingSession"
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
        target=f"{_SRT}.managers.scheduler.Scheduler._apply_war_barrier",
        parameters=("self",),
        kind="uses",
        reason="on CUDA no forward in flight sees a table entry of a later step",
        upstream="none needed: the order of table writes and forwards as a documented promise",
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
        target=f"{_SRT}.managers.schedule_policy.PrefillAdder.add_chunked_req",
        parameters=("self", "req"),
        kind="around",
        reason="retract a half-done prompt that is alone and cannot go on, so that nobody hangs",
        upstream="retract the half-done prompt too when nothing else can give way",
    ),
    Hook(
        target=f"{_SESSIONS}.try_match_prefix",
        parameters=("self", "params"),
        kind="uses",
        reason="overridden: the record that a waiting turn borrows stays while it is decided on",
        upstream="evictable session records",
    ),
    Hook(
        target=f"{_SESSIONS}.take",
        parameters=("self", "req"),
        kind="uses",
        reason="overridden: a session's record is pinned while a turn runs",
        upstream="evictable session records",
    ),
    Hook(
        target=f"{_SESSIONS}.try_cache_finished_req",
        parameters=("self", "req"),
        kind="uses",
        reason="overridden: it may be evicted between turns, and a retracted turn gives it back",
        upstream="evictable session records",
    ),
    Hook(
        target=f"{_SESSIONS}.release_session",
        parameters=("self", "session_id"),
        kind="uses",
        reason="overridden: evict a session's record, its next turn is computed from its tokens",
        upstream="evictable session records",
    ),
    Hook(
        target=f"{_SRT}.session.session_controller.Session.abort_req",
        parameters=("self",),
        kind="uses",
        reason="clears _inflight, which says whether a turn waits for an idle record",
        upstream="evictable session records",
    ),
    Hook(
        target=f"{_SRT}.managers.scheduler.Scheduler._handle_generate_request",
        parameters=("self", "recv_req", "mm_cleanup"),
        kind="around",
        reason="answer 400 to ids without a row in the embedding, which kill the scheduler",
        upstream="check input_ids where token_ids_logprob is checked",
    ),
    Hook(
        target=f"{_SRT}.managers.scheduler.Scheduler._handle_embedding_request",
        parameters=("self", "recv_req", "mm_cleanup"),
        kind="around",
        reason="the same for embedding requests",
        upstream="check input_ids where token_ids_logprob is checked",
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
        reason="overridden: a node knows where it ends, and is all image or all text",
        upstream="node boundaries that components ask for",
    ),
    Hook(
        target=f"{_CORE}._new_node",
        parameters=("self", "priority"),
        kind="uses",
        reason="overridden: a node knows where it ends, so that nobody walks to the root for it",
        upstream="the length of its prefix on every node, as T-LRU keeps it",
    ),
    Hook(
        target=f"{_CORE}._is_device_leaf",
        parameters=("self", "node"),
        kind="uses",
        reason="keep evictable leaves in a persistent heap",
        upstream="a persistent heap in FullComponent",
    ),
    Hook(
        target=f"{_CORE}._remove_leaf_from_parent",
        parameters=("self", "node"),
        kind="uses",
        reason="evict one leaf and give its slots back together with those of others",
        upstream="an eviction step that leaves the frees to the caller",
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
