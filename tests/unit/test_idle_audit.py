# SPDX-License-Identifier: Apache-2.0
"""An idle server checks its arena once per quiet period, and still finds what is wrong."""

from __future__ import annotations

import pytest

from machine import Machine, make_kinds
from sglang_jenga.sglang_ext.idle_audit import QUIET_SECONDS, IdleAudit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def machine() -> Machine:
    return Machine(make_kinds(), large_pages=60)


def count_audits(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    versions: list[int] = []
    audit = machine.arena.core.audit
    monkeypatch.setattr(
        machine.arena.core,
        "audit",
        lambda: versions.append(machine.arena.core.version) or audit(),
    )
    return versions


def test_one_audit_per_quiet_period(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    audits, clock = count_audits(machine, monkeypatch), Clock()
    idle = IdleAudit(machine.arena.core, clock=clock)
    for period in (1, 2, 3):
        machine.finish(machine.prefill(range(30)))
        for _ in range(5):
            assert idle.violations() == []
        assert len(audits) == period - 1, "a request may follow at once"
        clock.now += QUIET_SECONDS
        for _ in range(5):
            assert idle.violations() == []
        assert len(audits) == period, "nothing has changed since"
        clock.now += 1000


def test_requests_in_quick_succession_are_never_held_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits, clock = count_audits(machine, monkeypatch), Clock()
    idle = IdleAudit(machine.arena.core, clock=clock)
    for first in range(10):
        machine.finish(machine.prefill(range(first, first + 30)))
        idle.violations()
        clock.now += 0.9 * QUIET_SECONDS
        idle.violations()
    assert audits == []


def test_a_lost_page_is_reported_by_the_allocator(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_jenga.sglang_ext.idle_audit.QUIET_SECONDS", 0.0)
    machine.finish(machine.prefill(range(30)))
    assert machine.arena.verify_byte_accounting() == []
    machine.finish(machine.prefill(range(30, 60)))
    machine.arena.core.large.num_free -= 1
    found = machine.arena.verify_byte_accounting()
    assert any("large pages: free" in line for line in found)
