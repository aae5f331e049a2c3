# SPDX-License-Identifier: Apache-2.0
"""The simulator and the judge's own loop say the same of the same server.

tests/data/judge_rows.json is what the judge measured (benchmark/simulate/record.py, with the
command of each row); the judge is not needed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.core.catalog import model_kinds
from sglang_jenga.simulate.model import as_served
from sglang_jenga.simulate.replay import Options, replay
from sglang_jenga.simulate.report import Report
from sglang_jenga.simulate.traces import read_trace

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = {
    "mooncake_conv": "mooncake_conversation_trace.jsonl",
    "azure_code": "azure_llm_2023_code.csv",
}
ROWS = json.loads((DATA / "judge_rows.json").read_text(encoding="utf-8"))
#: What the plain engine may differ by: a cache keeps prompts of requests that have finished, and a
#: running one pins its prompt's window for a while longer.
PLAIN_TOLERANCE = 0.02


def name(row: dict[str, Any]) -> str:
    return f"{row['model']}-{row['stream']}"


def replayed(row: dict[str, Any], engine: Any) -> Report:
    options = Options(kv_bytes=row["arena_bytes"], context_tokens=row["longest_request_tokens"])
    trace = read_trace(DATA / "traces" / FILES[row["stream"]])
    kinds = as_served(model_kinds(row["model"]))  # the judge's windows are those of the papers
    return replay(kinds, trace, options, engine=engine, model=row["model"], source="a test")


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_server_engine_takes_the_steps_and_hits_the_tokens_that_the_judge_measured(
    row: dict[str, Any],
) -> None:
    report = replayed(row, "server")
    totals = report.totals
    assert report.plan.arena_bytes == row["arena_bytes"]
    found = {
        "requests": report.setup.requests,
        "steps": totals.steps,
        "hit_tokens": totals.hit_tokens,
        "full_only_tokens": report.hits.full_only_tokens,
        "cut_tokens": dict(report.hits.cut_tokens),
        "preemptions": totals.preemptions,
        "recomputed_tokens": totals.recomputed_tokens,
        "prefill_tokens": totals.prefill_tokens,
        "decode_tokens": totals.decode_tokens,
        "peak_running": totals.peak_running,
        "mean_running": round(report.mean_running, 2),
    }
    assert found == {field: row[field] for field in found}


@pytest.mark.parametrize("row", [r for r in ROWS if r["stream"] == "azure_code"], ids=name)
def test_the_plain_engine_is_within_two_percent_of_the_judge_where_nothing_is_shared(
    row: dict[str, Any],
) -> None:
    report = replayed(row, "plain")
    assert report.totals.steps == pytest.approx(row["steps"], rel=PLAIN_TOLERANCE)
    assert report.totals.prefill_tokens == pytest.approx(row["prefill_tokens"], rel=PLAIN_TOLERANCE)
    assert report.setup.requests == row["requests"]


def test_the_rows_hold_what_the_claims_are_about() -> None:
    """Pressure, hits that a kind cut, preemptions: or the comparison would prove little."""
    assert {row["stream"] for row in ROWS} == set(FILES)
    assert any(row["preemptions"] for row in ROWS)
    assert any(tokens for row in ROWS for tokens in row["cut_tokens"].values())
    assert all(row["mean_running"] < row["requests"] / 4 for row in ROWS)
