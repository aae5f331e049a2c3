# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions whose memory gives way when others need it (design section 6, liveness).

SGLang keeps the K/V of a streaming session in a record of its own: outside the tree, never evicted,
its request row included. It keeps the session's tokens too, so a record is only a cache of them: a
turn that finds none is computed from its tokens, as SGLang does after an aborted turn.

    busy       a turn runs on the record, or is half-way through its prompt: pinned
    idle       no turn is in flight: evicted whole, by the clock of everything else that is cached
    awaited    a turn waits in the queue: goes after all that is cached, before anything that runs

A retracted turn gives everything back, as any other request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.scheduler_components.pool_stats_observer import (
    kv_mamba_slots,
    kv_private_swa_tokens,
    kv_private_tokens,
)
from sglang.srt.mem_cache.unified_cache.components.base import get_and_increase_time_counter
from sglang.srt.session.streaming_session import StreamingSession

from sglang_jenga.core.memory import Sparing

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
    from sglang.srt.session.session_controller import Session

    from sglang_jenga.sglang_ext.radix import ArenaRadixCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleRecord:
    """A record that no request runs on.

    slots: by kind (index in the plan), those outside the tree. last_use: on the tree's clock.
    """

    session: Session
    slots: tuple[int, ...]
    last_use: float

    @property
    def is_awaited(self) -> bool:
        """A turn of the session is in flight: it waits, because nothing runs on the record."""
        return bool(self.session._inflight)


class ArenaSessions(StreamingSession):
    """SGLang's session records, which can be evicted while nothing runs on them."""

    cache: ArenaRadixCache

    def __init__(self, cache: ArenaRadixCache) -> None:
        super().__init__(cache)
        #: By session id, least recently used first.
        self._idle: dict[str, IdleRecord] = {}
        #: The request that was matched last and may start on its session's record.
        self._candidate: str | None = None
        #: Records evicted since start, and the tokens that they held.
        self.evicted_records = 0
        self.evicted_tokens = 0

    # ---- who holds what --------------------------------------------------------------------

    @property
    def num_idle(self) -> int:
        """Records, and request rows, that nothing runs on."""
        return len(self._idle)

    def idle_slots(self, kind: int) -> int:
        """Slots of a kind (its index in the plan) in idle records, those of the tree aside."""
        return sum(record.slots[kind] for record in self._idle.values())

    def _slots_of(self, kv: Any) -> tuple[int, ...]:
        arena, page = self.cache._arena, self.cache.page_size
        by_kind = dict.fromkeys(arena.kinds, 0)
        for kind, tokens in zip(
            arena.token_kinds, (kv_private_tokens, kv_private_swa_tokens), strict=False
        ):
            by_kind[kind] = tokens(kv, page)
        if arena.state_kind is not None:
            by_kind[arena.state_kind] = kv_mamba_slots(kv)
        return tuple(by_kind.values())

    # ---- the life of a record --------------------------------------------------------------

    def try_match_prefix(self, params: MatchPrefixParams) -> MatchResult | None:
        """Upstream's; the record that is lent stays until the request is admitted or refused."""
        result = super().try_match_prefix(params)
        self._candidate = None
        if result is not None:
            self._candidate = session_id = params.req.session.session_id
            if session_id in self._idle:  # the match cut off what the turn does not continue
                record = self._idle[session_id]
                self._idle[session_id] = replace(record, slots=self._slots_of(params.req.kv))
        return result

    def start(self, session_id: str | None) -> None:
        """A request of the session is going to run: its record is pinned."""
        if session_id is not None:
            self._idle.pop(session_id, None)

    def start_candidate(self) -> None:
        """The request that was matched last is admitted."""
        self.start(self._candidate)

    def forget_candidate(self) -> None:
        """The request that was matched last is no longer being decided on."""
        self._candidate = None

    def take(self, req: Req) -> None:
        super().take(req)
        if self.borrowed_slot(req) is not None:
            self.start(req.session.session_id)

    def try_cache_finished_req(self, req: Req) -> bool:
        """The record of a finished turn is idle now, that of a retracted one goes.

        (Upstream keeps a retracted turn's record, which frees nothing, and takes the turn for the
        session's last finished one.)
        """
        slot = self.borrowed_slot(req)
        if slot is not None and not req.finished():
            del self.slots[req.session.session_id]
            self._idle.pop(req.session.session_id, None)
            req.lock, slot.lock = slot.lock, None
            return False
        session = req.session
        kept = super().try_cache_finished_req(req)
        if session is not None:
            self._idle.pop(session.session_id, None)
        if kept and slot is not None:
            self.cache._arena.close_row(slot.kv.req_pool_idx)
            self._idle[session.session_id] = IdleRecord(
                session=session,
                slots=self._slots_of(slot.kv),
                last_use=float(get_and_increase_time_counter()),
            )
        return kept

    def release_session(self, session_id: str) -> None:
        """Free the session's record. A turn that waits may have borrowed it: it finds it empty."""
        slot = self.slots.get(session_id)
        super().release_session(session_id)
        self._idle.pop(session_id, None)
        if slot is not None:
            slot.kv.__init__()

    def forget(self) -> None:
        """All memory was cleared."""
        self.slots.clear()
        self._idle.clear()
        self._candidate = None

    # ---- giving way ------------------------------------------------------------------------

    def oldest(self, *, awaited: bool = False) -> tuple[str, float] | None:
        """Session whose idle record was used longest ago, and when; one that a turn waits for
        only if ``awaited``. Never that of the request being decided on."""
        for session_id, record in self._idle.items():
            if session_id != self._candidate and record.is_awaited == awaited:
                return session_id, record.last_use
        return None

    def oldest_awaited(self, sparing: Sparing) -> tuple[str, float] | None:
        """The same of records that turns wait for: newcomers leave them."""
        return None if sparing is Sparing.CHEAP else self.oldest(awaited=True)

    def evict(self, session_id: str, cause: str) -> bool:
        """Free an idle record; the session's next turn is computed from its tokens. True."""
        kv = self.slots[session_id].kv
        tokens, waits = kv.kv_committed_len, self._idle[session_id].is_awaited
        self.evicted_records += 1
        self.evicted_tokens += tokens
        logger.info(
            "Jenga: session %s gives way: %d tokens, %s; its next turn is computed from its "
            "tokens (%s)",
            session_id,
            tokens,
            "a turn waits" if waits else "idle",
            cause,
        )
        self.release_session(session_id)
        return True

    def evict_for_rows(self, num_rows: int, cause: str) -> None:
        """Free idle records until ``num_rows`` request rows are free, or none is left."""
        pool = self.cache._req_pool
        while len(pool.free_slots) < num_rows:
            oldest = self.oldest() or self.oldest(awaited=True)
            if oldest is None:
                return
            self.evict(oldest[0], cause)

    def evict_candidate(self) -> bool:
        """The request being decided on is alone and does not fit beside its own record: it starts
        afresh at the next turn of the scheduler. False: it has none."""
        session_id, self._candidate = self._candidate, None
        if session_id is None or session_id not in self._idle:
            return False
        return self.evict(session_id, "it does not fit beside what it has; it starts afresh")
