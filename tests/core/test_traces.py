# SPDX-License-Identifier: Apache-2.0
"""Trace files: what each format gives, and what is said about a line that makes no sense."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sglang_jenga.simulate.contents import contents_of
from sglang_jenga.simulate.traces import Trace, TraceError, TraceRequest, read_trace

TRACES = Path(__file__).resolve().parents[1] / "data" / "traces"
PYTHON = str(Path(__file__).resolve().parents[2] / "python")


def written(folder: Path, *lines: object, name: str = "trace") -> Path:
    path = folder / name
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def lengths(trace: Trace) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.output_tokens) for request in trace.requests]


def test_a_mooncake_trace_has_lengths_and_blocks() -> None:
    trace = read_trace(TRACES / "mooncake_conversation_trace.jsonl")
    assert trace.format == "mooncake" and trace.block_tokens == 512 and len(trace.requests) == 110
    assert all(len(r.blocks) == -(-r.prompt_tokens // 512) for r in trace.requests)


def test_an_azure_trace_has_lengths_alone() -> None:
    trace = read_trace(TRACES / "azure_llm_2023_code.csv")
    assert trace.format == "azure" and not trace.shares_text
    assert lengths(trace)[:3] == [(4808, 10), (3180, 8), (110, 27)]


def test_a_benchmark_has_one_line_per_run_and_failed_requests_are_counted(tmp_path: Path) -> None:
    runs = (
        {"input_lens": [5, 7, 9], "output_lens": [2, 0, 4]},
        {"input_lens": [3], "output_lens": [1]},
    )
    trace = read_trace(written(tmp_path, *runs))
    assert lengths(trace) == [(5, 2), (9, 4), (3, 1)] and trace.failed == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"prompt_tokens": 11, "completion_tokens": 3},
        {"input_len": 11, "output_len": 3},
        {"usage": {"prompt_tokens": 11, "completion_tokens": 3}},
        {"meta_info": {"prompt_tokens": 11, "completion_tokens": 3}},
        {"response": {"body": {"usage": {"prompt_tokens": 11, "completion_tokens": 3}}}},
        {"out": {"meta_info": {"prompt_tokens": 11, "completion_tokens": 3}}},
    ],
)
def test_token_counts_are_found_where_servers_and_clients_put_them(
    tmp_path: Path, entry: dict[str, object]
) -> None:
    trace = read_trace(written(tmp_path, entry))
    assert trace.format == "requests" and lengths(trace) == [(11, 3)]


def test_a_json_log_of_sglang_gives_each_request_once(tmp_path: Path) -> None:
    meta = {"prompt_tokens": 4, "completion_tokens": 2}
    log = (
        {"event": "request.received", "rid": "a", "obj": {}},
        {"event": "request.finished", "rid": "a", "out": {"meta_info": meta}},
    )
    assert lengths(read_trace(written(tmp_path, *log))) == [(4, 2)]


def test_a_text_log_of_sglang_gives_what_finished(tmp_path: Path) -> None:
    log = (
        "[2026-01-02 03:04:05] Receive: obj=GenerateReqInput(rid='a', text='out={')",
        "[2026-01-02 03:04:06] Prefill batch, #new-seq: 1",
        "[2026-01-02 03:04:07] Finish: obj=GenerateReqInput(rid='a'), out={'text': 'out={', "
        "'meta_info': {'id': 'a', 'prompt_tokens': 40, 'completion_tokens': 8}}",
    )
    trace = read_trace(written(tmp_path, *log))
    assert trace.format == "log" and lengths(trace) == [(40, 8)]


def test_the_text_log_of_the_installed_sglang_can_be_read(tmp_path: Path) -> None:
    """SGLang itself writes the line."""
    logger = pytest.importorskip("sglang.srt.utils.request_logger")
    from sglang.srt.managers.io_struct import GenerateReqInput

    meta = {"id": "a", "prompt_tokens": 21, "completion_tokens": 6, "e2e_latency": 0.5}
    out = {"text": "a word", "meta_info": meta}
    for form in ("text", "json"):
        folder = tmp_path / form
        folder.mkdir()
        writer = logger.RequestLogger(
            log_requests=True, log_requests_level=1, log_requests_format=form,
            log_requests_target=[str(folder)],
        )  # fmt: skip
        writer.log_finished_request(GenerateReqInput(text="hello", rid="a"), out)
        (file,) = folder.iterdir()
        assert lengths(read_trace(file)) == [(21, 6)], form


def test_skip_and_limit_choose_requests() -> None:
    path = TRACES / "azure_llm_2023_code.csv"
    whole = read_trace(path).requests
    assert read_trace(path, skip=10, limit=5).requests == whole[10:15]


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        ((), 1, "empty"),
        (("once upon a time",), 1, "no trace format begins like this"),
        (("TIMESTAMP,ContextTokens",), 1, "a column is missing"),
        (("ContextTokens,GeneratedTokens", "3,4", "3,x"), 3, "two numbers expected"),
        (({"prompt_tokens": 1, "completion_tokens": 1}, "{"), 2, "not JSON"),
        (({"prompt_tokens": 1, "completion_tokens": 1}, {"rid": 7}), 2, "no token counts"),
        (({"prompt_tokens": "1", "completion_tokens": 1},), 1, "prompt_tokens is '1'"),
        (({"input_length": 3, "output_length": 1, "hash_ids": "x"},), 1, "hash_ids"),
        (({"median_ttft_ms": 3.0},), 1, "--output-details"),
        (({"input_lens": [1], "output_lens": []},), 1, "1 input_lens, 0 output_lens"),
        (("[2026-01-02 03:04:05] Finish: obj=X(), out={}",), 1, "without prompt_tokens"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_problem(
    tmp_path: Path, lines: tuple[object, ...], line: int, problem: str
) -> None:
    path = tmp_path / "trace"
    path.write_text("", encoding="utf-8")
    if lines:
        written(tmp_path, *lines)
    with pytest.raises(TraceError, match=re.escape(f"{path}:{line}: ") + ".*" + re.escape(problem)):
        read_trace(path)


# ---- contents ----------------------------------------------------------------------------------


def shared(*requests: tuple[int, int, tuple[int, ...]]) -> Trace:
    made = [TraceRequest(prompt_tokens=p, output_tokens=o, blocks=b) for p, o, b in requests]
    return Trace(format="mooncake", requests=tuple(made), block_tokens=512)


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that two prompts begin with alike."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def test_prompts_share_the_blocks_that_the_trace_says() -> None:
    text = contents_of(shared((1500, 9, (1, 2, 3)), (1400, 9, (1, 2, 4)), (600, 9, (8, 9))))
    assert common(text.prompt(0), text.prompt(1)) == 1024
    assert common(text.prompt(0), text.prompt(2)) == 0
    assert text.turn_of == [-1, -1, -1]  # shorter than the first, and nothing shared


def test_the_next_turn_begins_with_prompt_and_answer_and_waits_for_them() -> None:
    text = contents_of(shared((1100, 100, (1, 2, 3)), (1300, 9, (1, 2, 4))))
    assert text.turn_of == [-1, 0]
    first, second = text.prompt(0), text.prompt(1)
    assert common(first, second) == 1100
    assert second[1100:1200].tolist() == [text.answer(0, at) for at in range(100)]
    assert len(set(second[1200:].tolist()) & set(first.tolist())) == 0


def test_a_turn_too_short_for_the_answer_holds_the_prompt_alone() -> None:
    text = contents_of(shared((1100, 900, (1, 2, 3)), (1300, 9, (1, 2, 4))))
    assert common(text.prompt(0), text.prompt(1)) == 1100
    assert not set(text.prompt(1).tolist()) & {text.answer(0, at) for at in range(900)}


def test_prompts_of_lengths_alone_share_no_token() -> None:
    made = tuple(TraceRequest(prompt_tokens=50, output_tokens=5) for _ in range(4))
    text = contents_of(Trace(format="azure", requests=made))
    ids = [*(int(i) for at in range(4) for i in text.prompt(at)), text.answer(0, 0)]
    assert len(set(ids)) == 4 * 50 + 1


def test_the_readers_load_no_tensor_library_and_no_engine() -> None:
    code = (
        f"import sys; sys.path.insert(0, {PYTHON!r}); import sglang_jenga.simulate.traces, "
        "sglang_jenga.simulate.loop, sglang_jenga.simulate.report, sglang_jenga.cli.simulate;"
        "print([m for m in ('torch', 'sglang', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
