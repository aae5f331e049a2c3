# SPDX-License-Identifier: Apache-2.0
"""An engine over the core alone: no torch, no SGLang, and no prefix cache.

Allocation, admission, sliding windows and the order in which requests get and lose their slots are
the server's with ``--disable-radix-cache``: the same allocator and the same arithmetic
(:mod:`sglang_jenga.core.admission`), asked at the same moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sglang_jenga.core.admission import PrefillPass
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.core.memory import ArenaMemory, Evictable
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.simulate.engine import Hits, KindBytes, Request

_FULL, _WINDOW = 0, 1


class _NoCache:
    """Nothing is cached."""

    def reclaimable_slots(self, kind: int) -> int:
        return 0


class _Refusals:
    """Counts who had to wait for which kind."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.waits = dict.fromkeys(kinds, 0)
        self.delayed = dict.fromkeys(kinds, 0)
        self._waiting: set[str] = set()

    def note_refusal(
        self, memory: ArenaMemory, cache: Evictable, small_pages: Sequence[int], rid: str
    ) -> None:
        kind = memory.core.starving_kind(small_pages)
        self.waits[kind] += 1
        if rid and rid not in self._waiting:
            self._waiting.add(rid)
            self.delayed[kind] += 1

    def note_start(self, rid: str) -> None:
        self._waiting.discard(rid)


class _Held:
    """What one running request has. evicted_tokens: where its live window begins."""

    __slots__ = ("decoded_steps", "evicted_tokens", "images", "row", "state")

    def __init__(self, row: int) -> None:
        self.row = row
        self.state: IntArray | None = None
        self.images: IntArray | None = None
        self.evicted_tokens = 0
        self.decoded_steps = 0


class PlainEngine:
    """See the module's docstring.

    max_running: requests that may run at once. longest_tokens: the longest of the trace, answer
    included.
    """

    def __init__(
        self,
        plan: ArenaPlan,
        *,
        demand: DemandModel,
        max_running: int,
        longest_tokens: int,
    ) -> None:
        self.plan = plan
        self.demand = demand
        # As in SGLang's table, row 0 is nobody's and the last rows are taken first.
        self.memory = ArenaMemory(plan, self.demand, num_rows=max_running + 1)
        self._refusals = _Refusals(self.kinds())
        self.memory.starvation = self._refusals
        self._cache = _NoCache()
        self._page = plan.page_tokens
        self._interval = self.demand.slide_interval_tokens
        self._rows = list(range(1, max_running + 1))
        pages = -(-longest_tokens // self._page) + 1
        #: Small page ids by row and page of the text, for each kind that grows with it. Only what
        #: requests write becomes real memory.
        self._pages: list[npt.NDArray[np.int32]] = [
            np.empty((max_running + 1, pages), dtype=np.int32) for _ in self.memory.token_kinds
        ]
        #: Tokens of text by row; the memory's own count has those of images, too.
        self._text: IntArray = np.zeros(max_running + 1, dtype=np.int64)
        self._newcomers: list[tuple[Request, int]] = []
        self._pass: PrefillPass | None = None

    def kinds(self) -> tuple[str, ...]:
        return tuple(kind.spec.name for kind in self.plan.kinds)

    def longest_request_tokens(self) -> int:
        return self.demand.longest_request_tokens

    # ---- decode ----------------------------------------------------------------------------

    def begin_step(self) -> None:
        self._pass = None
        self._newcomers.clear()

    def decode(self, requests: Sequence[Request]) -> bool:
        memory, page = self.memory, self._page
        held: list[_Held] = [request.handle for request in requests]
        rows = np.array([one.row for one in held], dtype=np.int64)
        lengths = self._text[rows]
        if page == 1:
            due_rows, due_lengths = rows, lengths
        else:
            due = lengths % page == 0
            due_rows, due_lengths = rows[due], lengths[due]
        if not memory.core.fits(memory.demand_of(len(due_rows))):
            return False
        if len(memory.token_kinds) > 1:
            self._slide_due(requests, rows, lengths)
        if len(due_rows):
            at = due_lengths // page
            taken = memory.core.step(due_rows, memory.token_kinds)
            for table, ids in zip(self._pages, taken, strict=True):
                table[due_rows, at] = ids
        self._text[rows] = lengths + 1
        memory.row_tokens[rows] += 1
        for one in held:
            one.decoded_steps += 1
        return True

    def _slide_due(self, requests: Sequence[Request], rows: IntArray, lengths: IntArray) -> None:
        memory = self.memory
        due = (lengths >= memory.slide_at[rows]).nonzero()[0]
        dead: list[npt.NDArray[np.int32]] = []
        for at in due.tolist():
            request = requests[at]
            # The first step of a request may overlap with its prefill on a server.
            if request.handle.decoded_steps:
                self._take_dead(request, request.length - 1, dead)
                memory.slide_at[rows[at]] = int(lengths[at]) + self._interval
        self._free_dead(dead)

    def _take_dead(
        self, request: Request, num_tokens: int, dead: list[npt.NDArray[np.int32]]
    ) -> None:
        """Window pages that nothing reads once the request has so many tokens."""
        policy = self.demand.window
        assert policy is not None
        one: _Held = request.handle
        page = self._page
        floor = -(-policy.head_tokens // page) * page
        start = max(one.evicted_tokens, floor)
        end = policy.dead_before(num_tokens, page_tokens=page)
        one.evicted_tokens = max(start, end)
        if end > start:
            dead.append(self._pages[_WINDOW][one.row, start // page : end // page])

    def _free_dead(self, dead: list[npt.NDArray[np.int32]]) -> None:
        if dead:
            ids = dead[0] if len(dead) == 1 else np.concatenate(dead)
            self.memory.core.free(_WINDOW, ids.astype(np.int64))

    # ---- prefill ---------------------------------------------------------------------------

    def _budget(self) -> PrefillPass:
        if self._pass is None:
            self._pass = PrefillPass(self.memory, self._cache)
        return self._pass

    def next_chunk(self, request: Request, limit_tokens: int) -> int:
        left = request.length - request.computed_tokens
        found = self._budget().fit_chunk(
            extend_input_len=left, max_new_tokens=0, chunk_limit=limit_tokens
        )
        tokens = min(limit_tokens, found or 0)
        if tokens:
            self._extend([(request, tokens)])
        return tokens

    def match(self, request: Request) -> int:
        self.memory.candidate = str(request.index)
        self.memory.candidate_images = (
            request.image_tokens if self.memory.cross_kind is not None else 0
        )
        return 0

    def check(self, request: Request, limit_tokens: int, hit_tokens: int) -> int:
        images = self.memory.candidate_images
        extend = images + request.length
        may, limit = self._budget().check(extend, extend + 1, 0, images + limit_tokens)
        if not may:
            return 0
        return limit_tokens if limit is None else min(limit_tokens, limit - images)

    def admit(self, request: Request, tokens: int, hit_tokens: int) -> None:
        budget = self._budget()
        promised = self.memory.candidate_images + tokens
        budget.total_offset += budget.reserve_tokens(promised)
        budget.promise(promised, is_newcomer=True)
        self._newcomers.append((request, tokens))
        self._refusals.note_start(self.memory.candidate)

    def place_newcomers(self) -> None:
        if not self._newcomers:
            return
        memory = self.memory
        rows = self._rows[-len(self._newcomers) :]
        del self._rows[-len(rows) :]
        for row, (request, _) in zip(rows, self._newcomers, strict=True):
            request.handle = _Held(row)
        if memory.state_kind is not None:
            states = memory.core.take(memory.state_kind, len(self._newcomers))
            for at, (request, _) in enumerate(self._newcomers):
                request.handle.state = states[at : at + 1]
        self._extend(self._newcomers)

    def _extend(self, chunks: Sequence[tuple[Request, int]]) -> None:
        memory, page = self.memory, self._page
        rows, firsts, counts, images = [], [], [], []
        for request, tokens in chunks:
            one: _Held = request.handle
            start = request.computed_tokens
            rows.append(one.row)
            firsts.append(-(-start // page))
            counts.append(-(-(start + tokens) // page) - firsts[-1])
            is_new = memory.cross_kind is not None and one.images is None
            images.append(request.image_tokens if is_new else 0)
        demand = [[0] * len(rows) for _ in memory.kinds]
        for kind in memory.token_kinds:
            demand[kind] = counts
        if memory.cross_kind is not None:
            demand[memory.cross_kind] = images
        taken = memory.core.extend(rows, demand)
        for kind, table in zip(memory.token_kinds, self._pages, strict=True):
            ids, at = taken[kind], 0
            for row, first, count in zip(rows, firsts, counts, strict=True):
                table[row, first : first + count] = ids[at : at + count]
                at += count
        at = 0
        for (request, tokens), image_pages in zip(chunks, images, strict=True):
            one = request.handle
            if image_pages and memory.cross_kind is not None:
                one.images = taken[memory.cross_kind][at : at + image_pages]
                at += image_pages
            text = request.computed_tokens + tokens
            self._text[one.row] = text
            num_images = 0 if one.images is None else len(one.images)
            memory.row_tokens[one.row] = text + num_images
            memory.slide_at[one.row] = 0

    # ---- after a forward -------------------------------------------------------------------

    def decoded(self, requests: Sequence[Request]) -> None:
        """Nothing is published."""

    def prefilled(self, request: Request) -> None:
        if request.generated_tokens < request.output_tokens:
            self._slide_after_chunk(request)

    def end_chunk(self, request: Request) -> None:
        self._slide_after_chunk(request)

    def _slide_after_chunk(self, request: Request) -> None:
        if len(self.memory.token_kinds) > 1:
            dead: list[npt.NDArray[np.int32]] = []
            self._take_dead(request, request.computed_tokens, dead)
            self._free_dead(dead)

    def finish(self, request: Request) -> None:
        self._free_state(request)
        self._release(request)

    def preempt(self, request: Request) -> None:
        self._release(request, state_last=True)

    def _free_state(self, request: Request) -> None:
        one: _Held = request.handle
        if one.state is not None and self.memory.state_kind is not None:
            self.memory.core.free(self.memory.state_kind, one.state)
            one.state = None

    def _release(self, request: Request, *, state_last: bool = False) -> None:
        """Give all back, in the order in which a server does: full slots whose window has slid out,
        then the rest from the front. It decides which large pages are taken next."""
        memory, page = self.memory, self._page
        one: _Held = request.handle
        if one.images is not None and memory.cross_kind is not None:
            memory.core.free(memory.cross_kind, one.images)
        end = -(-int(self._text[one.row]) // page)
        begin = 0
        policy = self.demand.window
        if policy is not None:
            head = -(-policy.head_tokens // page)
            begin = one.evicted_tokens // page
            if begin > head:
                self._free_pages(_FULL, one.row, head, begin)
                self._free_both(one.row, 0, head)
            else:
                begin = 0
        self._free_both(one.row, begin, end)
        if state_last:
            self._free_state(request)
        memory.close_row(one.row)
        self._rows.append(one.row)
        request.handle = None

    def _free_both(self, row: int, begin: int, end: int) -> None:
        """Pages ``begin`` to ``end`` of a row's text, in every kind that grows with it."""
        for kind in reversed(self.memory.token_kinds):
            self._free_pages(kind, row, begin, end)

    def _free_pages(self, kind: int, row: int, begin: int, end: int) -> None:
        if end > begin:
            self.memory.core.free(kind, self._pages[kind][row, begin:end].astype(np.int64))

    # ---- reports ---------------------------------------------------------------------------

    def occupancy(self) -> tuple[KindBytes, ...]:
        return occupancy_of(self.memory, self._cache)

    def waits(self) -> Mapping[str, int]:
        return self._refusals.waits

    def delayed_requests(self) -> Mapping[str, int]:
        return self._refusals.delayed

    def hits(self) -> Hits:
        return Hits()

    def problems(self) -> list[str]:
        core = self.memory.core
        missing = self.plan.usable_large_pages - core.num_free_large_pages
        lost = [f"{missing} large pages are not free again"] if missing else []
        return core.audit() + lost


def occupancy_of(memory: ArenaMemory, cache: Evictable) -> tuple[KindBytes, ...]:
    """Where the bytes of an arena are, by kind."""
    out = []
    for index, kind in enumerate(memory.plan.kinds):
        used = memory.used_slots(index)
        cached = cache.reclaimable_slots(index)
        idle = memory.core.num_reserved(index) + memory.core.num_holes(index)
        out.append(
            KindBytes(
                held=(used - cached) * kind.slot_bytes,
                cached=cached * kind.slot_bytes,
                partial=idle * kind.small_page_bytes,
                padding=used * kind.padding_bytes_per_slot,
            )
        )
    return tuple(out)
