# SPDX-License-Identifier: Apache-2.0
"""Eviction from the radix cache: one order for all kinds, sessions and embeddings included."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.mem_cache.unified_cache.cache_action import FreeComponentDeviceSlot
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE, ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_jenga.core.memory import Sparing
from sglang_jenga.sglang_ext.allocator import FULL_INDEX, ArenaAllocatorBase
from sglang_jenga.sglang_ext.embeddings import ArenaEmbeddings
from sglang_jenga.sglang_ext.explain import Eviction, note_leaf, note_piece
from sglang_jenga.sglang_ext.rematch import LastMatch
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool
from sglang_jenga.sglang_ext.tree import Frees


class EvictingRadixCache(UnifiedRadixCache):
    """SGLang's unified radix cache, whose pieces go in the tree core's order of eviction.

    What it asks about is set up by :class:`~sglang_jenga.sglang_ext.radix.ArenaRadixCache`.
    """

    embeddings: ArenaEmbeddings | None
    evicting_for: Eviction
    evicted_tokens: dict[ComponentType, int]
    starts_over: bool
    _arena: ArenaAllocatorBase
    _components_by_kind: dict[str, ComponentType]
    _last_match: LastMatch
    _req_pool: ArenaReqToTokenPool
    #: What SGLang's cache reads rows from: the pool, or its rows on the host.
    req_to_token_pool: Any

    def evicted_tokens_by_kind(self) -> dict[str, int]:
        """Tokens evicted since start, by the tree's names of the kinds."""
        evicted = {component.name.lower(): n for component, n in self.evicted_tokens.items()}
        if self._arena.cross_kind is not None:
            evicted["cross"] = self.tree_core.evicted_images
        if self.embeddings is not None:
            evicted["vision"] = self.embeddings.evicted_slots
        return evicted

    def evicted_slots_by_kind(self) -> dict[str, int]:
        """Slots evicted since start, by the plan's names of the kinds."""
        kinds = self._arena.plan.kinds
        evicted = {kinds[FULL_INDEX].spec.name: self.evicted_tokens[ComponentType.FULL]}
        for name, component in self._components_by_kind.items():
            evicted[name] = self.evicted_tokens[component]
        if self._arena.cross_kind is not None:
            evicted[kinds[self._arena.cross_kind].spec.name] = self.tree_core.evicted_images
        if self.embeddings is not None:
            evicted[kinds[self.embeddings.kind].spec.name] = self.embeddings.evicted_slots
        return evicted

    def evict_until(
        self,
        satisfied: Callable[[], bool],
        *,
        sparing: Sparing = Sparing.NOTHING,
        why: Callable[[], Eviction] | None = None,
    ) -> None:
        """Evict the least recently useful piece, of whichever kind, until ``satisfied``.

        It stops where only what ``sparing`` names is left (see :meth:`EvictionOrder.choose`).
        ``why`` is asked only if something is to go.
        """
        if self.disable and self.embeddings is None and not self.session.num_idle:
            return
        start = time.perf_counter()
        tracker = {ct: 0 for ct in self.tree_components}
        unasked = self.evicting_for
        while not satisfied():
            if why is not None:
                self.evicting_for, why = why(), None
            if not self._evict_one(tracker, sparing):
                break
        self.evicting_for = unasked
        for ct, num_tokens in tracker.items():
            self.evicted_tokens[ct] += num_tokens
        self.update_eviction_metrics(tracker[BASE_COMPONENT_TYPE], start)

    def start_over(self) -> None:
        """Evict all that nobody pins: a request that is alone needs it whole."""
        self.starts_over = False
        why = Eviction(cause="a request that is alone started over", starving_kind="full")
        self.evict_until(lambda: False, why=lambda: why)

    def _evict_one(
        self,
        tracker: dict[ComponentType, int],
        sparing: Sparing = Sparing.NOTHING,
        later: Frees | None = None,
    ) -> bool:
        """Evict one piece and give its slots back, or add them to ``later``. False: none may go."""
        self._last_match.forget()
        victim = None if self.disable else self.tree_core.oldest(sparing, self._starving)
        if sparing is Sparing.ALL:
            image = record = None
        else:
            image = self.embeddings.oldest() if self.embeddings is not None else None
            record = self.session.oldest()
        if image is not None and (record is None or image[1] < record[1]):
            if victim is None or image[1] < victim.last_use:
                return self.embeddings is not None and self.embeddings.evict(image[0])
        elif record is not None and (victim is None or record[1] < victim.last_use):
            return self.session.evict(record[0], self.evicting_for.cause)
        if victim is None and sparing is Sparing.ALL:
            return False
        if victim is None:
            if self.embeddings is not None and self.embeddings.evict():
                return True
            awaited = self.session.oldest_awaited(sparing)
            return awaited is not None and self.session.evict(awaited[0], self.evicting_for.cause)
        frees: Frees = defaultdict(list) if later is None else later
        if victim.is_leaf:
            note_leaf(victim.node, self.page_size, self.evicting_for)
            self.tree_core.evict_leaf(victim.node, tracker, frees)
        else:
            note_piece(victim.node, victim.kind, self.evicting_for)
            self.tree_core.evict_piece(victim.node, victim.kind, tracker, frees)
        if later is None:
            self._give_back(frees)
        return True

    def _give_back(self, frees: Frees) -> None:
        """Slots that left the tree. Those of a kind go in one go: each piece is whole pages."""
        for component, parts in frees.items():
            slots = parts[0] if len(parts) == 1 else torch.cat(parts)
            self._apply_cache_action(FreeComponentDeviceSlot([slots], component_type=component))

    def _starving(self) -> ComponentType:
        return self._components_by_kind.get(self.evicting_for.starving_kind, ComponentType.FULL)

    def _evict_components(
        self,
        request_by_type: dict[ComponentType, int],
        tracker: dict[ComponentType, int],
        available_size_targets: dict[ComponentType, tuple[ComponentType, int]] | None = None,
        *,
        allocation_reclaim_satisfied: Callable[[], bool] | None = None,
    ) -> None:
        """SGLang's own requests to evict, served in the one order."""

        def satisfied() -> bool:
            if allocation_reclaim_satisfied is not None:
                return allocation_reclaim_satisfied()
            if available_size_targets is not None:
                return all(
                    self._component_available_size(component) >= size
                    for component, size in available_size_targets.values()
                )
            return all(tracker[ct] >= request_by_type[ct] for ct in self.tree_components)

        before = dict(tracker)
        looks_at_pools = allocation_reclaim_satisfied or available_size_targets
        later: Frees | None = None if looks_at_pools else defaultdict(list)
        try:
            while not satisfied() and self._evict_one(tracker, later=later):
                pass
        finally:
            self._give_back(later or {})
        for ct, num_tokens in tracker.items():
            self.evicted_tokens[ct] += num_tokens - before[ct]
