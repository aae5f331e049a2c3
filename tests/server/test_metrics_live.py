# SPDX-License-Identifier: Apache-2.0
"""A real server under pressure: ``/metrics`` keeps its equations and equals ``/server_info``."""

from __future__ import annotations

import json
import re
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from server import prompts
from server.client import Client
from server.launch import RunningServer
from server.pool import ServerPool, group_of

PREFIX = "sglang:jenga_"
SAMPLE = re.compile(r"(sglang:\w+)(?:{(.*)})? (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')
#: Labels that SGLang's scheduler metrics carry.
SHARED = {"model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"}

TIGHT = pytest.mark.xdist_group(group_of("gemma3", "tight"))

Scrape = dict[str, dict[tuple[str, ...], float]]


@pytest.fixture
def server(pool: ServerPool) -> RunningServer:
    return pool.get("gemma3", "tight").server


def text(server: RunningServer) -> str:
    return requests.get(f"{server.url}/metrics", timeout=30).text


def scrape(server: RunningServer) -> Scrape:
    """Values by metric and by the values of its own labels."""
    found: Scrape = {}
    for line in text(server).splitlines():
        sample = SAMPLE.match(line)
        if sample is None:
            continue
        labels = dict(LABEL.findall(sample[2] or ""))
        own = tuple(value for name, value in labels.items() if name not in SHARED)
        if sample[1].startswith(PREFIX):
            assert set(labels) >= SHARED, line
            found.setdefault(sample[1].removeprefix(PREFIX), {})[own] = float(sample[3])
        else:
            found.setdefault(sample[1], {})[own] = float(sample[3])
    return found


def equations(found: Scrape) -> None:
    """What holds between the metrics of one moment. (A scrape may catch the server while it
    writes, so callers hold it idle.)"""
    large_page = found["large_page_bytes"][()]
    pages, amounts = found["large_pages"], found["bytes"]
    assert sum(amounts.values()) + large_page == found["arena_bytes"][()]
    assert (1 + sum(pages.values())) * large_page == found["arena_bytes"][()]
    for kind in {kind for kind, _ in pages} - {"none"}:
        parts = [n for (owner, _), n in amounts.items() if owner == kind]
        assert len(parts) == 5 and sum(parts) == pages[kind, "owned"] * large_page
    cut = sum(found["cut_tokens_total"].values())
    assert found["full_only_tokens_total"][()] - found["hit_tokens_total"][()] == cut


def settled(server: RunningServer) -> tuple[Scrape, dict[str, Any]]:
    """A scrape and a snapshot of the server when it is idle and has published."""
    client = Client(server.url)
    deadline = time.monotonic() + 300  # a busy machine takes seconds for each look
    while True:
        before = client.arena()
        time.sleep(0.2)  # it answers first, then notices that it is idle
        found, after = scrape(server), client.arena()
        idle = not before["running_requests"] and not before["waiting_requests"]
        free = before["large_pages_free"]
        if idle and before == after and found["large_pages"]["none", "free"] == free:
            return found, before
        assert time.monotonic() < deadline, (found["large_pages"], before["large_pages_free"])


def retract_somebody(client: Client) -> None:
    """One body with many prompts that grow together past the arena: they start at once, however
    slowly the machine sends requests. Each is admitted for a part of its answer."""
    many = {
        "input_ids": [list(prompts.words(9000 + i, 20)) for i in range(24)],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 200, "ignore_eos": True},
    }
    for _ in range(5):
        client.post("/generate", many)
        if client.arena()["retractions"]:
            return


@pytest.mark.server
@TIGHT
@pytest.mark.fresh_server
def test_metrics_are_there_before_the_first_request(server: RunningServer) -> None:
    found, info = settled(server)
    equations(found)
    assert found["arena_bytes"][()] == info["arena_bytes"]
    assert found["waits_total"] == {("full",): 0, ("window",): 0}


@pytest.mark.server
@TIGHT
def test_metrics_of_a_loaded_server_only_grow_and_equal_server_info_once_idle(
    server: RunningServer,
) -> None:
    client = Client(server.url)
    scrapes: list[Scrape] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            scrapes.append(scrape(server))
            done.wait(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.map(client.generate, prompts.GROWING, concurrency=16)
        client.map(client.generate, prompts.MIXED, concurrency=32)
        retract_somebody(client)
    finally:
        done.set()
        watcher.join()
    found, info = settled(server)
    scrapes.append(found)
    assert len(scrapes) > 5
    counters = [name for name in found if name.endswith("_total") and f"{PREFIX}{name}" in OURS]
    assert len(counters) == len([name for name in OURS if name.endswith("_total")]) - 1
    for before, after in pairwise(scrapes):
        for name in counters:
            for labels, value in before[name].items():
                assert after[name][labels] >= value, f"{name}{labels} fell"
    assert any(sum(s["bytes"][k, "held"] for k in ("full", "window")) for s in scrapes[:-1])

    equations(found)
    for kind in info["kinds"]:
        assert found["large_pages"][kind["name"], "owned"] == kind["large_pages"]
        for state in ("held", "sessions", "cached", "reserved", "free"):
            amount = kind[f"slots_{state}"] * kind["slot_bytes"]
            assert found["bytes"][kind["name"], state] == amount
    by_kind = {
        "waits_total": info["waits"],
        "delayed_requests_total": info["delayed_requests"],
        "retracted_requests_total": info["retractions_by_kind"],
        "evicted_slots_total": info["evicted_slots"],
        "cut_tokens_total": info["hits"]["cut_tokens"],
    }
    for name, expected in by_kind.items():
        assert found[name] == {(kind,): number for kind, number in expected.items()}, name
    for name in ("prompt_tokens", "hit_tokens", "full_only_tokens"):
        assert found[f"{name}_total"][()] == info["hits"][name]
    assert found["started_requests_total"][()] == info["hits"]["requests"]
    assert found["realised_running_cap"][()] == info["realised_running_cap"] > 1
    assert found["max_running_requests"][()] == info["max_running_requests"]
    assert sum(info["waits"].values()) > 0 and sum(info["evicted_slots"].values()) > 0
    assert info["retractions"] == sum(info["retractions_by_kind"].values()) > 0


@pytest.mark.server
@TIGHT
def test_sglangs_own_gauges_agree_with_the_arena(server: RunningServer) -> None:
    """After the load above. SGLang publishes its own when a server goes idle, then each 30 s."""
    found, info = settled(server)
    assert sum(found["sglang:num_retracted_requests_total"].values()) == info["retractions"]
    assert sum(found["sglang:evicted_tokens_total"].values()) == info["evicted_slots"]["full"]
    (kept,) = found["sglang:kv_cache_memory_usage_gb"].values()
    assert kept == pytest.approx(info["arena_bytes"] / 2**30, rel=1e-5)
    log = server.log_since()
    usages = [
        tuple(map(float, line))
        for line in re.findall(
            r"full token usage: ([\d.]+).*swa token usage: ([\d.]+), arena usage: ([\d.]+)", log
        )
    ]
    assert len(usages) > 10 and max(usage for *_, usage in usages) > 0.6, "the arena was full once"
    for full, window, arena in usages:
        assert arena == pytest.approx(full + window, abs=0.011) and arena <= 1
    assert re.search(r"Jenga: \d+ requests? retracted, starving kind: \w+ \(", log)
    assert "Jenga: a request waits for memory, starving kind: " in log
    assert not server.trouble_since()


@pytest.mark.server
@TIGHT
def test_a_flush_is_seen_at_once(server: RunningServer) -> None:
    assert Client(server.url).flush(wait_seconds=20)
    found, info = settled(server)
    equations(found)
    assert found["large_pages"]["none", "free"] == info["large_pages_total"]


@pytest.mark.server
@TIGHT
def test_every_metric_of_the_dashboard_is_live(
    server: RunningServer, pytestconfig: pytest.Config
) -> None:
    dashboard = json.loads((pytestconfig.rootpath / DASHBOARD).read_text(encoding="utf-8"))
    expressions = " ".join(
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    )
    shown = set(re.findall(r"sglang:\w+", expressions))
    live = set(re.findall(r"^(sglang:\w+)[ {]", text(server), re.MULTILINE))
    # This model has no images: the one metric that has no series.
    assert shown - live == {f"{PREFIX}embeddings_total"}
    ours = {name for name in live if name.startswith(PREFIX)}
    assert ours == OURS - {f"{PREFIX}embeddings_total"}


DASHBOARD = Path("dashboards/grafana/sglang-jenga.json")


def _names() -> set[str]:
    from sglang_jenga.sglang_ext.metric_table import METRICS

    return {metric.name for metric in METRICS}


OURS = _names()


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        pytest.param(name, kinds, marks=pytest.mark.xdist_group(group_of(name, "tight")))
        for name, kinds in (
            ("granite_hybrid", {"full", "state"}),
            ("mllama", {"full", "cross"}),
        )
    ],
)
def test_other_kinds_have_the_same_metrics(name: str, kinds: set[str], pool: ServerPool) -> None:
    server = pool.get(name, "tight").server
    client = Client(server.url)
    before = client.arena()["hits"]["requests"]
    client.map(client.generate, prompts.MIXED[:16], concurrency=8)
    found, info = settled(server)
    equations(found)
    assert {kind for kind, _ in found["large_pages"]} == kinds | {"none"}
    assert set(info["waits"]) == kinds and set(info["evicted_slots"]) == kinds
    assert found["started_requests_total"][()] == info["hits"]["requests"] >= before + 16
    assert found["bytes"]["full", "cached"] > 0
    usages = re.findall(r"arena usage: ([\d.]+)", server.log_since())
    assert usages and max(map(float, usages)) > 0
    assert not server.trouble_since()
