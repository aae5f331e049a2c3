# SPDX-License-Identifier: Apache-2.0
"""Both engines agree on a trace of lengths: the core alone, and a server without prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict

import pytest

from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.policies import Window
from sglang_jenga.simulate.model import as_served, kinds_of
from sglang_jenga.simulate.replay import Options, replay
from sglang_jenga.simulate.report import Report
from sglang_jenga.simulate.traces import Trace, TraceRequest

MIB = 2**20


def plain_trace(seed: int, number: int = 150) -> Trace:
    """Lengths only, with prompts longer than a chunk and answers that outgrow the arena."""
    draw = random.Random(seed)
    requests = [
        TraceRequest(
            prompt_tokens=int(draw.lognormvariate(6.5, 1.2)) % 9000 + 1,
            output_tokens=draw.choice((1, 2, 40, 300, draw.randrange(1, 900))),
        )
        for _ in range(number)
    ]
    return Trace(format="azure", requests=tuple(requests))


def both(kinds: tuple[KindSpec, ...], trace: Trace, options: Options) -> tuple[Report, Report]:
    reports = [
        replay(kinds, trace, options, engine=engine, model="m", source="t")
        for engine in ("plain", "server")
    ]
    return reports[0], reports[1]


def figures(report: Report) -> dict[str, object]:
    """All that does not depend on the clock."""
    totals = {name: value for name, value in asdict(report.totals).items() if name != "seconds"}
    return {**totals, "waits": report.waits, "timeline": report.timeline.points}


@pytest.mark.parametrize(
    ("model", "kv_bytes", "page_tokens", "chunk_tokens", "image_tokens"),
    [
        ("llama31-8b", 2200 * MIB, 1, 4096, 0),
        ("gemma3-27b", 1200 * MIB, 1, 2048, 0),
        ("gemma3-27b", 2500 * MIB, 16, 8192, 0),
        ("gpt-oss-20b", 500 * MIB, 1, 8192, 0),
        ("llama4-scout", 3000 * MIB, 8, 4096, 0),
        ("qwen3-next-80b", 1200 * MIB, 1, 4096, 0),
        ("jamba-v0.1", 600 * MIB, 16, 4096, 0),
        ("llama32-11b-vision", 2500 * MIB, 1, 8192, 1601),
    ],
)
def test_the_plain_engine_is_a_server_without_prefix_cache_step_for_step(
    model: str, kv_bytes: int, page_tokens: int, chunk_tokens: int, image_tokens: int
) -> None:
    options = Options(
        kv_bytes=kv_bytes,
        page_tokens=page_tokens,
        chunk_tokens=chunk_tokens,
        image_tokens=image_tokens,
        max_running=64,
        prefix_cache=False,
    )
    plain, server = both(kinds_of(model), plain_trace(len(model)), options)
    assert figures(plain) == figures(server)
    assert plain.delayed == server.delayed
    assert plain.totals.finished == plain.setup.requests


def test_the_comparison_is_made_under_pressure() -> None:
    model = "jamba-v0.1"
    options = Options(kv_bytes=600 * MIB, page_tokens=16, chunk_tokens=4096, max_running=64)
    report = replay(
        kinds_of(model), plain_trace(len(model)), options, engine="plain", model="m", source="t"
    )
    assert report.totals.preemptions > 0 and min(report.waits.values()) > 0


@pytest.mark.parametrize("sort", [lambda kinds: kinds, lambda kinds: kinds[::-1]])
def test_a_policy_with_a_head_is_replayed_alike(
    sort: Callable[[tuple[KindSpec, ...]], tuple[KindSpec, ...]],
) -> None:
    from dataclasses import replace

    from sink_window.policy import SinkWindow

    full, window = kinds_of("gpt-oss-20b")
    assert isinstance(window.policy, Window)
    sink = replace(window, policy=SinkWindow(window_tokens=128, sink_tokens=20))
    options = Options(kv_bytes=500 * MIB, page_tokens=8, max_running=64, prefix_cache=False)
    plain, server = both(as_served(sort((full, sink))), plain_trace(3, 80), options)
    assert figures(plain) == figures(server)
