# SPDX-License-Identifier: Apache-2.0
"""What a scale-out run found: counts of each scheduler, balance, and what a killed server lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sglang_jenga.core.request_digest import HEALTH_CHECK, request_digest
from sglang_jenga.demo.load import Asked, Load

SCHEMA = 1
#: A scheduler remembers its last 128 requests, health checks among them.
MOST_REQUESTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one scheduler started of a load. rids: digests of the ids of those requests.

    Taken from its reports, not from its sums: health checks are requests too.
    """

    requests: int
    prompt_tokens: int
    hit_tokens: int
    rids: frozenset[str]

    @classmethod
    def of(cls, hits: Mapping[str, Any], before: frozenset[str] = frozenset()) -> Self:
        """``hits``: that entry of a scheduler's snapshot. ``before``: digests it had already."""
        reports = {
            rid: report
            for rid, report in hits["reports"].items()
            if rid not in before and not rid.startswith(HEALTH_CHECK)
        }
        return cls(
            requests=len(reports),
            prompt_tokens=sum(report["prompt_tokens"] for report in reports.values()),
            hit_tokens=sum(report["hit_tokens"] for report in reports.values()),
            rids=frozenset(reports),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """One scheduler's part of the load. hit_rate: hit tokens of prompt tokens."""

    name: str
    requests: int
    prompt_tokens: int
    hit_tokens: int
    hit_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """What became of the load when one server was killed.

    at_seconds: the moment, on the clock of the requests.
    running: requests under way then, on any server. running_there: those of them that the killed
    server is known to have started. lost: attempts without an answer. lost_elsewhere: digests of
    requests that a server started which lives, and that got no answer. lost_after: lost attempts
    that began after the kill, which the router should have sent to a server that lives.
    """

    at_seconds: float
    running: int
    running_there: int
    lost: tuple[str, ...]
    lost_elsewhere: tuple[str, ...]
    lost_after: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. balance: requests of the busiest scheduler over those of the average one."""

    schema: int
    mode: str
    policy: str
    router: str
    load: Load
    servers: tuple[ServerRow, ...]
    hit_rate: float
    balance: float
    answered: int
    killed: Killed | None
    asked: tuple[Asked, ...]

    @classmethod
    def of(
        cls,
        *,
        mode: str,
        policy: str,
        router: str,
        load: Load,
        servers: Sequence[tuple[str, Counts]],
        asked: Sequence[Asked],
        killed_seconds: float | None,
    ) -> Report:
        """``killed_seconds``: when the last of ``servers`` was killed; its counts are of then."""
        rows = tuple(
            ServerRow(
                name=name,
                requests=counts.requests,
                prompt_tokens=counts.prompt_tokens,
                hit_tokens=counts.hit_tokens,
                hit_rate=_share(counts.hit_tokens, counts.prompt_tokens),
            )
            for name, counts in servers
        )
        requests = sum(row.requests for row in rows)
        killed = None
        if killed_seconds is not None:
            alive = frozenset[str]().union(*(counts.rids for _, counts in servers[:-1]))
            killed = _killed(asked, alive, servers[-1][1].rids, killed_seconds)
        return cls(
            schema=SCHEMA,
            mode=mode,
            policy=policy,
            router=router,
            load=load,
            servers=rows,
            hit_rate=_share(
                sum(row.hit_tokens for row in rows), sum(row.prompt_tokens for row in rows)
            ),
            balance=_share(max(row.requests for row in rows) * len(rows), requests),
            answered=sum(not one.error for one in asked),
            killed=killed,
            asked=tuple(asked),
        )


def _killed(
    asked: Sequence[Asked], alive: frozenset[str], dead: frozenset[str], at_seconds: float
) -> Killed:
    """``alive``, ``dead``: digests of what servers started that live, and the dead one."""
    lost = [one for one in asked if one.error]
    running = [one for one in asked if one.began_seconds <= at_seconds < one.ended_seconds]
    answered = {request_digest(one.rid) for one in asked if not one.error}
    return Killed(
        at_seconds=at_seconds,
        running=len(running),
        running_there=sum(request_digest(one.rid) in dead for one in running),
        lost=tuple(one.name for one in lost),
        lost_elsewhere=tuple(sorted(alive - answered)),
        lost_after=tuple(one.name for one in lost if one.began_seconds > at_seconds),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
