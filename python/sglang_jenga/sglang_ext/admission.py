# SPDX-License-Identifier: Apache-2.0
"""Admission by bytes across kinds, behind SGLang's budget of a prefill pass.

What is decided, and from what, is :mod:`sglang_jenga.core.admission`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.prefill_budget import PrefillBudget

from sglang_jenga.core.admission import NEWCOMER_STATES, PrefillPass
from sglang_jenga.sglang_ext.retraction import give_up

if TYPE_CHECKING:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase


class ArenaPrefillBudget(PrefillPass, PrefillBudget):
    """One prefill pass over the waiting queue; SGLang asks it once per candidate."""

    def __init__(
        self, allocator: ArenaAllocatorBase, tree_cache: Any, *, num_mixed_decode_tokens: int = 0
    ) -> None:
        PrefillBudget.__init__(
            self, allocator, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens
        )
        PrefillPass.__init__(
            self, allocator, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens
        )

    def _obtainable_tokens(self) -> int:
        return self.allocator.available_size() + self.tree_cache.reclaimable_slots(0)

    @property
    def remaining_total(self) -> float:
        return self._obtainable_tokens() - self.total_offset

    @property
    def remaining_current(self) -> float:
        return self._obtainable_tokens() - self.current_offset

    def has_capacity(self) -> bool:
        return self._fits_eventually(
            self.total_offset + 1, self._future_window_tokens() + 1, NEWCOMER_STATES
        )

    def check_prefill(
        self,
        *,
        extend_input_len: int,
        total_tokens: int,
        max_new_tokens: int,
        input_tokens: int,
        swa_host_hit_length: int,
        chunk_limit: int | None,
        auxiliary_swa_host_hit_length: int = 0,
    ) -> tuple[bool, int | None]:
        admitted, limit = self.check(extend_input_len, total_tokens, max_new_tokens, chunk_limit)
        if not admitted and self.is_idle:
            self._give_up_candidate()
        return admitted, limit

    def can_allocate_prefill(
        self,
        *,
        paged_input: int,
        extend_input_len: int,
        max_new_tokens: int,
        chunk_limit: int | None,
    ) -> bool:
        now = extend_input_len if chunk_limit is None else min(extend_input_len, chunk_limit)
        if self.is_idle:
            fits = self._make_free_now(now, NEWCOMER_STATES)
            if not fits:
                self._give_up_candidate()
            return fits
        total = paged_input + max_new_tokens
        return self._admits(extend_input_len, total, max_new_tokens, chunk_limit, now)

    def _give_up_candidate(self) -> None:
        """Nothing runs and the request does not fit: no later pass would be different.

        So it starts afresh, without its session's record and then without the prefix that it hit,
        whose slots may lie in more large pages than they would fill. If it has neither it is
        answered with an error.
        """
        tree = self.tree_cache
        if tree.session.evict_candidate():
            return
        if tree.candidate.prefix_len:
            tree.starts_over = True  # not now: the prefix is pinned while it is decided on
        else:
            give_up(tree.candidate, self.allocator, tree)

    def available_chunk_tokens(self, chunk_limit: int) -> int | None:
        return chunk_limit if chunk_limit > 0 else None

    def reserve(
        self,
        extend_input_len: int,
        max_new_tokens: int,
        *,
        extra_tokens: int = 0,
        chunk_limit: int | None = None,
        is_chunked_continuation: bool = False,
    ) -> None:
        PrefillBudget.reserve(self, extend_input_len, max_new_tokens, extra_tokens=extra_tokens)
        self.promise(extend_input_len, is_newcomer=not is_chunked_continuation)
        if not is_chunked_continuation:
            self.tree_cache.session.start_candidate()
