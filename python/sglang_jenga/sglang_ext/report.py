# SPDX-License-Identifier: Apache-2.0
"""A read-only snapshot of the arena, the source of everything that shows it.

Counts are atomic together (the scheduler thread takes them between steps). ``used`` splits into
``held`` (pinned by running requests) and ``cached`` (owned by the prefix tree and evictable).
"""

from __future__ import annotations

from typing import Any

from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

SCHEMA = 1


def snapshot(arena: ArenaAllocatorBase, tree_cache: Any) -> dict[str, Any]:
    """The arena by kind, as JSON-ready data. Sizes in bytes, slots of each kind's own size."""
    kinds = []
    for index, (kind, census) in enumerate(zip(arena.plan.kinds, arena.core.census(), strict=True)):
        page = kind.slots_per_small_page
        cached = tree_cache.evictable_slots(index)
        used = census.used_small_pages * page
        kinds.append(
            {
                "name": kind.spec.name,
                "kind": kind.spec.policy.NAME,
                "span_tokens": kind.spec.policy.span_tokens,
                "layers": kind.spec.num_layers,
                "slot_bytes": kind.slot_bytes,
                "slots_per_large_page": kind.slots_per_large_page,
                "large_pages": census.large_pages,
                "slots_held": used - cached,
                "slots_cached": cached,
                "slots_reserved": census.reserved_small_pages * page,
                "slots_free": census.hole_small_pages * page,
                "partial_page_waste_bytes": (
                    (census.reserved_small_pages + census.hole_small_pages) * kind.small_page_bytes
                ),
                "padding_waste_bytes": used * kind.padding_bytes_per_slot,
            }
        )
    plan = arena.plan
    embeddings = arena.embeddings
    return {
        "schema": SCHEMA,
        "arena_bytes": plan.arena_bytes,
        "large_page_bytes": plan.large_page_bytes,
        "large_pages_total": plan.usable_large_pages,
        "large_pages_free": arena.core.num_free_large_pages,
        "geometry": plan.geometry,
        "longest_request_tokens": arena.demand.longest_request_tokens(plan),
        "kinds": kinds,
        "encoder": (
            None
            if embeddings is None
            else {"encoded": embeddings.encoded, "reused": embeddings.reused}
        ),
        "hits": tree_cache.hits.as_dict(),
        "evicted_tokens": getattr(tree_cache, "evicted_tokens_by_kind", dict)(),
    }
