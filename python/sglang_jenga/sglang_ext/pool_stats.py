# SPDX-License-Identifier: Apache-2.0
"""What SGLang's own gauges and log lines say of the pools, made true of an arena.

SGLang measures each pool against its own size. Kinds have none here: what one could hold at a
moment depends on the others, cached slots of which would be evicted for it. Measured so, one kind
with few slots reads 100 % beside an arena full of another's cached ones. So on the arena

    usage of a kind  = bytes that its held slots take / usable bytes of the arena
    token_usage      = the sum over kinds, 1 when requests hold everything

Numbers that SGLang's leak checks add up (available, evictable, capacity) stay what they were.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from sglang_jenga.sglang_ext.allocator import FULL_INDEX, WINDOW_INDEX, ArenaAllocatorBase


class ArenaPoolStats(PoolStats):
    """SGLang's statistics of the pools, with shares of the arena for usages.

    arena_usage: share of the usable bytes that running requests hold, all kinds together.
    full_free_tokens: tokens that the full kind could still take without an eviction.
    """

    arena_usage: float
    full_free_tokens: int

    def get_kv_token_stats(self) -> tuple[int, float]:
        num_used, _ = super().get_kv_token_stats()
        return num_used, self.arena_usage

    def get_max_pool_usage(self) -> float:
        return self.arena_usage

    def get_prefill_usage_msg_parts(self) -> list[str]:
        return [*super().get_prefill_usage_msg_parts(), *self._arena_part()]

    def get_decode_usage_msg_parts(self) -> list[str]:
        return [*super().get_decode_usage_msg_parts(), *self._arena_part()]

    def _arena_part(self) -> list[str]:
        return [f"arena usage: {self.arena_usage:.2f}"]

    def update_scheduler_stats(self, stats: Any) -> None:
        super().update_scheduler_stats(stats)
        stats.kv_available_tokens = self.full_free_tokens


def on_arena(stats: PoolStats, arena: ArenaAllocatorBase, tree_cache: Any) -> ArenaPoolStats:
    """``stats``, which SGLang counted, as they are true of ``arena``."""
    held = [arena.used_slots(kind) - tree_cache.evictable_slots(kind) for kind in arena.kinds]
    shares = [
        slots * plan.slot_bytes / arena.plan.usable_bytes
        for slots, plan in zip(held, arena.plan.kinds, strict=True)
    ]
    ours = ArenaPoolStats(**{field.name: getattr(stats, field.name) for field in fields(stats)})
    ours.arena_usage = sum(shares)
    ours.full_free_tokens = arena.core.num_available(FULL_INDEX) * arena.page_size
    ours.full_num_used = held[FULL_INDEX]
    ours.full_token_usage = shares[FULL_INDEX]
    if stats.is_hybrid_swa:
        ours.swa_num_used = held[WINDOW_INDEX]
        ours.swa_token_usage = shares[WINDOW_INDEX]
    if stats.is_hybrid_ssm and arena.state_kind is not None:
        ours.mamba_num_used = held[arena.state_kind]
        ours.mamba_usage = shares[arena.state_kind]
    return ours
