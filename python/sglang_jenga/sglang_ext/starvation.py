# SPDX-License-Identifier: Apache-2.0
"""Say and count which kind starved and who holds the bytes (design sections 4 and 8).

Three things can happen to a request for want of bytes, all of them rare beside steps:

    refusal     admission turns it down; SGLang asks again when a request has finished
    retraction  it runs, bytes run out while decoding, and it goes back to the queue
    abort       nothing else can give way and it made no progress since it went back: given up

A refusal is normal under load, so its log line is printed at most once per ``INTERVAL_SECONDS``.
Retractions get a line each, beside SGLang's own.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sglang_jenga.core.memory import ArenaMemory
from sglang_jenga.core.sizes import count

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
#: The kind of a retraction that no shortage caused: SGLang was asked to test retraction.
NO_KIND = "none"
#: Requests remembered as waiting; those aborted in the queue are never heard of again.
_KEPT_WAITING = 4096


def describe_holders(memory: ArenaMemory, cache: Any) -> str:
    """Large pages per kind: what requests pin, what is cached, what sessions hold between turns."""
    parts = []
    sessions = cache.session.num_idle
    for kind, census in zip(memory.kinds, memory.core.census(), strict=True):
        cached = cache.evictable_slots(kind)
        used = memory.used_slots(kind)
        idle = cache.session.held_slots(kind)
        parts.append(
            f"{census.name}: {census.large_pages} large pages, {used - cached - idle} slots held, "
            f"{cached} cached"
            + (f", {idle} held by {count(sessions, 'idle session')}" if sessions else "")
        )
    free = memory.core.num_free_large_pages
    return f"{'; '.join(parts)}; {free} of {memory.plan.usable_large_pages} large pages free"


class Starvation:
    """What one arena's requests went without, since start. Kinds go by their names.

    waits: refusals. delayed_requests: requests refused at least once before they started.
    retractions: requests retracted while decoding. realised_running_cap: requests that held memory
    when one was last refused, which is the number that memory allows at this traffic; 0: none was
    refused.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        none = dict.fromkeys(kinds, 0)
        self.waits: Counter[str] = Counter(none)
        self.delayed_requests: Counter[str] = Counter(none)
        self.retractions: Counter[str] = Counter(none)
        self.realised_running_cap = 0
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._shortage: tuple[str, str] | None = None
        self._last_kind = NO_KIND
        self._last_logged = -INTERVAL_SECONDS

    # ---- admission -------------------------------------------------------------------------

    def note_refusal(
        self, memory: ArenaMemory, cache: Any, small_pages: Sequence[int], rid: str
    ) -> None:
        """A request, by the digest of its id, has to wait: ``small_pages`` more would not fit.

        An empty ``rid``: a prompt that is half-way through waits for its next chunk.
        """
        kind = memory.core.starving_kind(small_pages)
        self.waits[kind] += 1
        self._last_kind = kind
        self.realised_running_cap = int(np.count_nonzero(memory.row_tokens))
        if rid and rid not in self._waiting:
            self._waiting[rid] = None
            self.delayed_requests[kind] += 1
            if len(self._waiting) > _KEPT_WAITING:
                self._waiting.popitem(last=False)
        now = time.monotonic()
        if now - self._last_logged < INTERVAL_SECONDS:
            return
        self._last_logged = now
        logger.info(
            "Jenga: a request waits for memory, starving kind: %s (%s small pages more needed). %s",
            kind,
            _per_kind(memory, small_pages),
            describe_holders(memory, cache),
        )

    def note_start(self, rid: str) -> None:
        """This request, by the digest of its id, waits no longer."""
        self._waiting.pop(rid, None)

    # ---- decoding --------------------------------------------------------------------------

    def note_shortage(self, memory: ArenaMemory, cache: Any, small_pages: Sequence[int]) -> None:
        """Running requests cannot decode: whoever is retracted next, this is why.

        SGLang asks again after each request that it retracts; the last of these shortages stands.
        """
        if cache is not None:
            kind = memory.core.starving_kind(small_pages)
            self._shortage = (
                kind,
                f"starving kind: {kind} ({_per_kind(memory, small_pages)} small pages more "
                f"needed). {describe_holders(memory, cache)}",
            )

    def note_retraction(
        self, retracted: Sequence[str], kept: Sequence[str], aborted: Sequence[str]
    ) -> None:
        """SGLang has retracted requests; all by the digests of their ids.

        kept: those of ``retracted`` that SGLang meant to abort (its log says so) and that go back
        to the queue instead. aborted: given up for want of memory.
        """
        kind, why = self._shortage or (NO_KIND, "no kind starved: SGLang was asked to")
        self._shortage = None
        if retracted:
            self.retractions[kind] += len(retracted)
            logger.warning("Jenga: %s retracted, %s", count(len(retracted), "request"), why)
        if kept:
            logger.warning(
                "Jenga: request %s is not aborted, it goes back to the queue", ", ".join(kept)
            )
        if aborted:
            logger.error("Jenga: out of memory, request %s aborted, %s", ", ".join(aborted), why)

    # ---- prompts that can go no further ----------------------------------------------------

    def note_half_done(self, memory: ArenaMemory, cache: Any, rid: str) -> None:
        """Request ``rid``, half-way through its prompt, is alone and goes back to the queue."""
        self.retractions[self._last_kind] += 1
        logger.warning(
            "Jenga: request %s goes back to the queue half-way through its prompt, nothing else "
            "can give way. %s",
            rid,
            describe_holders(memory, cache),
        )

    def note_given_up(self, rid: str, why: str) -> None:
        """Request ``rid`` waits, nothing runs, and it does not fit: it is answered with ``why``."""
        self.note_start(rid)
        logger.error("Jenga: request %s is given up. %s", rid, why)


def _per_kind(memory: ArenaMemory, small_pages: Sequence[int]) -> str:
    names = (kind.spec.name for kind in memory.plan.kinds)
    asked = [f"{name} {n}" for name, n in zip(names, small_pages, strict=True) if n]
    return ", ".join(asked)
