# SPDX-License-Identifier: Apache-2.0
"""The metrics of the arena are what the arena is, and only they change."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from image_machine import ImageMachine, picture
from lives import live
from machine import Machine, make_kinds
from no_sync import DEVICE, no_device_sync
from scheduler import Loop
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext import metrics, plugin
from sglang_jenga.sglang_ext.metric_table import COUNTER, GAUGE, METRICS, PREFIX
from sglang_jenga.sglang_ext.metrics import Publisher
from sglang_jenga.sglang_ext.report import SCHEMA, counts, snapshot
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds
from test_embeddings import EMBEDDING, IMAGE_TOKENS, rows
from test_pool_stats import gauges

LABELS = {"model_name": "tiny", "engine_type": "unified", "tp_rank": 0}
SCHEDULER = SimpleNamespace(waiting_queue=["a", "b"], max_running_requests=7)


def windowed(**kwargs: Any) -> Machine:
    kinds = make_kinds(window_layers=5, policy=Window(window_tokens=24))
    return Machine(kinds, **{"large_pages": 400, "chunk_tokens": 32, **kwargs})


def one_kind() -> Machine:
    return Machine(make_kinds(), large_pages=400)


class Scrape:
    """A publisher of a machine's metrics and what a scrape of its registry reads."""

    def __init__(self, machine: Machine) -> None:
        self.registry = CollectorRegistry()
        self.publisher = Publisher(
            machine.arena, machine.tree, SCHEDULER, LABELS, registry=self.registry
        )

    def __call__(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Values by metric, without prefix, and by its own labels."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                own = tuple(v for k, v in sample.labels.items() if k not in LABELS)
                found.setdefault(sample.name.removeprefix(PREFIX), {})[own] = sample.value
        return found


def serve(m: Machine, prompt: list[int]) -> None:
    req = m.prefill(prompt, chunk=32)
    for _ in range(4):
        m.decode([req])
    m.finish(req)


def equations(m: Machine, scraped: dict[str, dict[tuple[str, ...], float]]) -> None:
    """What must hold between the metrics of any one moment."""
    large_page = scraped["large_page_bytes"][()]
    pages, amounts = scraped["large_pages"], scraped["bytes"]
    assert sum(pages.values()) == m.plan.usable_large_pages
    assert sum(amounts.values()) + large_page == scraped["arena_bytes"][()] == m.plan.arena_bytes
    for kind in m.plan.kinds:
        name = kind.spec.name
        states = {state: n for (owner, state), n in amounts.items() if owner == name}
        assert set(states) == {"held", "sessions", "cached", "reserved", "free"}
        assert min(states.values()) >= 0
        assert sum(states.values()) == pages[name, "owned"] * large_page
        wasted = scraped["waste_bytes"][name, "partial_page"]
        assert wasted == states["reserved"] + states["free"]
    cut = sum(scraped["cut_tokens_total"].values())
    assert scraped["full_only_tokens_total"][()] - scraped["hit_tokens_total"][()] == cut


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_metrics_obey_their_equations_and_counters_only_grow_through_a_long_churn(
    page_tokens: int,
) -> None:
    m = windowed(page_tokens=page_tokens, large_pages=600 // page_tokens)
    scrape = Scrape(m)
    loop = Loop(machine=m, new_token_ratio=0.05)
    rng = random.Random(5)
    for i in range(60):
        shared = list(range(100 * (i % 3), 100 * (i % 3) + rng.randrange(1, 60)))
        prompt = shared + [rng.randrange(1000) for _ in range(rng.randrange(1, 30))]
        assert loop.submit(m.request(prompt, max_new=rng.randrange(1, 40)))
    before: dict[str, Any] = {}
    while loop.waiting or loop.running or loop.chunked:
        loop.step()
        scrape.publisher.publish()
        scraped = scrape()
        equations(m, scraped)
        for metric in METRICS:
            if metric.type == COUNTER:
                name = metric.name.removeprefix(PREFIX)
                for labels, value in before.get(name, {}).items():
                    assert scraped[name][labels] >= value, f"{name}{labels} fell"
        before = scraped
    assert sum(before["waits_total"].values()) > 0, "nobody waited: the arena is not tight"
    assert sum(before["evicted_slots_total"].values()) > 0 and before["hit_tokens_total"][()] > 0
    assert sum(before["retracted_requests_total"].values()) == loop.retractions > 0
    assert before["realised_running_cap"][()] > 1
    held = [n for (_, state), n in before["bytes"].items() if state in ("held", "reserved")]
    assert not any(held), "idle, and bytes are held"


def test_a_scrape_equals_server_info() -> None:
    m = windowed()
    scrape = Scrape(m)
    serve(m, list(range(80)))
    serve(m, [*range(50), 1, 2, 3])
    scrape.publisher.publish()
    scraped, info = scrape(), snapshot(m.arena, m.tree, SCHEDULER)
    assert info["schema"] == SCHEMA == 3
    for kind in info["kinds"]:
        for state in ("held", "sessions", "cached", "reserved", "free"):
            in_bytes = kind[f"slots_{state}"] * kind["slot_bytes"]
            assert scraped["bytes"][kind["name"], state] == in_bytes
    assert scraped["large_pages"]["none", "free"] == info["large_pages_free"]
    by_reason = {
        reason: sum(n for (_, why), n in scraped["waste_bytes"].items() if why == reason)
        for reason in ("padding", "partial_page")
    }
    assert info["waste"] == {f"{reason}_bytes": n for reason, n in by_reason.items()}
    assert scraped["hit_tokens_total"][()] == info["hits"]["hit_tokens"] > 0
    assert scraped["prompt_tokens_total"][()] == info["hits"]["prompt_tokens"]
    assert scraped["longest_request_tokens"][()] == info["longest_request_tokens"]
    assert scraped["max_running_requests"][()] == info["max_running_requests"] == 7
    assert info["waiting_requests"] == 2 and info["running_requests"] == 0
    assert info["waits"] == {"full": 0, "window": 0} and info["retractions"] == 0


def test_server_info_keeps_the_keys_of_schema_1_and_its_reports() -> None:
    m = windowed()
    serve(m, list(range(80)))
    info = snapshot(m.arena, m.tree)
    old = {
        *("arena_bytes", "large_page_bytes", "large_pages_total", "large_pages_free", "geometry"),
        *("longest_request_tokens", "kinds", "encoder", "hits", "evicted_tokens"),
    }
    assert old <= set(info) and len(info["hits"]["reports"]) == 1
    assert set(info["evicted_tokens"]) == {"full", "swa"}
    assert info["waiting_requests"] is info["max_running_requests"] is None


@pytest.mark.parametrize("kinds", ["window", "cross"])
def test_every_metric_has_a_series_from_the_start_so_that_rates_begin_at_zero(kinds: str) -> None:
    scrape = Scrape(ImageMachine(large_pages=600) if kinds == "cross" else windowed())
    scrape.publisher.publish()
    scraped = scrape()
    for metric in METRICS:
        name = metric.name.removeprefix(PREFIX)
        if name == "embeddings_total":
            assert name not in scraped, "this model has no vision kind"
        else:
            assert scraped[name], metric.name
        if metric.type == COUNTER:
            assert not any(scraped.get(name, {}).values())


def test_names_and_labels_follow_prometheus_and_sglang() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("sglang:jenga_") and metric.meaning.endswith(".")
        assert metric.name.endswith("_total") == (metric.type == COUNTER)
        assert metric.type in (GAUGE, COUNTER)
        assert set(metric.labels) <= {"kind", "state", "reason", "result"}


def test_every_series_carries_the_labels_of_sglangs_own() -> None:
    scrape = Scrape(windowed())
    scrape.publisher.publish()
    for family in scrape.registry.collect():
        for sample in family.samples:
            assert {k: sample.labels[k] for k in LABELS} == {k: str(v) for k, v in LABELS.items()}


def test_evictions_are_counted_by_the_plans_names_whoever_asked() -> None:
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    m = windowed()
    for start in range(0, 300, 100):
        serve(m, list(range(start, start + 90)))
    m.tree.evict_until(lambda: m.tree_tokens(0) < 200)
    ours = m.tree.evicted_slots_by_kind()
    assert set(ours) == {"full", "window"} and min(ours.values()) > 0
    m.tree.evict(EvictParams(num_tokens=20))  # SGLang's own way
    assert m.tree.evicted_slots_by_kind()["full"] >= ours["full"] + 20


def test_slots_evicted_are_those_that_left_the_cache() -> None:
    """Nothing runs: what each kind had, less what it has now, is what was counted."""
    for m in (windowed(), ImageMachine(large_pages=2000)):
        prompts = [[*range(s, s + 90)] for s in range(300, 600, 100)]
        if isinstance(m, ImageMachine):
            prompts = [[*picture(s), *prompts[s][:20]] for s in range(3)]
        for prompt in prompts:
            serve(m, prompt)
        cached = {k.spec.name: m.tree_tokens(i) for i, k in enumerate(m.plan.kinds)}
        before = m.tree.evicted_slots_by_kind()
        m.tree.evict_until(lambda m=m: m.tree_tokens(0) == 0)
        after = m.tree.evicted_slots_by_kind()
        for i, kind in enumerate(m.plan.kinds):
            name = kind.spec.name
            assert after[name] - before[name] == cached[name] - m.tree_tokens(i), name
        assert sum(after.values()) > 0


def test_states_are_counted_as_states() -> None:
    with caching_strategy(LAZY):
        m = StateMachine(state_kinds(), large_pages=300)
        scrape = Scrape(m)
        serve(m, list(range(100)))
        cached = m.tree.evictable_slots(m.arena.state_kind)
        m.tree.evict_until(lambda: m.tree_tokens(0) == 0)
        scrape.publisher.publish()
        scraped = scrape()
        equations(m, scraped)
        assert scraped["evicted_slots_total"]["state",] == cached > 0
        assert scraped["cut_tokens_total"] == {("state",): 0}


def test_a_flushed_cache_keeps_its_counters() -> None:
    m = windowed()
    scrape = Scrape(m)
    serve(m, list(range(90)))
    serve(m, list(range(95)))
    scrape.publisher.publish()
    before = scrape()
    m.flush()
    scrape.publisher.publish_if_stale()
    after = scrape()
    assert after["hit_tokens_total"] == before["hit_tokens_total"] != {(): 0}
    assert after["large_pages"]["none", "free"] == m.plan.usable_large_pages


# ---- when they are published -------------------------------------------------------------------


def test_an_idle_server_publishes_once_after_a_change_and_then_rests() -> None:
    m = windowed()
    scrape = Scrape(m)
    calls: list[None] = []
    scrape.publisher.publish = calls_of(scrape.publisher.publish, calls)  # type: ignore[method-assign]
    for _ in range(5):
        scrape.publisher.publish_if_stale()
    assert len(calls) == 1
    serve(m, list(range(90)))
    for _ in range(5):
        scrape.publisher.publish_if_stale()
    assert len(calls) == 2


def calls_of(function: Any, calls: list[None]) -> Any:
    def counted() -> None:
        calls.append(None)
        function()

    return counted


def test_publishing_happens_where_sglang_logs_and_not_in_a_step() -> None:
    """The hooks reach the publisher of the collector at hand; a collector without one is left."""
    published: list[str] = []
    publisher = SimpleNamespace(
        publish=lambda: published.append("log"), publish_if_stale=lambda: published.append("idle")
    )
    collector = SimpleNamespace(jenga_metrics=publisher)
    plugin._log_stats(None, collector, object())
    plugin._log_idle_metrics(None, SimpleNamespace(metrics_collector=collector))
    assert published == ["log", "idle"]
    plugin._log_stats(None, SimpleNamespace(), object())
    plugin._log_idle_metrics(None, SimpleNamespace(metrics_collector=None))


def test_without_metrics_or_on_a_silent_rank_nothing_is_registered() -> None:
    m = windowed()
    scheduler = SimpleNamespace(token_to_kv_pool_allocator=m.arena, tree_cache=m.tree)
    for collector, enabled in ((None, False), (SimpleNamespace(labels=LABELS), False)):
        context = SimpleNamespace(collector=collector, current_scheduler_metrics_enabled=enabled)
        metrics.attach(scheduler, context)
        assert not hasattr(collector, "jenga_metrics")


def test_a_collector_that_writes_elsewhere_gets_ours_in_its_own_classes() -> None:
    """As SGLang's Ray collectors do: they name classes that look like prometheus_client's."""
    made: list[tuple[str, str]] = []

    def factory(type_name: str) -> Any:
        def make(name: str, meaning: str, labels: list[str], **kwargs: Any) -> Any:
            made.append((type_name, name))
            series = SimpleNamespace(set=lambda n: None, inc=lambda n: None)
            return SimpleNamespace(labels=lambda **values: series)

        return make

    m = windowed()
    scheduler = SimpleNamespace(
        token_to_kv_pool_allocator=m.arena,
        tree_cache=m.tree,
        waiting_queue=[],
        max_running_requests=3,
    )
    collector = SimpleNamespace(
        labels=LABELS, _gauge_cls=factory(GAUGE), _counter_cls=factory(COUNTER)
    )
    context = SimpleNamespace(collector=collector, current_scheduler_metrics_enabled=True)
    metrics.attach(scheduler, context)
    assert made == [(metric.type, metric.name) for metric in METRICS]


def test_other_allocators_get_no_metrics_and_keep_sglangs_pool_statistics() -> None:
    other = SimpleNamespace(token_to_kv_pool_allocator=object())
    assert plugin._init_reporter(None, SimpleNamespace(scheduler=other)) is None
    result = object()
    assert plugin._get_pool_stats(result, other) is result


def test_counts_need_no_reports_of_single_requests() -> None:
    m = one_kind()
    serve(m, list(range(40)))
    assert "reports" not in counts(m.arena, m.tree, longest_tokens=1)["hits"]


def test_taking_metrics_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ours nor SGLang's statistics of the pools, which the same seam corrects."""
    monkeypatch.setattr(torch, DEVICE, torch.cpu, raising=False)
    m = windowed(device=DEVICE, large_pages=600)
    scrape = Scrape(m)
    with no_device_sync():
        for _ in live(m, decode_tokens=40):
            scrape.publisher.publish()
            gauges(m)
    equations(m, scrape())


def test_embeddings_of_images_have_their_bytes_and_their_counters() -> None:
    kinds = make_kinds(window_layers=5, policy=Window(window_tokens=24), embedding=EMBEDDING)
    m = Machine(kinds, large_pages=400, chunk_tokens=32)
    scrape = Scrape(m)
    assert m.arena.embeddings is not None
    assert m.arena.embeddings.set(1, rows(1))
    for _ in range(3):  # the first is the use that it was encoded for
        assert m.arena.embeddings.get_single(1) is not None
    scrape.publisher.publish()
    kept = scrape()
    equations(m, kept)
    slots = IMAGE_TOKENS * m.plan.kinds[m.arena.vision_kind].slot_bytes
    assert kept["bytes"]["vision", "cached"] == slots
    assert kept["embeddings_total"] == {("encoded",): 1, ("reused",): 2}
    assert m.arena.embeddings.evict()
    scrape.publisher.publish()
    gone = scrape()
    assert gone["evicted_slots_total"]["vision",] == IMAGE_TOKENS
    assert gone["bytes"]["vision", "cached"] == 0


def test_padding_and_partly_filled_large_pages_are_told_apart() -> None:
    heads = {"full_heads": (1, 127, 127), "window_heads": (1, 1031, 1031)}  # no small common size
    kinds = make_kinds(window_layers=5, policy=Window(window_tokens=24), **heads)
    m = Machine(kinds, large_pages=100, chunk_tokens=32)
    assert all(kind.padding_bytes_per_slot for kind in m.plan.kinds)
    serve(m, list(range(40)))
    scrape = Scrape(m)
    scrape.publisher.publish()
    waste = scrape()["waste_bytes"]
    for index, kind in enumerate(m.plan.kinds):
        used = m.arena.used_slots(index)
        assert used > 0
        assert waste[kind.spec.name, "padding"] == used * kind.padding_bytes_per_slot
        census = m.arena.core.census()[index]
        whole = census.large_pages * m.plan.large_page_bytes
        assert waste[kind.spec.name, "partial_page"] == whole - used * kind.slot_bytes
