# SPDX-License-Identifier: Apache-2.0
"""Images in the radix tree: whole nodes at its top, hit all or none, counted apart from text.

A request's key begins with its images (each token of an image is the hash of its content) and its
text follows, so requests with the same images meet in the tree and share text behind them:

    root -- [image A] -- [image B] -- "What is the difference" ...
                     \\- "Describe the picture" ...

Node boundaries are forced where an image ends. A node is then all image or all text, its slots are
of one kind, and eviction, which takes leaves, takes images whole and only after their text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.unified_cache.components import ComponentType, FullComponent
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from sglang_jenga.sglang_ext.req_pool import image_tokens_of
from sglang_jenga.sglang_ext.tree import ArenaTreeCore

_FULL = ComponentType.FULL


class ImageTreeCore(ArenaTreeCore):
    """The arena's tree for models with cross attention.

    ``evictable_images``: image slots in nodes that no request pins. ``arena.cached_images``: those
    of all nodes. The full kind's own counts leave images out.
    """

    def __init__(self, params: Any, components: dict[ComponentType, Any]) -> None:
        self._arena = params.token_to_kv_pool_allocator
        self.image_base = self._arena.image_base
        self.evictable_images = 0
        #: Image slots evicted since start.
        self.evicted_images = 0
        super().__init__(params, components)

    def reset(self) -> None:
        super().reset()
        self.evictable_images = 0
        self._arena.cached_images = 0

    def image_slots(self, node: UnifiedTreeNode) -> int:
        """Slots of the cross kind that ``node`` holds: all of its tokens', or none."""
        value = node.component_data[_FULL].value
        return len(value) if value is not None and int(value[0]) >= self.image_base else 0

    def evictable_on_path(self, node: UnifiedTreeNode) -> int:
        """Image slots from the root to ``node`` that nobody pins."""
        total = 0
        while node is not self.root_node:
            if node.component_data[_FULL].lock_ref == 0:
                total += self.image_slots(node)
            node = node.parent
        return total

    def forget_images(self, node: UnifiedTreeNode) -> None:
        """``node`` is about to be evicted."""
        slots = self.image_slots(node)
        self.evictable_images -= slots
        self.evicted_images += slots
        self._arena.cached_images -= slots

    def _create_match_validators(
        self, params: MatchPrefixParams, match_device_only: bool
    ) -> tuple[Callable[[UnifiedTreeNode], bool], ...]:
        """A prefix that ends inside a request's images is none: they are computed in one go."""
        validators = super()._create_match_validators(params, match_device_only)
        images = image_tokens_of(params.req) if params.req is not None else 0
        passed = 0

        def holds_all_images(node: UnifiedTreeNode) -> bool:
            nonlocal passed
            passed += len(node.key)
            return passed >= images

        return (*validators, holds_all_images) if images else validators

    def _add_new_node(
        self, parent: UnifiedTreeNode, key: Any, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> UnifiedTreeNode:
        """A chain of nodes, cut where an image ends; returns the last."""
        start = 0
        for end in (*self._image_ends(key, value), len(value)):
            parent = super()._add_new_node(
                parent, key[start:end], value[start:end], *args, **kwargs
            )
            slots = self.image_slots(parent)
            self.evictable_images += slots
            self._arena.cached_images += slots
            start = end
        return parent

    def _image_ends(self, key: Any, value: torch.Tensor) -> list[int]:
        """Positions in ``value``, its ends excluded, where an image ends."""
        num_images = int((value >= self.image_base).sum())
        if not num_images:
            return []
        ids = np.asarray(key.token_ids[: num_images + 1])
        ends = np.flatnonzero(ids[1:] != ids[:-1]) + 1
        return [int(end) for end in ends if end < len(value)]


class ImageAwareFullComponent(FullComponent):
    """The full kind of such a tree: its counts leave images out, the core's count of them is kept.

    Where a path is pinned or released, only nodes whose last pin it is change hands.
    """

    def reclaimable_value_len(self, node: UnifiedTreeNode) -> int:
        return 0 if self.tree_core.image_slots(node) else super().reclaimable_value_len(node)

    def acquire_component_lock(
        self, node: UnifiedTreeNode, result: Any, lock_host: bool = False
    ) -> Any:
        if not lock_host:
            self.tree_core.evictable_images -= self.tree_core.evictable_on_path(node)
        return super().acquire_component_lock(node, result, lock_host)

    def release_component_lock(
        self, node: UnifiedTreeNode, params: Any, lock_host: bool = False
    ) -> None:
        super().release_component_lock(node, params, lock_host)
        if not lock_host:
            self.tree_core.evictable_images += self.tree_core.evictable_on_path(node)

    def evict_component(self, node: UnifiedTreeNode, *args: Any, **kwargs: Any) -> tuple[int, int]:
        self.tree_core.forget_images(node)
        return super().evict_component(node, *args, **kwargs)
