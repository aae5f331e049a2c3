# SPDX-License-Identifier: Apache-2.0
"""The window kind of the prefix tree: hits, pins and uses are what its policy says.

Upstream knows sliding windows and takes whole nodes for them. Here the policy
(:class:`~sglang_jenga.core.policies.TokenPolicy`) says what a hit needs, a tail and perhaps a head,
and nodes are cut there, so that what lies between is pinned, used and evicted by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams, IncLockRefResult
from sglang.srt.mem_cache.unified_cache.components import ComponentType, SWAComponent
from sglang.srt.mem_cache.unified_cache.components.base import LRURefreshPhase
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from sglang_jenga.core.policies import TokenPolicy
from sglang_jenga.sglang_ext.explain import copy_cause


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortestPieces:
    """Below how many tokens, whole pages, a window is not cut further.

    own: what only one prompt leads to. Its pins are its own, so they are nearly exact.
    shared: where prompts part further on. Slots there are pinned once for all, so some more cost
        little, and every visitor has to walk over the pieces.
    """

    own: int
    shared: int

    @classmethod
    def of(cls, span_tokens: int, page_tokens: int) -> ShortestPieces:
        """For a window of ``span_tokens``."""

        def pages(tokens: int) -> int:
            return max(1, tokens // page_tokens) * page_tokens

        shared = min(span_tokens // 4, max(64, span_tokens // 8))
        return cls(own=pages(span_tokens // 32), shared=pages(shared))


class ArenaWindowComponent(SWAComponent):
    """The window kind of the tree. Its policy says what a hit needs: a tail, perhaps a head.

    root -- [head] -- [ ... ] -- [tail] node        pinned and used: head and tail
    """

    sliding_window_size: int

    @property
    def policy(self) -> TokenPolicy:
        return self.cache.window_policy

    def create_match_validator(
        self, match_device_only: bool = False
    ) -> Callable[[UnifiedTreeNode], bool]:
        """Says of each node of a walk from the root whether its end is a hit. O(1) each."""
        kind, policy = self.component_type, self.policy
        head, tail_start = policy.head_tokens, policy.tail_start
        live_from, first_dead = 0, None  # the unbroken end of what was walked over; its first gap

        def is_valid(node: UnifiedTreeNode) -> bool:
            nonlocal live_from, first_dead
            end = node.end_tokens
            if node.component_data[kind].value is None:
                live_from = end
                if first_dead is None:
                    first_dead = node.parent.end_tokens
            start = tail_start(end)
            return live_from <= start and (first_dead is None or first_dead >= min(head, start))

        return is_valid

    def _tail_of(self, node: UnifiedTreeNode) -> int:
        """Tokens before the end of ``node`` that a request reads which continues there.

        And one page more: a prompt sent again is matched up to its last token, which is computed
        anew, and the tail of that shorter hit begins a page earlier.
        """
        end, page = node.end_tokens, self.tree_core.page_size
        return -(-(end - self.policy.tail_start(end)) // page) * page + page

    def _cut(self, node: UnifiedTreeNode, tail_tokens: int) -> None:
        """Split where the head of what leads to ``node`` ends, and near where its tail begins."""
        if self.policy.head_tokens:
            self._split_at(node, self._head_end())
        self._cut_before(node, tail_tokens)

    def _cut_before(self, node: UnifiedTreeNode, tokens: int) -> None:
        """Split where the last ``tokens`` up to the end of ``node`` begin, or a little earlier.

        Prompts that share a prefix end at all distances behind it, and each would leave a cut of
        its own there. So no piece is cut shorter than :attr:`_shortest`; what is pinned and used
        begins with a whole piece, and at most two of the shortest are more than is read. A head is
        exact: its pins are found by where it ends.
        """
        start, is_shared = node.end_tokens - tokens, False
        if start <= self._head_end():
            self._split_at(node, start)
            return
        while node.parent.end_tokens > start:
            node = node.parent
            is_shared = is_shared or len(node.children) > 1
        least = self._shortest.shared if is_shared else self._shortest.own
        start = min(start, node.end_tokens - least)
        if start >= node.parent.end_tokens + least:
            self._split_at(node, start)

    def _split_at(self, node: UnifiedTreeNode, position: int) -> None:
        """Make ``position`` (tokens from the root) a boundary on the way to ``node``."""
        if 0 < position < node.end_tokens:
            while node.parent.end_tokens > position:
                node = node.parent
            front_tokens = position - node.parent.end_tokens
            if front_tokens:
                self.tree_core._split_node(node.key, node, front_tokens)

    @cached_property
    def _shortest(self) -> ShortestPieces:
        return ShortestPieces.of(self.policy.span_tokens or 0, self.tree_core.page_size)

    def _head_end(self) -> int:
        """Where the head ends, whole pages; 0: there is none."""
        page = self.tree_core.page_size
        return -(-self.policy.head_tokens // page) * page

    def _head_node(self, node: UnifiedTreeNode, tail_tokens: int) -> UnifiedTreeNode | None:
        """The node on the way to ``node`` with which the head ends, or as much of it as lies before
        the tail; None: no head, or the tail reaches the root."""
        if not self.policy.head_tokens:
            return None
        limit = min(self._head_end(), node.end_tokens - tail_tokens)
        while node.end_tokens > limit and node is not self.tree_core.root_node:
            node = node.parent
        return None if node is self.tree_core.root_node else node

    def refresh_lru(
        self, phase: LRURefreshPhase, node: UnifiedTreeNode, root_node: UnifiedTreeNode
    ) -> None:
        """A use makes young what the hit needs, where upstream takes whole nodes."""
        if phase is LRURefreshPhase.WALKDOWN or node is root_node:
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
        if node is self.tree_core.root_node:  # nothing to pin; None: the lock reaches the root
            result.set_lock_uuid(self.component_type, None, lock_host=lock_host)
            return result
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
        num_tokens = min(num_tokens, node.end_tokens - self._head_end())
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
