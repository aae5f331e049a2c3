# SPDX-License-Identifier: Apache-2.0
"""SGLang's gauges and log lines say of an arena what is true of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sglang.srt.managers.scheduler_components.pool_stats_observer import SchedulerPoolStatsObserver
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.observability.metrics_collector import SchedulerStats

from image_machine import ImageMachine, picture
from machine import Machine, make_kinds
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext.pool_stats import ArenaPoolStats
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds

PROMPT = list(range(100, 190))


def windowed(*, full_layers: int = 2, window_layers: int = 5, large_pages: int = 400) -> Machine:
    kinds = make_kinds(
        full_layers=full_layers, window_layers=window_layers, policy=Window(window_tokens=24)
    )
    return Machine(kinds, large_pages=large_pages, chunk_tokens=32)


def observer(m: Machine) -> SchedulerPoolStatsObserver:
    """SGLang's own, hooked as in a server."""
    longest = m.demand.longest_request_tokens
    return SchedulerPoolStatsObserver(
        tree_cache=m.tree,
        token_to_kv_pool_allocator=m.arena,
        req_to_token_pool=m.rows,
        session_controller=SimpleNamespace(sessions={}),
        hisparse_coordinator=None,
        is_hybrid_swa=bool(m.kinds.window),
        is_hybrid_ssm=m.kinds.states is not None,
        enable_hisparse=False,
        full_tokens_per_layer=longest,
        swa_tokens_per_layer=longest,
        max_total_num_tokens=m.plan.usable_large_pages * m.plan.kinds[0].slots_per_large_page,
    )


def gauges(m: Machine) -> SchedulerStats:
    stats = SchedulerStats()
    observer(m).get_pool_stats().update_scheduler_stats(stats)
    return stats


def held_share(m: Machine, kind: int) -> float:
    held = m.arena.used_slots(kind) - m.tree.evictable_slots(kind)
    return float(held * m.plan.kinds[kind].slot_bytes / m.plan.usable_bytes)


MACHINES = ("window", "full", "cross")


def machine(name: str) -> Machine:
    if name == "window":
        return windowed()
    return (
        ImageMachine(large_pages=2000)
        if name == "cross"
        else Machine(make_kinds(), large_pages=200)
    )


@pytest.mark.parametrize("name", MACHINES)
def test_usages_are_shares_of_the_arena_and_add_up(name: str) -> None:
    m = machine(name)
    images = picture(1) if isinstance(m, ImageMachine) else []
    stats = observer(m).get_pool_stats()
    assert isinstance(stats, ArenaPoolStats), "the hook is in place"
    assert gauges(m).token_usage == 0
    req = m.prefill([*images, *PROMPT], chunk=None if images else 32)
    now = gauges(m)
    assert now.full_token_usage == held_share(m, 0) > 0
    shares = [held_share(m, kind) for kind in m.arena.kinds]
    assert now.token_usage == round(sum(shares), 2)
    assert observer(m).get_pool_stats().get_max_pool_usage() == pytest.approx(sum(shares))
    if m.kinds.window:
        assert now.swa_token_usage == shares[1] > 0
        assert now.swa_used_tokens == m.arena.used_slots(1) - m.tree.evictable_slots(1)
    if images:
        assert sum(shares) > shares[0], "images count"
    assert now.kv_used_tokens == m.arena.used_slots(0) - m.tree.evictable_slots(0) > 0
    m.finish(req)
    assert gauges(m).token_usage == gauges(m).full_token_usage == 0, "idle: nothing is held"


def test_a_kind_is_not_full_because_another_kinds_cached_slots_fill_the_arena() -> None:
    """SGLang's own formula reads 100 % here: held / (what it has and what is free)."""
    m = windowed(full_layers=10, window_layers=1, large_pages=600)
    for start in range(0, 2500, 100):
        m.finish(m.prefill(list(range(start, start + 90)), chunk=32))
        # No windows are left but what ends of prompts need: text fills the arena.
        while m.tree.tree_core.lru_lists[ComponentType.SWA].oldest_spare() is not None:
            m.tree._evict_one(dict.fromkeys(m.tree.tree_components, 0))
    req = m.prefill([7, 8, 9] * 10, chunk=32)
    hooked = observer(m)
    stats = hooked.get_pool_stats()
    available = m.arena.core.num_available(1) + m.tree.evictable_slots(1)
    naive = stats.swa_num_used / (stats.swa_num_used + available)
    assert stats.swa_token_usage == pytest.approx(held_share(m, 1))
    assert naive > 2 * stats.swa_token_usage, "the case this is about did not arise"
    assert stats.get_max_pool_usage() < 0.3
    m.finish(req)


def test_a_server_whose_requests_hold_everything_reads_nearly_one() -> None:
    m = Machine(make_kinds(), large_pages=101, context_tokens=128)
    slots = m.arena.usable_slots(0)
    reqs = [m.prefill([slots * i + n for n in range(slots // 2 - 1)]) for i in range(2)]
    assert gauges(m).token_usage == round((slots - 2) / slots, 2) >= 0.98
    for req in reqs:
        m.finish(req)


def test_states_count_as_bytes_of_the_arena() -> None:
    with caching_strategy(LAZY):
        m = StateMachine(state_kinds(), large_pages=300)
        req = m.prefill(PROMPT)
        now = gauges(m)
        assert now.mamba_used_tokens == 1 and now.mamba_usage == held_share(m, m.arena.state_kind)
        assert now.token_usage == round(now.full_token_usage + now.mamba_usage, 2)
        m.finish(req)
        assert gauges(m).mamba_usage == 0


@pytest.mark.parametrize("name", MACHINES)
def test_what_sglangs_leak_checks_add_up_is_unchanged(name: str) -> None:
    m = machine(name)

    def check() -> None:
        stats = observer(m).get_pool_stats()
        original = SchedulerPoolStatsObserver.get_pool_stats.__wrapped__
        theirs = original(observer(m))
        for name in ("available_size", "evictable_size", "capacity"):
            assert getattr(stats, f"full_{name}") == getattr(theirs, f"full_{name}")
            assert getattr(stats, f"swa_{name}", None) == getattr(theirs, f"swa_{name}", None)

    check()
    req = m.prefill(PROMPT, chunk=None if isinstance(m, ImageMachine) else 32)
    check()
    m.finish(req)
    check()


def test_no_gauge_of_a_model_with_images_is_negative() -> None:
    """SGLang's count of free tokens takes images for text, and may fall below zero."""
    m = ImageMachine(large_pages=60, cached=False)
    req = m.prefill([*picture(1, 2), 1, 2, 3])
    now = gauges(m)
    assert now.kv_available_tokens >= 0 and now.kv_used_tokens == 3 and now.num_used_tokens == 3
    m.finish(req)


def test_log_lines_name_the_share_of_the_arena() -> None:
    m = windowed()
    req = m.prefill(PROMPT, chunk=32)
    stats = observer(m).get_pool_stats()
    for parts in (stats.get_prefill_usage_msg_parts(), stats.get_decode_usage_msg_parts()):
        text = ", ".join(parts)
        assert f"full token usage: {held_share(m, 0):.2f}" in text
        assert f"arena usage: {held_share(m, 0) + held_share(m, 1):.2f}" in text
    m.finish(req)


def test_routers_are_told_the_share_of_the_arena() -> None:
    m = windowed()
    req = m.prefill(PROMPT, chunk=32)
    num_used, usage = observer(m).get_pool_stats().get_kv_token_stats()
    assert num_used == max(m.arena.used_slots(k) - m.tree.evictable_slots(k) for k in m.arena.kinds)
    assert usage == pytest.approx(held_share(m, 0) + held_share(m, 1))
    m.finish(req)
