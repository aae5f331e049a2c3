# SPDX-License-Identifier: Apache-2.0
"""The loop, its report and the command, on the engine that needs neither torch nor SGLang."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.cli.__main__ import main
from sglang_jenga.cli.simulate import _Progress
from sglang_jenga.cli.simulate_text import report_lines
from sglang_jenga.cli.terminal import Screen
from sglang_jenga.core.catalog import CATALOG
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.simulate.engine import Request
from sglang_jenga.simulate.loop import Loop, Stuck, Totals
from sglang_jenga.simulate.model import as_served, kinds_of, window_of
from sglang_jenga.simulate.plain import PlainEngine
from sglang_jenga.simulate.replay import Options, engine_for, replay
from sglang_jenga.simulate.report import Report
from sglang_jenga.simulate.timeline import MAX_POINTS, Timeline
from sglang_jenga.simulate.traces import Trace, TraceRequest

AZURE = Path(__file__).resolve().parents[1] / "data" / "traces" / "azure_llm_2023_code.csv"
MOONCAKE = AZURE.with_name("mooncake_conversation_trace.jsonl")
MIB, GIB = 2**20, 2**30


def trace_of(*lengths: tuple[int, int]) -> Trace:
    requests = [TraceRequest(prompt_tokens=p, output_tokens=o) for p, o in lengths]
    return Trace(format="azure", requests=tuple(requests))


def run(trace: Trace, *, model: str = "llama31-8b", **options: Any) -> Report:
    given = {"kv_bytes": 4 * GIB, **options}
    return replay(
        kinds_of(model), trace, Options(**given), engine="plain", model=model, source="test"
    )


# ---- the loop ----------------------------------------------------------------------------------


def test_one_request_takes_a_step_per_chunk_and_a_step_per_further_token() -> None:
    totals = run(trace_of((10_000, 5)), chunk_tokens=4096).totals
    assert totals.steps == 3 + 4 and totals.chunks == 3
    assert totals.prefill_tokens == 10_000 and totals.decode_tokens == 4


def test_decodes_and_a_prompt_share_the_step_s_budget() -> None:
    # 100 tokens decode beside the second prompt for 3 steps: each of those has 99 left for it.
    totals = run(trace_of((50, 10), (250, 1)), chunk_tokens=100).totals
    assert totals.chunks == 1 + 4  # 50, then 50 + 99 + 99 + 2
    assert totals.steps == 10


def test_no_more_run_than_are_allowed() -> None:
    report = run(trace_of(*[(10, 10)] * 20), max_running=4)
    assert report.totals.peak_running == 4
    assert report.totals.steps == 5 * 10
    assert report.waits == {"full": 0}  # nobody lacked bytes


def test_memory_admits_in_order_and_every_refusal_names_its_kind() -> None:
    report = run(trace_of(*[(3000, 4)] * 10), kv_bytes=7000 * 131_072)
    assert report.totals.peak_running == 2
    # Two run, the third is refused in each of their steps; both places come free together.
    assert report.waits["full"] == 4 * 4 and report.delayed["full"] == 4


def test_the_newest_is_preempted_and_computes_its_answer_so_far_anew() -> None:
    report = run(trace_of((3000, 600), (3000, 600)), kv_bytes=6500 * 131_072)
    totals = report.totals
    assert totals.preemptions == 1 and totals.finished == 2
    # Its 3,000 and what it had answered; the first token after that is a prompt's, not a decode.
    assert totals.prefill_tokens == 6000 + totals.recomputed_tokens + 1
    assert totals.decode_tokens == 2 * 599 - 1


def test_a_newcomer_is_not_admitted_in_the_step_of_a_preemption() -> None:
    """Or it would take the bytes that the step has just made free."""
    report = run(trace_of((3000, 600), (3000, 600), (10, 5)), kv_bytes=6500 * 131_072)
    assert report.totals.preemptions == 1 and report.totals.finished == 3


class Scripted:
    """An engine without limits that notes the order of starts."""

    def __init__(self, admits: bool = True) -> None:
        self.started: list[int] = []
        self.admits = admits

    def check(self, request: Request, limit_tokens: int, hit_tokens: int) -> int:
        return limit_tokens if self.admits else 0

    def admit(self, request: Request, tokens: int, hit_tokens: int) -> None:
        self.started.append(request.index)

    def match(self, request: Request) -> int:
        return 0

    def decode(self, requests: Sequence[Request]) -> bool:
        return True

    def occupancy(self) -> tuple[()]:
        return ()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_turn_waits_for_the_answer_before_and_lets_others_pass() -> None:
    requests = [Request(0, 5, 4), Request(1, 9, 1, after=0), Request(2, 5, 1), Request(3, 5, 9)]
    engine = Scripted()
    Loop(engine, requests, token_budget=100, max_running=2).run()  # type: ignore[arg-type]
    assert engine.started == [0, 2, 3, 1]


def test_a_replay_in_which_nothing_can_run_ends_with_an_error() -> None:
    loop = Loop(Scripted(admits=False), [Request(0, 5, 4)], token_budget=9, max_running=2)  # type: ignore[arg-type]
    with pytest.raises(Stuck, match="nothing can run; 0 requests hold memory, 1 wait"):
        loop.run()


# ---- engine and report -------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(CATALOG))
def test_every_model_of_the_catalogue_drains_and_gives_all_back(model: str) -> None:
    lengths = [(1 + 97 * i % 2500, 1 + 13 * i % 60) for i in range(60)]
    report = run(trace_of(*lengths), model=model, kv_bytes=3 * GIB, chunk_tokens=2048)
    assert report.totals.finished == 60 == report.totals.starts - report.totals.preemptions
    assert {kind.spec.name for kind in report.plan.kinds} <= {"full", "window", "cross", "state"}


def test_bytes_of_every_point_stay_within_the_arena_and_name_what_is_held() -> None:
    report = run(trace_of(*[(2500, 30)] * 40), model="gemma3-27b", kv_bytes=2 * GIB)
    for point in report.timeline.points:
        total = sum(kind.held + kind.cached + kind.partial for kind in point.kinds)
        assert total <= report.plan.arena_bytes
        assert (point.kinds[0].held > 0) == (point.running > 0)
    full, window = (report.kind_facts(kind)["peak_held_bytes"] for kind in (0, 1))
    # A window keeps 1,024 tokens of 2,500 and more, in slots of five times the bytes.
    assert 0 < full < window


def test_padding_is_reported_where_a_slot_is_padded() -> None:
    plain = run(trace_of((3000, 5)), model="llama31-8b").as_dict()["result"]
    padded = run(trace_of((3000, 5)), model="falcon-h1-7b").as_dict()["result"]
    plan = plan_arena(kinds_of("falcon-h1-7b"), arena_bytes=4 * GIB)
    assert plain["padding_share"] == 0
    assert (padded["padding_share"] > 0) == (plan.padding_percent > 0)


def test_a_report_says_where_hits_are_too_low() -> None:
    report = run(trace_of((100, 5)), model="qwen3-next-80b", page_tokens=16)
    assert report.notes == []  # nothing is cached in this engine
    cached = replace(report, setup=replace(report.setup, prefix_cache=True))
    assert "not replayed" in cached.notes[0]
    assert any(line == f"note: {cached.notes[0]}" for line in report_lines(cached))
    assert cached.as_dict()["notes"] == cached.notes


def test_requests_that_no_arena_holds_are_left_out_and_counted() -> None:
    report = run(trace_of((100, 5), (100_000, 5)), kv_bytes=GIB)
    assert (report.setup.requests, report.setup.too_long) == (1, 1)
    with pytest.raises(ConfigError, match="give more bytes"):
        run(trace_of((100_000, 5)), kv_bytes=GIB)


def test_an_image_needs_layers_for_it() -> None:
    with pytest.raises(ConfigError, match="no layers for images"):
        run(trace_of((10, 5)), image_tokens=1601)
    held = run(trace_of((10, 5)), model="llama32-11b-vision", image_tokens=1601).kind_facts(1)
    assert held["peak_held_bytes"] == 1601 * held["slot_bytes"]


def test_a_timeline_keeps_few_points_at_equal_distances() -> None:
    timeline = Timeline()
    for step in range(1, 10_001):
        if timeline.is_due(step):
            timeline.add(step, 1, 0, ())
    steps = [point.step for point in timeline.points]
    assert MAX_POINTS // 2 <= len(steps) <= MAX_POINTS
    assert steps == [timeline.every * (i + 1) for i in range(len(steps))]
    assert steps[-1] > 10_000 - timeline.every


def test_kinds_get_a_servers_names_and_order() -> None:
    names = [kind.name for kind in as_served(reversed(kinds_of("llama4-scout")))]
    assert names == ["full", "window"]
    with pytest.raises(ConfigError, match="one full kind"):
        as_served(kinds_of("llama4-scout")[1:])


def test_the_plain_engine_reports_what_is_lost() -> None:
    """The check at the end of a replay can fail."""
    kinds = kinds_of("llama31-8b")
    plan = plan_arena(kinds, arena_bytes=GIB)
    engine = PlainEngine(
        plan,
        demand=DemandModel(plan=plan, window=window_of(kinds), chunk_tokens=64),
        max_running=2,
        longest_tokens=100,
    )
    assert engine.problems() == []
    engine.memory.core.extend([1], [[3]])
    assert engine.problems() == ["3 large pages are not free again"]


# ---- the command -------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["simulate", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_prints_a_report_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(
        capsys, "--model", "gemma3-27b", "--trace", AZURE, "--kv", "3GiB", "--limit", 60
    )
    assert status == 0 and err == ""
    assert "gemma3-27b on 3.00 GiB" in out and "60 requests (azure)" in out
    assert "steps to drain" in out and "refusals for want of bytes: window" in out


def test_a_terminal_gets_a_bar_in_place_that_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(Terminal())
    _Progress(screen)(Totals(finished=5, steps=1234, seconds=2.0), 10)
    shown = screen._out.getvalue()  # type: ignore[attr-defined]
    assert "###...  50 %  5 of 10 requests, 1,234 steps" in shown.replace("." * 12, "")
    assert "\n" not in shown
    screen.end_progress()
    assert screen._out.getvalue().endswith(" \r")  # type: ignore[attr-defined]


def test_json_has_a_schema_and_the_numbers_of_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "gpt-oss-20b", "--trace", AZURE, "--kv", "1GiB", "--limit", 60)
    status, out, _ = command(capsys, *words, "--format", "json")
    found = json.loads(out)
    assert status == 0 and found["schema"] == 1
    assert found["requests"] == 60 and found["engine"] == "plain"
    _, text, _ = command(capsys, *words)
    assert f"{found['result']['steps']:,}" in text
    assert [kind["name"] for kind in found["kinds"]] == ["full", "window"]
    assert found["timeline"][0]["kinds"][0].keys() == {"held", "cached", "partial", "padding"}


def test_skip_limit_and_repeat_choose_what_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "llama31-8b", "--trace", AZURE, "--format", "json")
    _, out, _ = command(capsys, *words, "--skip", 390, "--repeat", 3)
    assert json.loads(out)["requests"] == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trace", "nowhere.csv"), "nowhere.csv"),
        (("--trace", AZURE, "--kv", "1MiB"), "too small"),
        (("--trace", AZURE, "--model", "gemma3-28b"), "gemma3-27b"),
        (("--trace", MOONCAKE, "--engine", "plain", "--repeat", 2), "--repeat 2"),
        (("--trace", AZURE, "--timeline", "bytes.pdf"), "must end in .png or .svg"),
    ],
)
def test_errors_go_to_standard_error_with_status_1(
    capsys: pytest.CaptureFixture[str], words: tuple[object, ...], message: str
) -> None:
    status, out, err = command(capsys, "--model", "gemma3-27b", *words)
    assert status == 1 and out == ""
    assert err.startswith("sglang-jenga simulate: ") and message in err


@pytest.mark.parametrize("words", [("--limit", "0"), ("--skip", "-1"), ("--kv", "much")])
def test_options_that_make_no_sense_have_status_2(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--model", "gemma3-27b", "--trace", str(AZURE), *words])
    assert ended.value.code == 2


def test_a_trace_that_shares_text_asks_for_the_server_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = Trace(format="mooncake", requests=(), block_tokens=512)
    assert engine_for(shared, "auto") == "server"
    assert engine_for(shared, "plain") == engine_for(trace_of((1, 1)), "auto") == "plain"
    monkeypatch.setattr("sglang_jenga.simulate.replay.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torch and sglang is not installed.*--engine plain"):
        engine_for(shared, "auto")


def test_a_plain_trace_is_replayed_without_torch_and_without_sglang() -> None:
    """In a process that cannot import them."""
    code = (
        "import sys\n"
        "for name in ('torch', 'sglang', 'transformers', 'matplotlib'): sys.modules[name] = None\n"
        "from sglang_jenga.cli.__main__ import main\n"
        f"sys.exit(main(['simulate', '--model', 'gemma3-27b', '--trace', {str(AZURE)!r}, "
        "'--limit', '30', '--kv', '4GiB']))"
    )
    source = str(AZURE.parents[3] / "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr
    assert "30 requests" in done.stdout and done.stderr == ""


def test_a_picture_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    from sglang_jenga.simulate.plot import draw

    report = run(trace_of(*[(900, 20)] * 30), model="gemma3-27b", kv_bytes=2 * GIB)
    texts = []
    for name in ("a.svg", "b.svg"):
        draw(report, tmp_path / name)
        texts.append((tmp_path / name).read_text(encoding="utf-8"))
    assert texts[0] == texts[1] and "window, held" in texts[0]


def test_without_matplotlib_a_picture_is_refused_before_the_replay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_jenga.simulate.plot.find_spec", lambda name: None)
    words = ("--model", "gemma3-27b", "--trace", AZURE, "--timeline", "a.svg")
    status, out, err = command(capsys, *words)
    assert status == 1 and out == "" and "sglang-jenga[plot]" in err
