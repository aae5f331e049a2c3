# SPDX-License-Identifier: Apache-2.0
"""The state kind of the prefix tree: which states are cached, at which lengths, at what cost.

A hit of n tokens needs the state at exactly n (design section 5), so where states are kept decides
what can be hit:

* at the end of a request, exactly: its own state passes into the tree, no copy, no extra slot.
  A conversation's next turn continues there. (With pages of several tokens a state can only be
  kept at a page boundary: the request's last decode snapshot is kept instead.)
* at the last grid position of each prefill chunk, and instead of that, where the prompt leaves
  another one in the tree: the second visitor of a shared prefix leaves a state at the branch, the
  third one hits it.

Every cached state is evictable, those of running requests too: a request reads the state that it
continues from once, in its first forward, and is pinned no longer than that.

A state that the same conversation has grown past, and where nobody branched, is *spare*: it goes
before anything else when bytes are short.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.unified_cache.components import MambaComponent

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams, InsertResult, MatchResult
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from sglang_jenga.sglang_ext.state_rows import ArenaStateReqPool


class ArenaStateComponent(MambaComponent):
    """SGLang's state component on lazily held slots."""

    @property
    def _rows(self) -> ArenaStateReqPool:
        return self.cache.req_to_token_pool

    # ---- hits ------------------------------------------------------------------------------

    def finalize_match_result_in_cache(self, params: Any, result: MatchResult) -> MatchResult:
        """Note which state a hit continues from. Its copy gets a slot when the request starts.

        Upstream takes the slot here, for a request that may keep waiting.
        """
        if params.cow_mamba:
            kv = params.req.kv
            # None where nothing was hit, whatever an earlier match of the same request found.
            kv.mamba_cow_src_index = self.tree_core.get_component_device_value(
                result.best_match_node, self.component_type
            )
            kv.mamba_needs_clear = False
        return result

    def unpin(self, req: Req) -> None:
        """``req`` has read the state that it continues from: nothing keeps it any longer."""
        lock = req.lock
        kind = self.component_type
        if lock is None or kind in lock.receipt.skipped_lock_components:
            return
        others = tuple(ct for ct in self.cache.tree_components if ct is not kind)
        self.cache.dec_lock_ref(lock.node, replace(lock.receipt, skipped_lock_components=others))
        lock.receipt.skipped_lock_components += (kind,)

    # ---- what goes into the tree -----------------------------------------------------------

    def prepare_for_caching_req(
        self, req: Req, insert_params: InsertParams, token_ids_len: int, is_finished: bool
    ) -> int:
        """Choose the state to publish; returns the length that it is the state of, 0 for none."""
        ends_here = is_finished and self._own_state_is_at(req, token_ids_len)
        # A prompt without an answer is asked again (for parallel samples, say), and a hit leaves at
        # least its last token to compute: the state before its end serves that, the one at it not.
        is_prompt_only = token_ids_len <= len(req.origin_input_ids)
        if ends_here and not (is_prompt_only and self._has_snapshot(req, token_ids_len)):
            insert_params.mamba_value = req.kv.mamba_pool_idx.unsqueeze(0).clone()
            return token_ids_len
        if not self._rows.enable_mamba_extra_buffer:
            return 0 if is_finished else self._publish_copy(req, insert_params, token_ids_len)
        if not self._has_snapshot(req, token_ids_len):
            return 0
        insert_params.mamba_value = self._rows.take_snapshot(req)
        return int(req.kv.mamba_last_track_seqlen)

    def _has_snapshot(self, req: Req, num_tokens: int) -> bool:
        """Whether the request's last snapshot exists and lies within its first ``num_tokens``."""
        length = req.kv.mamba_last_track_seqlen
        return length is not None and length <= num_tokens and self._rows.has_snapshot(req)

    def _own_state_is_at(self, req: Req, num_tokens: int) -> bool:
        """Whether the request's own state is the one after ``num_tokens`` tokens, a cacheable end.

        Committed tokens count every forward that was launched, one more than was looked at under
        overlap scheduling: the state has them all, and a request that stopped earlier does not fit.
        """
        return num_tokens == req.kv.kv_committed_len and num_tokens % self.cache.page_size == 0

    def _publish_copy(self, req: Req, insert_params: InsertParams, num_tokens: int) -> int:
        """Without snapshots from the kernels: copy the own state, which is at the chunk's end."""
        slot = self._rows.mamba_allocator.alloc(1) if self._rows.make_room(req) else None
        if slot is None:
            return 0
        self._rows.mamba_pool.copy_from(req.kv.mamba_pool_idx.unsqueeze(0), slot)
        insert_params.mamba_value = slot
        return num_tokens

    def commit_insert_component_data(
        self, node: UnifiedTreeNode, is_new_leaf: bool, params: Any, result: Any, cache_actions: Any
    ) -> None:
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        self._spare_outgrown(node)

    def _spare_outgrown(self, node: UnifiedTreeNode) -> None:
        """The last state before ``node`` is spare if the only way on from it leads to ``node``."""
        root = self.tree_core.root_node
        parent = node.parent
        while parent is not root and len(parent.children) == 1:
            if parent.component_data[self.component_type].value is not None:
                self._spare(parent)
                return
            parent = parent.parent

    def _spare(self, node: UnifiedTreeNode, *, first: bool = False) -> None:
        if self.tree_core.order.retention:
            self.tree_core.lru_lists[self.component_type].make_spare(node, first=first)

    def cleanup_after_caching_req(
        self,
        req: Req,
        is_finished: bool,
        insert_result: InsertResult | None = None,
        insert_params: InsertParams | None = None,
    ) -> None:
        """Give back what the tree did not take, and all of it when the request has ended."""
        value = None if insert_params is None else insert_params.mamba_value
        taken = insert_result is not None and not insert_result.mamba_exist
        if is_finished:
            self._release_all(req, value, taken)
            return
        if value is not None and not taken:
            self._free_mamba_value(value)
        elif value is not None and not self._rows.is_looked_for(req):
            self._spare(self.tree_core.node_by_id(req.last_node), first=True)
        req.kv.mamba_last_track_seqlen = None
        req.kv.mamba_prev_track_seqlen = None

    def _release_all(self, req: Req, value: torch.Tensor | None, taken: bool) -> None:
        own = req.kv.mamba_pool_idx
        is_own = value is not None and int(value) == int(own)
        if value is not None and not is_own and not taken:
            self._free_mamba_value(value)
        if is_own and taken:
            self._rows.forget_states(req)
        else:
            self._rows.free_mamba_cache(req)
