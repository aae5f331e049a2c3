# SPDX-License-Identifier: Apache-2.0
"""Admission by bytes across kinds (design section 4). Integers alone.

A scheduler asks once per candidate of a prefill pass whether the request may run. Two questions are
answered here:

* *eventually*: could everything running, everything admitted in this pass and this request reach
  its expected length, if every evictable slot were gone? A necessary condition, from counts.
* *now*: is the next chunk of everything admitted really free? Here slots are evicted until it is,
  so an admitted request cannot fail to allocate. The eviction is what the allocation would do a
  moment later; a candidate that fails the first question evicts nothing.

Liveness: when nothing runs and nothing was admitted, only *now* is asked, and the chunk is
shortened until it fits, because no other request could ever make room. Decisions depend on counts
only, so tensor-parallel ranks agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sglang_jenga.core.memory import ArenaMemory, Evictable, LeftToCache, Sparing

#: A newcomer's chunk is not shortened below this: much shorter ones waste a GPU's prefill speed.
MIN_CHUNK_TOKENS = 2048
#: Recurrent states that a request needs while it runs (where the model has any): its own. Those it
#: leaves behind for others belong to the tree, which gives them up when bytes are short.
NEWCOMER_STATES = 1


class PrefillPass:
    """One prefill pass over the waiting queue.

    ``pending_pages``: small pages per kind promised to requests of this pass, not yet allocated;
    their bytes are already free. ``total_offset`` (SGLang's name) is the number of full tokens
    that running and admitted requests may still need.
    """

    def __init__(
        self, memory: ArenaMemory, cache: Evictable, *, num_mixed_decode_tokens: int = 0
    ) -> None:
        self.memory = memory
        self.cache = cache
        self.page_size = memory.page_size
        self.total_offset = num_mixed_decode_tokens
        self._demand = memory.demand
        self._interval = self._demand.slide_interval_tokens
        self._window_kind = memory.token_kinds[1] if len(memory.token_kinds) > 1 else None
        self.pending_pages = memory.demand_of(self._pages(num_mixed_decode_tokens))
        self._admitted = 0
        #: Running requests and the growth of their windows, and the state of the arena that these
        #: were counted in: once per pass, unless a request is preempted in it.
        self._running = 0
        self._growth = 0
        self._counted_version = -1
        #: What newcomers leave to the cache, while so many requests run or were admitted.
        self._left: dict[int, LeftToCache] = {}
        #: What the last question that was answered with no asked for, small pages per kind.
        self._short_of = self.pending_pages
        #: A request got a shorter chunk than it could use, for want of memory.
        self._starved = False

    def _pages(self, tokens: float) -> int:
        return -(-math.ceil(tokens) // self.page_size)

    # ---- the two questions -----------------------------------------------------------------

    def _fits_eventually(
        self, full_tokens: float, window_tokens: float, states: int, images: int = 0
    ) -> bool:
        """Could this many more slots per kind fit once all evictable slots are gone?

        ``images``: so many of a newcomer's tokens are an image's; SGLang counts them among the
        full ones.
        """
        arena = self.memory
        asked = [0] * len(arena.kinds)
        if arena.cross_kind is not None:
            images += self.pending_pages[arena.cross_kind]
            asked[arena.cross_kind] = images
            full_tokens -= images
        left = self._left_to_cache() if states else LeftToCache()
        if arena.state_kind is not None:
            pending = self.pending_pages[arena.state_kind]
            asked[arena.state_kind] = states + pending + left.states
        asked[0] = self._pages(full_tokens)
        if self._window_kind is not None:
            asked[self._window_kind] = self._pages(window_tokens)
        if arena.fits_once_evicted(self.cache, asked, left_large_pages=left.large_pages):
            return True
        self._short_of = asked
        return False

    def _left_to_cache(self) -> LeftToCache:
        """By a newcomer. Requests that run need leave nothing (benchmark/retention)."""
        self._count_running()
        requests = self._running + self._admitted + NEWCOMER_STATES
        left = self._left.get(requests)
        if left is None:
            left = self._left[requests] = self.memory.left_to_cache(requests)
        return left

    def _count_running(self) -> None:
        version = self.memory.core.version
        if self._counted_version == version:
            return
        self._counted_version = version
        tokens = self.memory.row_tokens
        tokens = tokens[tokens > 0]
        self._running = len(tokens)
        kept = self._demand.kept_tokens
        if kept is not None:
            self._growth = int(np.maximum(0, kept + self._interval - tokens).sum())

    def _future_window_tokens(self) -> float:
        """Window growth of running requests: none grows past what it keeps, nor past its tokens."""
        self._count_running()
        return min(self.total_offset, self._growth)

    def _demand_with(self, tokens: int, states: int) -> list[int]:
        """Small pages per kind: the pass's promises, a request's next ``tokens``, its images first,
        and ``states``."""
        arena = self.memory
        demand = list(self.pending_pages)
        if arena.cross_kind is not None and states:
            images = min(tokens, arena.candidate_images)
            demand[arena.cross_kind] += images
            tokens -= images
        # Exact or a page too many: an extension may begin inside its prefix's last page.
        pages = -(-tokens // self.page_size)
        for kind in arena.token_kinds:
            demand[kind] += pages
        if arena.state_kind is not None:
            demand[arena.state_kind] += states
        return demand

    def _make_free_now(
        self, tokens: int, states: int, *, sparing: Sparing = Sparing.NOTHING
    ) -> bool:
        """Evict until the pass's promises and this much more are free in every kind.

        ``tokens`` in each kind that grows by tokens, and ``states`` recurrent states.
        """
        demand = self._demand_with(tokens, states)
        arena = self.memory
        if arena.core.fits_apart(demand):
            return True
        cause = f"request {arena.candidate} started" if states else "a prompt's next chunk ran"
        if arena.reclaim(self.cache, demand, cause=cause, sparing=sparing):
            return True
        self._short_of = demand
        return False

    def _note_refusal(self, rid: str) -> None:
        arena = self.memory
        arena.is_short = True
        arena.starvation.note_refusal(arena, self.cache, self._short_of, rid)

    def _largest_chunk_now(
        self, limit: int, states: int, *, sparing: Sparing = Sparing.NOTHING
    ) -> int:
        """Longest prefix of ``limit`` tokens that can be made free now (whole pages)."""
        low, high = 0, limit // self.page_size
        while low < high:
            middle = (low + high + 1) // 2
            if self._make_free_now(middle * self.page_size, states, sparing=sparing):
                low = middle
            else:
                high = middle - 1
        return low * self.page_size

    def _shorter_chunks(self, tokens: int) -> Iterator[int]:
        """Halves of a chunk, longest first, where a shorter chunk asks for much less.

        While a chunk runs, a window kind holds a slot for each of its tokens. That is what keeps a
        request out when those slots are bigger than the full ones (Gemma-3: five times).
        """
        sizes = [self.memory.plan.kinds[k].slot_bytes for k in self.memory.token_kinds]
        if len(sizes) == 1 or sizes[1] <= sizes[0]:
            return
        while tokens // 2 >= MIN_CHUNK_TOKENS:
            tokens //= 2
            yield -(-tokens // self.page_size) * self.page_size

    # ---- what the scheduler asks ------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """No request holds memory and none was admitted: only evicting can make room."""
        return self._admitted == 0 and not self.memory.row_tokens.any()

    def check(
        self, extend_tokens: int, total_tokens: int, max_new_tokens: int, chunk_limit: int | None
    ) -> tuple[bool, int | None]:
        """May a newcomer run, and how long may its first chunk be (None: as long as it likes)?

        extend_tokens: of its prompt, still to compute. total_tokens: those, and what is expected
        of its answer. max_new_tokens: of its answer, for the peak of its window.
        """
        now = extend_tokens if chunk_limit is None else min(extend_tokens, chunk_limit)
        # A newcomer must not take the bytes that a half-done prompt waits for.
        if self._starved and not self.is_idle:
            self._note_refusal(self.memory.candidate)
            return False, None
        if self.is_idle:
            if self._make_free_now(now, NEWCOMER_STATES):
                return True, chunk_limit
            if chunk_limit is not None:
                shorter = self._largest_chunk_now(now, NEWCOMER_STATES)
                if shorter > self.memory.candidate_images:  # they are computed in one go
                    return True, shorter
        elif self._admits(extend_tokens, total_tokens, max_new_tokens, chunk_limit, now):
            return True, chunk_limit
        elif chunk_limit is not None:
            for chunk in self._shorter_chunks(now):
                if self._admits(extend_tokens, total_tokens, max_new_tokens, chunk, chunk):
                    self._starved = True
                    return True, chunk
        self._note_refusal(self.memory.candidate)
        return False, None

    def _admits(
        self, extend: int, total_tokens: float, max_new: int, chunk: int | None, now: int
    ) -> bool:
        window = self._demand.window_tokens(extend, max_new, chunk, self._interval)
        # Where hits are worth it, a newcomer waits rather than take the windows of requests that
        # run: a few slots that let the next turn of a conversation skip its whole history.
        sparing = Sparing.CHEAP if self._left_to_cache() else Sparing.SHARED
        return self._fits_eventually(
            self.total_offset + total_tokens,
            self._future_window_tokens() + window,
            NEWCOMER_STATES,
            min(now, self.memory.candidate_images),
        ) and self._make_free_now(now, NEWCOMER_STATES, sparing=sparing)

    def fit_chunk(
        self, *, extend_input_len: int, max_new_tokens: int, chunk_limit: int
    ) -> int | None:
        """Longest next chunk of a request already under way, None: none fits this pass.

        The rest of its prompt counts as promised before anybody else is admitted.
        """
        now = min(extend_input_len, chunk_limit)
        self.total_offset += extend_input_len - now
        possible = self._fits_eventually(now, now, 0)
        # What several prompts share costs little more than the chunk it would lengthen, and the
        # next visitor computes it again. The window of a single prompt is cheap too, but they are
        # many: kept at this price they cost more steps than they save (benchmark/capacity).
        if possible and self._make_free_now(now, 0, sparing=Sparing.SHARED):
            return chunk_limit
        # It stays if the rest allows a chunk that is not much shorter.
        shorter = self._largest_chunk_now(now, 0, sparing=Sparing.SHARED)
        if 2 * shorter < now and possible and self._make_free_now(now, 0):
            return chunk_limit
        self._starved = True
        shorter = shorter or self._largest_chunk_now(now, 0)
        if not shorter:
            self._note_refusal("")
        return shorter or None

    def promise(self, tokens: int, *, is_newcomer: bool) -> None:
        """A request of this pass may take its next ``tokens``; they are not allocated yet."""
        self.pending_pages = self._demand_with(tokens, NEWCOMER_STATES if is_newcomer else 0)
        self._admitted += 1
        self.memory.is_short &= not is_newcomer

    def reserve_tokens(self, tokens: int) -> int:
        """What a request of ``tokens`` counts for in :attr:`total_offset`: one page to spare."""
        return (self._pages(tokens) + 1) * self.page_size
