# SPDX-License-Identifier: Apache-2.0
"""The window kind of the prefix tree: hits, pins and uses are what its policy says.

Upstream knows sliding windows and takes whole nodes for them. Here the policy
(:class:`~sglang_jenga.core.policies.TokenPolicy`) says what a hit needs, a tail and perhaps a head,
and nodes are cut there, so that what lies between is pinned, used and evicted by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams, IncLockRefResult
from sglang.srt.mem_cache.unified_cache.components import ComponentType, SWAComponent
from sglang.srt.mem_cache.unified_cache.components.base import LRURefreshPhase
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from sglang_jenga.core.policies import LiveSlots, TokenPolicy
from sglang_jenga.sglang_ext.explain import copy_cause


class ArenaWindowComponent(SWAComponent):
    """The window kind of the tree. Its policy says what a hit needs: a tail, perhaps a head.

    root -- [head] -- [ ... ] -- [tail] node        pinned and used: head and tail
    """

    @property
    def policy(self) -> TokenPolicy:
        return self.cache.window_policy

    def create_match_validator(
        self, match_device_only: bool = False
    ) -> Callable[[UnifiedTreeNode], bool]:
        policy, live = self.policy, LiveSlots()

        def is_valid(node: UnifiedTreeNode) -> bool:
            is_live = node.component_data[self.component_type].value is not None
            live.extend(len(node.key), live=is_live)
            return policy.is_hit(live.num_tokens, live)

        return is_valid

    def _tail_of(self, node: UnifiedTreeNode) -> int:
        """Tokens before the end of ``node`` that a request reads which continues there.

        And one page more: a prompt sent again is matched up to its last token, which is computed
        anew, and the tail of that shorter hit begins a page earlier.
        """
        core, page = self.tree_core, self.tree_core.page_size
        prefix_tokens = core.prefix_tokens(node)
        need = prefix_tokens - self.policy.tail_start(prefix_tokens)
        return -(-need // page) * page + page

    def _cut(self, node: UnifiedTreeNode, tail_tokens: int) -> None:
        """Split where the tail up to ``node`` begins and where the head ends.

        Both are whole nodes then.
        """
        self._cut_before(node, tail_tokens)
        if self.policy.head_tokens:
            self._cut_before(node, self.tree_core.prefix_tokens(node) - self._head_end())

    def _cut_before(self, node: UnifiedTreeNode, tokens: int) -> None:
        """Split where the last ``tokens`` up to the end of ``node`` begin."""
        core, covered = self.tree_core, 0
        while node is not core.root_node and covered < tokens:
            covered += len(node.key)
            if covered > tokens:
                core._split_node(node.key, node, covered - tokens)
                return
            node = node.parent

    def _head_end(self) -> int:
        """Where the head ends, whole pages."""
        page = self.tree_core.page_size
        return -(-self.policy.head_tokens // page) * page

    def _head_node(self, node: UnifiedTreeNode, tail_tokens: int) -> UnifiedTreeNode | None:
        """The node on the way to ``node`` with which the head ends, or as much of it as lies before
        the tail; None: no head, or the tail reaches the root."""
        if not self.policy.head_tokens:
            return None
        core, head_end = self.tree_core, self._head_end()
        end = core.prefix_tokens(node)
        tail_start = end - tail_tokens
        while node is not core.root_node:
            if end <= min(head_end, tail_start):
                return node
            end -= len(node.key)
            node = node.parent
        return None

    def refresh_lru(
        self, phase: LRURefreshPhase, node: UnifiedTreeNode, root_node: UnifiedTreeNode
    ) -> None:
        """A use makes young what the hit needs, where upstream takes whole nodes."""
        if phase is LRURefreshPhase.WALKDOWN:
            return
        tail = self._tail_of(node)
        if phase is LRURefreshPhase.MATCH_END:
            self._cut(node, tail)
        lru = self.tree_core.lru_lists[self.component_type]
        head = self._head_node(node, tail)
        if head is not None:
            lru.reset_node_and_window_ancestors_mru(
                head, root_node, self._head_end(), self.node_has_component_data
            )
        lru.reset_node_and_window_ancestors_mru(node, root_node, tail, self.node_has_component_data)

    def acquire_component_lock(
        self, node: UnifiedTreeNode, result: Any, lock_host: bool = False
    ) -> Any:
        """Pin what a request that continues at ``node`` reads of this kind, and no more.

        Upstream pins whole nodes until they cover the window.
        """
        tail = self._tail_of(node)
        self._cut(node, tail)
        head = self._head_node(node, tail)
        if head is not None:
            self._lock_up_from(head, self._head_end(), IncLockRefResult(), lock_host)
        return self._lock_up_from(node, tail, result, lock_host)

    def _lock_up_from(
        self, node: UnifiedTreeNode, tokens: int, result: Any, lock_host: bool
    ) -> Any:
        """Upstream's lock of whole nodes that cover the last ``tokens`` up to ``node``."""
        span, self.sliding_window_size = self.sliding_window_size, tokens
        try:
            return super().acquire_component_lock(node, result, lock_host)
        finally:
            self.sliding_window_size = span

    def release_component_lock(
        self, node: UnifiedTreeNode, params: Any, lock_host: bool = False
    ) -> None:
        if node is self.tree_core.root_node:
            return
        has_head = self.policy.head_tokens > 0
        head = self._head_node(node, self._tail_of(node)) if has_head else None
        super().release_component_lock(node, params, lock_host)
        if head is not None:  # to the root: no boundary is recorded
            to_root = {self.component_type: None}
            super().release_component_lock(
                head,
                DecLockRefParams(component_lock_uuids=to_root, component_host_lock_uuids=to_root),
                lock_host,
            )

    def shorten_lock(self, node: UnifiedTreeNode, receipt: Any, tokens: int) -> None:
        """Of a lock that was taken at ``node``, keep only the last ``tokens`` (whole pages).

        What it lets go counts as just used, or is spare where nothing can continue any more.

        before    [tail .............. ] node        a decoding request's window slides out of the
        after     [ free to go ][ kept ] node        prompt token by token
        """
        kind, core = self.component_type, self.tree_core
        continues = core.can_be_hit(node)
        if continues:
            self.refresh_lru(LRURefreshPhase.INSERT_END, node, core.root_node)
        self._cut_before(node, tokens)
        shorter = self._lock_up_from(node, tokens, IncLockRefResult(), False)
        uuids = {kind: receipt.component_lock_uuids[kind]}
        super().release_component_lock(
            node, DecLockRefParams(component_lock_uuids=uuids, component_host_lock_uuids=uuids)
        )
        receipt.component_lock_uuids[kind] = shorter.component_lock_uuids[kind]
        if not continues:
            self._spare_unpinned(node, self._tail_of(node))

    def _spare_unpinned(self, node: UnifiedTreeNode, tokens: int) -> None:
        """Of the last ``tokens`` up to ``node`` what is unpinned goes first.

        As far as only ``node`` needs it: up to a branch point.
        """
        lru, passed = self.tree_core.lru_lists[self.component_type], 0
        while node is not self.tree_core.root_node and passed < tokens:
            if passed and len(node.children) > 1:
                return
            piece = node.component_data[self.component_type]
            if piece.value is not None and not piece.lock_ref:
                lru.make_spare(node)
            passed += len(node.key)
            node = node.parent

    def spare_windows(self, node: UnifiedTreeNode, num_tokens: int, since: float) -> None:
        """What the last ``num_tokens`` up to ``node`` brought is spare, but what a hit needs.

        A chunk leaves a window slot for each of its tokens. Only its end is sure to be read again;
        the rest lets prompts branch off anywhere, for as long as nobody needs the bytes.
        """
        if not self.tree_core.order.retention:
            return
        lru = self.tree_core.lru_lists[self.component_type]
        need, passed = self._tail_of(node), 0
        num_tokens = min(num_tokens, self.tree_core.prefix_tokens(node) - self._head_end())
        while node is not self.tree_core.root_node and passed < num_tokens:
            if (
                passed >= need
                and self.node_has_component_data(node)
                and lru.last_use(node) >= since
            ):
                lru.make_spare(node)
            passed += len(node.key)
            node = node.parent

    def redistribute_on_node_split(
        self, new_parent: UnifiedTreeNode, child: UnifiedTreeNode
    ) -> None:
        super().redistribute_on_node_split(new_parent, child)
        copy_cause(child, new_parent, self.component_type)

    def _maybe_split_leaf_for_swa_lock(self, leaf: UnifiedTreeNode, cache_actions: Any) -> None:
        """Nothing to do: :meth:`acquire_component_lock` cuts."""

    def free_out_of_window_slots(self, req: Any, pre_len: int, insert_params: Any) -> None:
        """Nothing is freed on the way into the tree: see :meth:`spare_windows`."""

    def _free_out_of_window_slots(self, req: Any, pre_len: int) -> None:
        """Nothing is left out of the tree (:meth:`ArenaRadixCache.checkpoint_into_tree`)."""


def take_dead_slots(
    req: Any, num_tokens: int, *, policy: TokenPolicy, page_tokens: int, row: torch.Tensor
) -> torch.Tensor | None:
    """Full slot ids of ``req`` whose window slots nothing can read any more, None for none.

    The caller frees those window slots: the request no longer counts them as its own. Whole pages
    of what the request itself owns: positions from ``swa_dead_lo`` (above the tree's prefix and the
    policy's head) to :meth:`TokenPolicy.dead_before`. ``row`` is the request's host row of full
    slot ids.
    """
    req.kv.swa_evict_floor = max(req.kv.swa_evict_floor, policy.head_tokens)
    start = max(req.kv.get_evicted_seqlen(ComponentType.SWA), req.kv.swa_dead_lo(page_tokens))
    end = policy.dead_before(num_tokens, page_tokens=page_tokens)
    req.kv.set_evicted_seqlen(ComponentType.SWA, max(start, end))
    return row[start:end] if end > start else None
