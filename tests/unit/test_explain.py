# SPDX-License-Identifier: Apache-2.0
"""Why a hit was as long as it was: each report against what was done to the cache."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sink_window.policy import SinkWindow

from image_machine import ImageMachine, picture
from machine import Machine, make_kinds
from sglang_jenga.core.policies import Chunked, TokenPolicy, Window
from sglang_jenga.core.request_digest import request_digest
from sglang_jenga.sglang_ext.explain import KEPT_REPORTS, HitReport
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import GRID_TOKENS, StateMachine, caching_strategy, state_kinds

SPAN = 24
PROMPT = list(range(100, 200))
WINDOW = Window(window_tokens=SPAN)
POLICIES = [WINDOW, Chunked(chunk_tokens=SPAN), SinkWindow(sink_tokens=4, window_tokens=SPAN)]


def machine(policy: TokenPolicy = WINDOW, **kwargs: int) -> Machine:
    kinds = make_kinds(window_layers=5, policy=policy)
    return Machine(kinds, **{"large_pages": 2000, "chunk_tokens": 200, **kwargs})


def serve(m: Machine, prompt: list[int], **kwargs: int) -> HitReport:
    """Serve a request to its end; why its hit was what it was."""
    req = m.prefill(prompt, **kwargs)
    m.decode([req])
    m.finish(req)
    return m.tree.hits.report(request_digest(req.rid))


def evict_windows(m: Machine, cause: str) -> None:
    """Everything that goes before a leaf does: window slots that no end of a prompt needs."""
    m.tree.evicting_for = type(m.tree.evicting_for)(cause=cause, starving_kind="full")
    core = m.tree.tree_core
    while core.lru_lists[ComponentType.SWA].oldest_spare() is not None:
        m.tree._evict_one({ct: 0 for ct in m.tree.tree_components})


def test_a_prompt_that_nobody_sent_before_was_cut_by_nothing() -> None:
    report = serve(machine(), PROMPT)
    assert (report.prompt_tokens, report.hit_tokens, report.full_only_tokens) == (99, 0, 0)
    assert report.cut_by is report.missing_token is None
    assert report.evicted_by is report.rest_evicted_by is None


def test_a_whole_hit_was_cut_by_nothing() -> None:
    m = machine()
    serve(m, PROMPT)
    report = serve(m, [*PROMPT, 1, 2, 3])
    assert report.hit_tokens == report.full_only_tokens == 100
    assert report.tokens_by_kind == {"window": 100} and report.cut_by is None


def test_a_branch_whose_window_went_names_the_first_token_it_lacks_and_who_took_it() -> None:
    m = machine()
    serve(m, PROMPT)
    evict_windows(m, "request 7 started")
    report = serve(m, [*PROMPT[:60], 1, 2, 3])
    assert (report.hit_tokens, report.full_only_tokens) == (0, 60)
    assert report.cut_by == "window" and report.tokens_by_kind == {"window": 0}
    assert report.missing_token == 60 - SPAN
    assert report.evicted_by is not None and report.evicted_by.cause == "request 7 started"
    assert report.rest_evicted_by is None, "the rest of the prompt is new"


def test_a_report_tells_of_the_start_whatever_goes_later() -> None:
    m = machine()
    serve(m, PROMPT)
    evict_windows(m, "request 7 started")
    req = m.prefill([*PROMPT[:60], 1, 2, 3])
    before = m.tree.hits.report(request_digest(req.rid))
    m.decode([req])
    m.finish(req)
    evict_windows(m, "request 8 started")
    assert m.tree.hits.report(request_digest(req.rid)) == before
    assert before.evicted_by is not None and before.evicted_by.cause == "request 7 started"


def test_full_slots_that_went_are_told_from_text_that_is_new() -> None:
    m = machine()
    serve(m, PROMPT)
    serve(m, [*PROMPT[:50], *range(300, 350)])
    cause = m.tree.evicting_for = type(m.tree.evicting_for)(
        cause="running requests decoded", starving_kind="window"
    )
    m.hit([*PROMPT[:50], *range(300, 350)])  # the other branch is the older one now
    while m.hit([*PROMPT, 1]) == 100:
        m.tree._evict_one({ct: 0 for ct in m.tree.tree_components})
    gone = serve(m, [*PROMPT, 1, 2, 3])
    assert gone.full_only_tokens < 100 and gone.rest_evicted_by == cause
    assert serve(m, [*range(300, 350), 7]).rest_evicted_by is None


def test_pressure_is_its_own_cause() -> None:
    """Requests that push each other out, each on record with the kind that starved."""
    m = machine(large_pages=330)
    for start in range(0, 800, 100):
        serve(m, list(range(start, start + 90)), chunk=32)
    report = serve(m, list(range(0, 90)))
    assert report.full_only_tokens == 0 and report.rest_evicted_by is not None
    assert report.rest_evicted_by.starving_kind in ("full", "window")
    assert report.rest_evicted_by.cause.endswith(("started", "ran", "decoded", "for room"))


@pytest.fixture
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY):
        yield


def test_a_state_that_nobody_left_cuts_a_hit_back_to_the_last_one(snapshots: None) -> None:
    m = StateMachine(state_kinds(), large_pages=300)
    serve(m, PROMPT)
    branch = 5 * GRID_TOKENS + 3
    report = serve(m, [*PROMPT[:branch], 1, 2, 3])
    assert report.full_only_tokens == branch and report.cut_by == "state"
    assert report.hit_tokens == report.tokens_by_kind["state"] == 0
    assert report.missing_token == branch - 1 and report.evicted_by is None


def test_with_two_kinds_that_cut_the_one_that_allows_less_is_named(snapshots: None) -> None:
    kinds = state_kinds(window_layers=2, policy=Window(window_tokens=12))
    m = StateMachine(kinds, large_pages=600)
    serve(m, PROMPT)
    report = serve(m, [*PROMPT[:60], 1, 2, 3])
    assert set(report.tokens_by_kind) == {"window", "state"}
    assert report.tokens_by_kind["window"] == 60 and report.cut_by == "state"


def test_images_that_are_not_all_cached_cut_the_whole_hit() -> None:
    m = ImageMachine(large_pages=2000)
    serve(m, [*picture(1), *range(300, 320)])
    same = serve(m, [*picture(1), *range(300, 320), 7])
    assert same.cut_by is None and same.hit_tokens == same.full_only_tokens > 20
    report = serve(m, [*picture(1, 2), *range(300, 320)])
    assert report.cut_by == "cross" and report.hit_tokens == 0
    assert report.full_only_tokens == report.missing_token == len(picture(1))


@pytest.mark.parametrize("page_tokens", [1, 4])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_reports_of_a_long_churn_agree_with_the_hits_and_add_up(
    policy: TokenPolicy, page_tokens: int
) -> None:
    m = machine(policy, page_tokens=page_tokens, large_pages=500 // page_tokens, chunk_tokens=32)
    rng = random.Random(3)
    roots = [[rng.randrange(1000) for _ in range(60)] for _ in range(3)]
    reports, hits = [], []
    for _ in range(80):
        prompt = rng.choice(roots)[: rng.randrange(1, 60)]
        prompt = prompt + [rng.randrange(1000) for _ in range(rng.randrange(1, 30))]
        m.arena.reclaim(m.tree, m.arena.demand_of(-(-100 // page_tokens)), cause="a test asked")
        hits.append(m.hit(prompt[:-1]))
        reports.append(serve(m, prompt, chunk=32))
    assert [report.hit_tokens for report in reports] == hits
    for report in reports:
        allowed = report.tokens_by_kind["window"]
        assert report.hit_tokens == allowed <= report.full_only_tokens
        assert (report.cut_by is None) == (allowed == report.full_only_tokens)
        assert (report.missing_token is None) == (report.cut_by is None)
        if report.missing_token is not None:
            needed = policy.needed(report.full_only_tokens)
            assert any(report.missing_token in part for part in needed)
    log = m.tree.hits
    assert log.requests == 80 and log.hit_tokens == sum(hits)
    assert log.full_only_tokens - log.hit_tokens == sum(log.cut_tokens.values())
    assert any(report.cut_by for report in reports) and any(hits)


def test_a_retracted_request_is_counted_once() -> None:
    m = machine()
    req = m.prefill(PROMPT)
    m.retract(req)
    m.admit(req)
    m.extend([req])
    m.end_prefill(req)
    assert m.tree.hits.requests == 1
    m.finish(req)


def test_the_log_keeps_the_last_requests_only() -> None:
    m = machine()
    for _ in range(KEPT_REPORTS + 5):
        serve(m, PROMPT)
    assert m.tree.hits.requests == KEPT_REPORTS + 5
    assert len(m.tree.hits.as_dict()["reports"]) == KEPT_REPORTS


def test_ids_are_neither_kept_nor_told_to_others_however_long_they_are() -> None:
    """Reports are read by whoever may read ``/server_info``; a cause names another's request."""
    m = machine(large_pages=330)
    secret = "\x1b]0;secret\x07" + "x" * 2_000_000
    m._names = (f"{secret}{index}" for index in range(100))  # type: ignore[assignment]
    for start in range(0, 800, 100):
        serve(m, list(range(start, start + 90)), chunk=32)
    report = serve(m, list(range(0, 90)))
    assert report.rid == request_digest(f"r{secret}8")
    assert report.rest_evicted_by is not None
    told = json.dumps(m.tree.hits.as_dict())
    assert len(m.tree.hits.as_dict()["reports"]) == 9
    assert len(told) < 9 * 1000 and "secret" not in told and "\\u001b" not in told
    assert m.arena.candidate == report.rid, "what causes are made of"
