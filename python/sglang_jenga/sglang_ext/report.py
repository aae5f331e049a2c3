# SPDX-License-Identifier: Apache-2.0
"""A read-only snapshot of the arena, the source of everything that shows it.

``/server_info`` carries :func:`snapshot`; metrics are read off :func:`counts`, which is the same
without the reports of single requests. Counts are atomic together (the scheduler thread takes them
between steps). Nothing here reads the device.

Per kind, ``used`` splits into ``held`` (pinned by running requests), ``sessions`` (streaming
sessions between their turns) and ``cached`` (owned by the prefix tree and evictable); with reserved
and free slots they fill the kind's large pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
from sglang_jenga.sglang_ext.page_map import large_page_map

SCHEMA = 3


def counts(
    arena: ArenaAllocatorBase, tree_cache: Any, scheduler: Any = None, *, longest_tokens: int
) -> dict[str, Any]:
    """The arena by kind and what happened since start, as JSON-ready data.

    Sizes in bytes, slots of each kind's own size. Running requests are those that hold memory: they
    decode or are half-way through a prompt.

    Args:
        scheduler: whose queue this is, None: there is none (tests).
        longest_tokens: the longest request that an empty arena serves.
    """
    kinds = _kinds(arena, tree_cache)
    plan = arena.plan
    embeddings = arena.embeddings
    starvation = arena.starvation
    return {
        "schema": SCHEMA,
        "arena_bytes": plan.arena_bytes,
        "large_page_bytes": plan.large_page_bytes,
        "large_pages_total": plan.usable_large_pages,
        "large_pages_free": arena.core.num_free_large_pages,
        "geometry": plan.geometry,
        "longest_request_tokens": longest_tokens,
        "kinds": kinds,
        "waste": {
            "padding_bytes": sum(kind["padding_waste_bytes"] for kind in kinds),
            "partial_page_bytes": sum(kind["partial_page_waste_bytes"] for kind in kinds),
        },
        "running_requests": int(np.count_nonzero(arena.row_tokens)),
        "waiting_requests": None if scheduler is None else len(scheduler.waiting_queue),
        "max_running_requests": None if scheduler is None else scheduler.max_running_requests,
        "realised_running_cap": starvation.realised_running_cap,
        "sessions": {
            "idle": tree_cache.session.num_idle,
            "evicted": tree_cache.session.evicted_records,
            "evicted_tokens": tree_cache.session.evicted_tokens,
        },
        "waits": dict(starvation.waits),
        "delayed_requests": dict(starvation.delayed_requests),
        "retractions": starvation.retractions.total(),
        "retractions_by_kind": dict(starvation.retractions),
        "encoder": (
            None
            if embeddings is None
            else {"encoded": embeddings.encoded, "reused": embeddings.reused}
        ),
        "hits": tree_cache.hits.sums(),
        "evicted_tokens": tree_cache.evicted_tokens_by_kind(),
        "evicted_slots": tree_cache.evicted_slots_by_kind(),
    }


def snapshot(arena: ArenaAllocatorBase, tree_cache: Any, scheduler: Any = None) -> dict[str, Any]:
    """:func:`counts` and why the last requests hit what they hit."""
    longest = arena.demand.longest_request_tokens
    data = counts(arena, tree_cache, scheduler, longest_tokens=longest)
    data["hits"] = tree_cache.hits.as_dict()
    return data


def add_to_state(scheduler: Any, state: dict[str, Any]) -> None:
    """Put the arena of ``scheduler`` into its internal state, if its pools are one."""
    from sglang.srt.runtime_context import get_parallel

    arena = scheduler.token_to_kv_pool_allocator
    if isinstance(arena, ArenaAllocatorBase):
        state["jenga"] = snapshot(arena, scheduler.tree_cache, scheduler)
        state["jenga"]["large_page_map"] = large_page_map(arena.core)
        # SGLang returns the schedulers' states in the order of their answers.
        parallel = get_parallel()
        rank = parallel.attn_dp_rank if parallel.attn_dp_size > 1 else parallel.dp_rank or 0
        state["jenga"]["dp_rank"] = rank


def _kinds(arena: ArenaAllocatorBase, tree_cache: Any) -> list[dict[str, Any]]:
    kinds = []
    for index, (kind, census) in enumerate(zip(arena.plan.kinds, arena.core.census(), strict=True)):
        page = kind.slots_per_small_page
        cached = tree_cache.evictable_slots(index)
        used = census.used_small_pages * page
        sessions = tree_cache.session.held_slots(index)
        kinds.append(
            {
                "name": kind.spec.name,
                "kind": kind.spec.policy.NAME,
                "span_tokens": kind.spec.policy.span_tokens,
                "layers": kind.spec.num_layers,
                "slot_bytes": kind.slot_bytes,
                "slots_per_large_page": kind.slots_per_large_page,
                "large_pages": census.large_pages,
                "slots_held": used - cached - sessions,
                "slots_sessions": sessions,
                "slots_cached": cached,
                "slots_reserved": census.reserved_small_pages * page,
                "slots_free": census.hole_small_pages * page,
                "partial_page_waste_bytes": (
                    (census.reserved_small_pages + census.hole_small_pages) * kind.small_page_bytes
                ),
                "padding_waste_bytes": used * kind.padding_bytes_per_slot,
            }
        )
    return kinds
