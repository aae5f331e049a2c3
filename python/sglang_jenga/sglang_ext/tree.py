# SPDX-License-Identifier: Apache-2.0
"""Jenga's ordering inside SGLang's radix tree: one clock and persistent heaps.

SGLang's python tree core keeps the structure; three things differ (seams 6.7):

* evictable leaves sit in a heap that lives as long as the tree. An entry's time may be outdated; it
  is corrected when it comes up, because a use only ever makes a node younger. O(log n) per victim.
* the window kind's recency list stamps each node with the clock that full-kind leaves use, so the
  least recently useful piece can be found across kinds.
* which leaves can be hit at all is asked of the window kind's policy.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE, ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import (
    EvictLayer,
    get_and_increase_time_counter,
)
from sglang.srt.mem_cache.unified_cache.unified_tree_core import (
    UnifiedLRUList,
    UnifiedTreeCore,
    UnifiedTreeNode,
)

from sglang_jenga.core.memory import Sparing
from sglang_jenga.core.policies import TokenPolicy
from sglang_jenga.sglang_ext.events import HitPointRecorder
from sglang_jenga.sglang_ext.explain import Step, Walk
from sglang_jenga.sglang_ext.order import WORTHLESS, EvictionOrder, Victim

CORE_NAME = "jenga"
#: Slots that leave the tree, by kind, as the tree names them: full ids, state slots for states.
Frees = dict[ComponentType, list[torch.Tensor]]
_LAST_USE = "jenga_last_use"


class ClockedLRUList(UnifiedLRUList):
    """A recency list whose nodes carry the tree's clock (their last use for this kind).

    A node may be *spare*: nothing is expected of it, so it goes before everything else, first come
    first gone, unless it is used again.
    """

    def __init__(self, *args: Any) -> None:
        self._spare: deque[UnifiedTreeNode] = deque()
        super().__init__(*args)

    def _add_node_after(self, prev_node: UnifiedTreeNode, new_node: UnifiedTreeNode) -> None:
        super()._add_node_after(prev_node, new_node)
        if prev_node is self.head:
            time = float(get_and_increase_time_counter())
        else:
            time = self.last_use(prev_node)  # placed beside its neighbour: as recent as it
        self._stamp(new_node, time)

    def _stamp(self, node: UnifiedTreeNode, time: float) -> None:
        node.component_data[self.component_type].metadata[_LAST_USE] = time
        if time == WORTHLESS:
            self._spare.append(node)

    def last_use(self, node: UnifiedTreeNode) -> float:
        return node.component_data[self.component_type].metadata[_LAST_USE]

    def make_spare(self, node: UnifiedTreeNode, *, first: bool = False) -> None:
        """``first``: before what is spare already, else behind it."""
        self._stamp(node, WORTHLESS)
        if first:
            self._spare.rotate(1)

    def oldest_spare(self) -> UnifiedTreeNode | None:
        """The spare node that came first, among inner nodes that nobody pins."""
        spare = self._spare
        while spare:
            node = spare[0]
            if not self.in_list(node) or self.last_use(node) != WORTHLESS:
                spare.popleft()
            elif not node.children and not node.component_data[BASE_COMPONENT_TYPE].lock_ref:
                # It ends a cached prompt now: worth what its full slots are.
                self._stamp(node, node.last_access_time)
            elif node.component_data[self.component_type].lock_ref:
                spare.popleft()  # in use; its next use stamps it
            else:
                return node
        return None


class ArenaTreeNode(UnifiedTreeNode):
    """A node that knows where it lies. ``end_tokens``: tokens from the root to its end."""

    end_tokens = 0


class ArenaTreeCore(UnifiedTreeCore):
    """SGLang's python tree core with host values and persistent eviction order."""

    def __init__(self, params: Any, components: dict[ComponentType, Any]) -> None:
        #: Where the next new node will end.
        self._next_end = 0
        self._leaf_heap: list[tuple[float, int]] = []
        self._queued: set[int] = set()
        #: What goes first. Another one may be put here before anything is cached.
        self.order = EvictionOrder()
        #: What the last match walked over.
        self.steps: list[Step] = []
        arena = params.token_to_kv_pool_allocator
        #: Kinds that may be gone from a node whose full slots are still there.
        self._piece_kinds = [
            ct for ct in (ComponentType.SWA, ComponentType.MAMBA) if ct in components
        ]
        tree_kinds = (ComponentType.FULL, *self._piece_kinds)
        elsewhere = (arena.cross_kind, arena.vision_kind)
        own = (kind for index, kind in enumerate(arena.plan.kinds) if index not in elsewhere)
        self._slot_bytes = {ct: kind.slot_bytes for ct, kind in zip(tree_kinds, own, strict=True)}
        #: What subscribers to KV-cache events are told; None: there are none.
        self.events: HitPointRecorder | None = None
        super().__init__(params, components)
        if params.enable_kv_cache_events:
            self.kv_events = self.events = HitPointRecorder(self, params)
        # Tree values are host tensors whatever the KV device is.
        self.device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        self._leaf_heap = []
        self._queued = set()
        self._next_end = 0
        super().reset()
        for kind in self._piece_kinds:
            self.lru_lists[kind] = ClockedLRUList(kind, self.component_types)

    def _new_node(self, priority: int = 0) -> ArenaTreeNode:
        node = ArenaTreeNode(self.component_types, priority=priority)
        node.end_tokens = self._next_end
        self._register_node(node)
        return node

    def _add_new_node(
        self, parent: UnifiedTreeNode, key: Any, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> UnifiedTreeNode:
        self._next_end = parent.end_tokens + len(key)
        return super()._add_new_node(parent, key, value, *args, **kwargs)

    def _update_evictable_leaf_sets(self, node: UnifiedTreeNode) -> None:
        """Upstream's for one tier: there are no host leaves, and what has children is no leaf."""
        if node.children or not self._is_device_leaf(node):
            self.evictable_device_leaves.discard(node)
            return
        self.evictable_device_leaves.add(node)
        if node.id not in self._queued:
            self._queued.add(node.id)
            heapq.heappush(self._leaf_heap, (self._worth(node), node.id))

    def is_in_tree(self, node: UnifiedTreeNode) -> bool:
        """Whether ``node`` is still there. The root, which holds nothing, is not one."""
        return node is not self.root_node and self._node_arena.get(node.id) is node

    def _split_node(
        self, key: Any, child: UnifiedTreeNode, split_len: int
    ) -> tuple[UnifiedTreeNode, Any]:
        self._next_end = child.end_tokens - len(child.key) + split_len
        front, action = super()._split_node(key, child, split_len)
        if self.events is not None:
            self.events.split(front, child)
        return front, action

    def set_component_device_value(
        self, node_id: int, component_type: ComponentType, value: torch.Tensor
    ) -> None:
        super().set_component_device_value(node_id, component_type, value)
        if self.events is not None:
            self.events.piece_changed(self.node_by_id(node_id))

    def _evict_component_and_detach_lru(
        self, node: UnifiedTreeNode, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        freed: tuple[int, int] = super()._evict_component_and_detach_lru(node, *args, **kwargs)
        if self.events is not None:
            self.events.piece_changed(node)
        return freed

    def _worth(self, node: UnifiedTreeNode) -> float:
        """When a leaf is due for eviction: its last use, or at once if nothing can hit it.

        A leaf is hit only at its end. Once the window slots there are gone (its parent's answer
        was evicted, say) its full slots serve no request, however recently they were used.
        """
        if self.order.aligned and not self.can_be_hit(node):
            return WORTHLESS
        return node.last_access_time

    def _create_match_validators(
        self, params: Any, match_device_only: bool
    ) -> tuple[Callable[[UnifiedTreeNode], bool], ...]:
        """Upstream's, and one that only takes notes (:mod:`~sglang_jenga.sglang_ext.explain`)."""
        self.steps = []

        def note(node: UnifiedTreeNode) -> bool:
            live = tuple(node.component_data[ct].value is not None for ct in self._piece_kinds)
            self.steps.append(Step(node=node, num_tokens=len(node.key), live=live))
            return True

        return (*super()._create_match_validators(params, match_device_only), note)

    def walk(self, key: Any, hit_tokens: int, image_tokens: int) -> Walk:
        """What the last match saw of a prompt ``key``, which begins with so many image tokens."""
        seen = sum(step.num_tokens for step in self.steps)
        cut = key.page_aligned(self.page_size)
        return Walk(
            prompt_tokens=len(key),
            hit_tokens=hit_tokens,
            image_tokens=image_tokens,
            unpinned_tokens=sum(
                step.num_tokens
                for step in self.steps
                if not step.node.component_data[BASE_COMPONENT_TYPE].lock_ref
            ),
            steps=tuple(self.steps),
            rest=cut.child_key_at(seen, self.page_size) if seen < len(cut) else None,
        )

    def can_be_hit(self, node: UnifiedTreeNode) -> bool:
        """Whether a prompt that ends exactly at ``node`` would hit it in every kind."""
        states = ComponentType.MAMBA
        if states in self._piece_kinds and node.component_data[states].value is None:
            return False
        window = self.components_by_type.get(ComponentType.SWA)
        if window is None:
            return True
        policy: TokenPolicy = window.policy
        end = node.end_tokens
        start = policy.tail_start(end)
        head = min(policy.head_tokens, start)
        while end > start or (head and node is not self.root_node):
            begin = end - len(node.key)  # its parent may be new and not know its own end yet
            is_needed = end > start or begin < head
            if is_needed and node.component_data[ComponentType.SWA].value is None:
                return False
            end, node = begin, node.parent
        return True

    def oldest_leaf(self) -> Victim | None:
        """The evictable leaf whose last use is longest ago."""
        heap = self._leaf_heap
        while heap:
            queued_at, node_id = heap[0]
            node = self._node_arena.get(node_id)
            if node is None or node not in self.evictable_device_leaves:
                heapq.heappop(heap)
                self._queued.discard(node_id)
            elif (worth := self._worth(node)) > queued_at:
                heapq.heapreplace(heap, (worth, node_id))
            else:
                return Victim(node=node, last_use=queued_at, is_leaf=True)
        return None

    def oldest_piece(
        self, kind: ComponentType, sparing: Sparing = Sparing.NOTHING
    ) -> Victim | None:
        """The unlocked node whose window or state was useful longest ago.

        ``sparing`` anything: not the state of a branch point, by which several conversations are
        hit. States are few. Windows are many, so their oldest is offered whatever it is.
        """
        lru = self.lru_lists[kind]
        node = lru.oldest_spare() or lru.get_lru_no_lock()
        if sparing and self.order.retention and kind is ComponentType.MAMBA:
            while node is not None and self._is_branch_point(node):
                node = lru.get_prev_no_lock(node)
        if node is None:
            return None
        is_leaf = node in self.evictable_device_leaves
        return Victim(node=node, last_use=lru.last_use(node), is_leaf=is_leaf, kind=kind)

    def oldest(
        self,
        sparing: Sparing = Sparing.NOTHING,
        starving: Callable[[], ComponentType] = lambda: ComponentType.FULL,
    ) -> Victim | None:
        """The least valuable piece across kinds, None when nothing may go.

        See :meth:`EvictionOrder.choose`, which decides.
        """
        found = (self.oldest_piece(kind, sparing) for kind in self._piece_kinds)
        return self.order.choose(
            self.oldest_leaf(),
            [piece for piece in found if piece is not None],
            is_cheap=self._is_cheap,
            is_shared=self._is_shared,
            starving=starving,
            sparing=sparing,
        )

    def _is_branch_point(self, node: UnifiedTreeNode) -> bool:
        """Whether prompts part behind ``node`` before there is another state to continue from.

        States lie on a grid, so the prompts may part some tokens further on.
        """
        while len(node.children) == 1:
            node = next(iter(node.children.values()))
            if node.component_data[ComponentType.MAMBA].value is not None:
                return False
        return len(node.children) > 1

    def _branch_served(self, node: UnifiedTreeNode) -> UnifiedTreeNode:
        """Where prompts part that need the window slots of ``node``; itself: nowhere further on."""
        policy = self.components_by_type[ComponentType.SWA].policy
        branch, end = node, node.end_tokens
        while len(branch.children) == 1:
            branch = next(iter(branch.children.values()))
            is_live = branch.component_data[ComponentType.SWA].value is not None
            if not is_live or policy.tail_start(branch.end_tokens) >= end:
                return node
        return branch if branch.children else node

    def _is_cheap(self, piece: Victim) -> bool:
        """Whether a hit there has fewer bytes in window slots than in full slots.

        Where prompts part, one hit for each that is still cached: as many will come, if the next
        ones are like the last.
        """
        if piece.kind is not ComponentType.SWA:
            return False
        node = self._branch_served(piece.node)
        prefix_tokens = node.end_tokens
        slots = self.components_by_type[piece.kind].policy.needed_tokens(prefix_tokens)
        full_bytes = prefix_tokens * self._slot_bytes[ComponentType.FULL]
        num_hits = max(1, len(node.children))
        return num_hits * full_bytes > slots * self._slot_bytes[piece.kind]

    def _is_shared(self, piece: Victim) -> bool:
        """Whether prompts part at the end of what a cheap window serves."""
        return len(self._branch_served(piece.node).children) > 1

    def evict_leaf(
        self, node: UnifiedTreeNode, tracker: dict[ComponentType, int], frees: Frees
    ) -> None:
        """Drop a leaf whole: upstream's step, less what a second tier needs.

        Adds to ``tracker`` how many slots of each kind went, to ``frees`` which ones; the caller
        gives them back.
        """
        self.kv_events.record_remove(node)
        for component in self.components:
            kind = component.component_type
            freed, _ = component.evict_component(
                node, target=EvictLayer.DEVICE, device_frees=frees, host_frees={}, cache_actions=[]
            )
            tracker[kind] += freed
            if node.id in self.lru_lists[kind].cache:
                self.lru_lists[kind].remove_node(node)
        self.evictable_device_leaves.discard(node)
        self._remove_leaf_from_parent(node)
        self._update_evictable_leaf_sets(node.parent)

    def evict_piece(
        self,
        node: UnifiedTreeNode,
        kind: ComponentType,
        tracker: dict[ComponentType, int],
        frees: Frees,
    ) -> None:
        """Drop the window slots or the state of an inner node; its full slots stay.

        ``tracker`` and ``frees`` as for :meth:`evict_leaf`.
        """
        component = self.components_by_type[kind]
        found: dict[str, Any] = {"device_frees": frees, "host_frees": {}, "cache_actions": []}
        self._evict_component_and_detach_lru(
            node, component, target=EvictLayer.DEVICE, tracker=tracker, **found
        )
        self._cascade_evict(node, component, tracker, **found)
