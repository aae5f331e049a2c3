# SPDX-License-Identifier: Apache-2.0
"""When an idle server checks its arena.

SGLang's idle loop spins, and a request that arrives waits for the turn it is in. A full audit reads
the state of every page (milliseconds with hundreds of thousands of them), so it has its turn once
per quiet period, after the arena has been left alone for a moment:

    busy        idle, spinning ................................ busy
    changes     [ wait QUIET_SECONDS ][ audit ][ nothing to do ]  changes
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sglang_jenga.core.allocator import ArenaAllocator

#: Clients that send one request after the other pause for less.
QUIET_SECONDS = 1.0


class IdleAudit:
    """Audits ``core`` at most once between two of its changes, not before it was left alone."""

    def __init__(
        self, core: ArenaAllocator, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._core = core
        self._clock = clock
        self._audited_version = core.version
        self._seen_version = core.version
        self._seen_at = clock()

    def violations(self) -> list[str]:
        """Violations of the arena's invariants; nothing where this is no moment to look."""
        version = self._core.version
        if version == self._audited_version:
            return []
        now = self._clock()
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, now
        if now - self._seen_at < QUIET_SECONDS:
            return []
        self._audited_version = version
        return self._core.audit()
