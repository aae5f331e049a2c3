# SPDX-License-Identifier: Apache-2.0
"""An arena as admission sees it: what it holds, and what could be made free in it.

Shared by the server's allocator (:mod:`sglang_jenga.sglang_ext.allocator`), whose cache can evict,
and the simulator's plain engine, which has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Cross, State, Vision

#: Starts after which a start counts for a third of what it did.
_REMEMBERED_STARTS = 32
#: Share of the batch that newcomers give up, per share of the prompts that the cache saves.
_PRICE_OF_HITS = 1 / 16
#: States left to the cache, at most, per request that runs.
_MOST_STATES = 1 / 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToCache:
    """What newcomers leave to the cache: large pages of whatever kind, and states."""

    large_pages: int = 0
    states: int = 0

    def __bool__(self) -> bool:
        return self.large_pages > 0 or self.states > 0


class Sparing(IntEnum):
    """What a demand leaves in the cache although it stays unmet. Each includes those before it."""

    #: Decoding, and a request that is alone.
    NOTHING = 0
    #: A prompt's next chunk: windows and states where several cached prompts part.
    SHARED = 1
    #: Newcomers, where hits are worth it: also the windows at the ends of running prompts, as long
    #: as they are cheap.
    CHEAP = 2
    #: What only might be of use to somebody: everything but spare windows and states.
    ALL = 3


class Evictable(Protocol):
    """A cache over an arena, as far as counts go."""

    def reclaimable_slots(self, kind: int) -> int:
        """Slots of one kind (its index in the plan) that are kept for later and nobody pins."""


class Refusals(Protocol):
    """Who is told that a request has to wait."""

    def note_refusal(
        self, memory: ArenaMemory, cache: Evictable, small_pages: Sequence[int], rid: str
    ) -> None:
        """Request ``rid`` waits for ``small_pages`` of each kind; an empty one: a next chunk."""


class ArenaMemory:
    """The integers of one arena. Kinds are indexed as in the plan: the full kind is 0."""

    #: Who counts the refusals.
    starvation: Refusals

    def __init__(self, plan: ArenaPlan, demand: DemandModel, *, num_rows: int) -> None:
        self.plan = plan
        self.demand = demand
        self.page_size = plan.page_tokens
        self.core = ArenaAllocator(plan, num_rows=num_rows, run_small_pages=demand.run_small_pages)
        self.kinds = tuple(range(len(plan.kinds)))
        policies = [type(kind.spec.policy) for kind in plan.kinds]
        #: Kinds that hold a slot for each token of text: all of them grow together.
        self.token_kinds = tuple(k for k in self.kinds if plan.kinds[k].spec.policy.GROWS_WITH_TEXT)
        #: The kinds of recurrent states, of images in cross layers and of embeddings, None: the
        #: model has none.
        self.state_kind, self.cross_kind, self.vision_kind = (
            policies.index(p) if p in policies else None for p in (State, Cross, Vision)
        )
        #: What a demand is counted from, in one list: each kind's small pages and slots per page.
        self._levels = [
            (level, kind.slots_per_small_page)
            for level, kind in zip(self.core.small_pages, plan.kinds, strict=True)
        ]
        #: The request matched last, which admission decides on next.
        self.candidate = ""
        #: Image tokens that the request matched last must still compute: the next candidate.
        self.candidate_images = 0
        #: Tokens each live row holds (0: no request), kept for window growth estimates.
        self.row_tokens: IntArray = np.zeros(num_rows, dtype=np.int64)
        #: Sequence length at which a row's window is worth sliding again.
        self.slide_at: IntArray = np.zeros(num_rows, dtype=np.int64)
        #: Somebody had to wait for bytes, and nobody was admitted since.
        self.is_short = False
        #: Prompt tokens of recently started requests, and how many of them the cache had, without
        #: those that running requests hold anyway. Each start forgets a 32nd.
        self._prompt_tokens = self._cached_tokens = 0.0

    def usable_slots(self, kind: int) -> int:
        """Slots the kind could hold if it had the whole arena."""
        return self.plan.usable_large_pages * self.plan.kinds[kind].slots_per_large_page

    def used_slots(self, kind: int) -> int:
        """Slots of the kind handed out, to requests or to the cache."""
        return self.core.num_used(kind) * self.plan.kinds[kind].slots_per_small_page

    def demand_of(self, pages: int, states: int = 0, images: int = 0) -> list[int]:
        """Small pages per kind: ``pages`` of each kind that grows by tokens, states, images."""
        demand = [0] * len(self.kinds)
        for kind in self.token_kinds:
            demand[kind] = pages
        if self.state_kind is not None:
            demand[self.state_kind] = states
        if self.cross_kind is not None:
            demand[self.cross_kind] = images
        return demand

    def reclaim(
        self,
        cache: Evictable | None,
        small_pages: Sequence[int],
        *,
        cause: str = "SGLang asked for room",
        sparing: Sparing = Sparing.NOTHING,
    ) -> bool:
        """Make room for this demand; here there is nothing to evict. False: it cannot be."""
        return self.core.fits(small_pages)

    def note_prompt(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request started; so much of its prompt was in the cache, and only there."""
        self._prompt_tokens += (prompt_tokens - self._prompt_tokens) / _REMEMBERED_STARTS
        self._cached_tokens += (cached_tokens - self._cached_tokens) / _REMEMBERED_STARTS

    @property
    def hit_share(self) -> float:
        """Share of recent prompts that the cache had, and nobody else: what it is worth keeping."""
        return self._cached_tokens / self._prompt_tokens if self._prompt_tokens else 0.0

    def left_to_cache(self, num_requests: int) -> LeftToCache:
        """What newcomers leave to the cache while so many requests run. Counts alone.

        Nothing where nobody hits. Where hits need a state, states: one for each of the requests
        that is likely to hit, at most for every fourth. Else bytes: so large a share of the arena
        that it costs the batch at most a sixteenth of what hits save.
        """
        if self.state_kind is not None:
            return LeftToCache(states=int(num_requests * min(_MOST_STATES, self.hit_share)))
        share = self.hit_share * _PRICE_OF_HITS
        return LeftToCache(large_pages=round(share * self.plan.usable_large_pages))

    def fits_once_evicted(
        self, cache: Evictable, small_pages: Sequence[int], *, left_large_pages: int = 0
    ) -> bool:
        """Could a demand fit once all evictable slots but ``left_large_pages`` are gone? Necessary,
        from counts alone.

        Counts small pages that stay pinned and packs them perfectly: large pages of kind k are
        ``ceil((pinned + asked) / small_pages_per_large_page)``.
        """
        free = self.core.large.num_free - left_large_pages
        for (level, _), asked in zip(self._levels, small_pages, strict=True):
            free += -asked // level.pages_per_large
        if free >= 0:  # without evicting anything
            return True
        room = self.core.large.num_usable - left_large_pages
        for kind, (level, slots_per_page) in enumerate(self._levels):
            pinned = max(0, level.used - cache.reclaimable_slots(kind) // slots_per_page)
            room += -(pinned + small_pages[kind]) // level.pages_per_large
        return room >= 0

    def close_row(self, row: int) -> None:
        """The request on ``row`` is gone: its reserved pages become free."""
        self.core.close(row)
        self.row_tokens[row] = 0
        self.slide_at[row] = 0
