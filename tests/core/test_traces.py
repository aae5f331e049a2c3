# SPDX-License-Identifier: Apache-2.0
"""Trace files: what each format gives, and what is said about a line that makes no sense."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sglang_jenga.simulate.contents import contents_of
from sglang_jenga.simulate.traces import LeftOut, Trace, TraceError, TraceRequest, read_trace

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


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_burstgpt_gives_lengths_and_says_which_requests_failed(tmp_path: Path) -> None:
    rows = (
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,1087,0,1087,API log",
        '118,GPT-4,"417","276.0",693,Conversation log',
        "119,GPT-4,0,0,0,API log",
    )
    trace = read_trace(written(tmp_path, BURST, *rows))
    assert trace.format == "burstgpt" and not trace.shares_text
    assert lengths(trace) == [(472, 18), (417, 276)]
    (left,) = trace.left_out
    assert (left.count, left.first) == (2, (3, 5)) and "it failed" in left.reason
    assert str(left).endswith("it failed (line 3, 5)")


def test_columns_may_come_in_any_order_and_with_others(tmp_path: Path) -> None:
    header = "Session ID,Response tokens,Request tokens"
    assert lengths(read_trace(written(tmp_path, header, "x,3,7"))) == [(7, 3)]


def talk(*texts: str, ids: str = "a") -> dict[str, object]:
    """Alternately a human's and a model's."""
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": ids, "conversations": said}


@pytest.mark.parametrize("form", ["array", "indented array", "lines"])
def test_every_answer_of_a_conversation_is_a_request(tmp_path: Path, form: str) -> None:
    talks = [talk("x" * 40, "y" * 10, "z" * 5, "w" * 21), talk("q" * 9, "a")]
    path = tmp_path / "sharegpt.json"
    if form == "lines":
        written(tmp_path, *talks, name=path.name)
    else:
        path.write_text(json.dumps(talks, indent=2 if form == "indented array" else None))
    trace = read_trace(path)
    assert trace.format == "sharegpt" and trace.shares_text
    assert lengths(trace) == [(10, 3), (10 + 3 + 2, 6), (3, 1)]
    assert [request.conversation for request in trace.requests] == [0, 0, 1]
    assert "4 characters (--characters-per-token)" in trace.note
    assert lengths(read_trace(path, characters_per_token=10)) == [(4, 1), (6, 3), (1, 1)]


def test_a_turn_begins_with_the_prompt_and_the_answer_before_it(tmp_path: Path) -> None:
    talks = [talk("x" * 40, "y" * 12, "z" * 8, "w" * 4), talk("x" * 40, "y" * 12)]
    text = contents_of(read_trace(written(tmp_path, *talks)))
    assert text.turn_of == [-1, 0, -1]
    first, second, other = (text.prompt(index) for index in range(3))
    assert second[:10].tolist() == first.tolist()
    assert second[10:13].tolist() == [text.answer(0, at) for at in range(3)]
    assert not set(second[13:].tolist()) & {*first.tolist(), *other.tolist()}
    assert not set(first.tolist()) & set(other.tolist())


def test_what_cannot_be_replayed_of_conversations_is_counted_by_reason(tmp_path: Path) -> None:
    entries = (
        talk("hello", "hi"),
        {"id": "b", "conversations": []},
        {"id": "c", "conversations": "none"},
        {"id": "d", "conversations": [{"from": "gpt", "value": "and so on"}]},
        {"id": "e", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt"}]},
        {"id": "f", "conversations": [{"from": "human", "value": "q"}, 5]},
        talk("hello", ""),
        {"items": 7},
    )
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(entries))
    trace = read_trace(path)
    assert lengths(trace) == [(2, 1)] and trace.failed == 7
    assert {left.reason: left.first for left in trace.left_out} == {
        "a conversation without an answer": (2,),
        "no list of conversations": (3, 8),
        "an answer to nothing": (4,),
        "a message without from and value, and what follows it": (5, 6),
        "an empty answer": (7,),
    }
    assert all(left.unit == "entry" for left in trace.left_out)


def test_roles_and_contents_are_read_as_well(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "x" * 8}, {"role": "user", "content": "x" * 4}]
    entry = {"messages": [*said, {"role": "assistant", "content": "y" * 4}]}
    assert lengths(read_trace(written(tmp_path, entry))) == [(3, 1)]


def test_an_array_of_any_known_objects_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([{"prompt_tokens": 3, "completion_tokens": 2}] * 3))
    assert lengths(read_trace(path)) == [(3, 2)] * 3


def test_an_array_larger_than_what_is_read_at_once_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    talks = [talk("x" * (1 + 70_000 * (i % 40)), "y" * 4, ids=str(i)) for i in range(120)]
    path.write_text(json.dumps(talks))
    assert len(read_trace(path).requests) == 120


MOONCAKE = {"input_length": 600, "output_length": 1, "hash_ids": [1, 2]}


@pytest.mark.parametrize(
    "lines",
    [
        (BURST, "5,ChatGPT,472,18,490,Conversation log"),
        ("ContextTokens,GeneratedTokens", "472,18"),
        ({"prompt_tokens": 472, "completion_tokens": 18},),
        ({**MOONCAKE, "input_length": 472, "output_length": 18},),
        ("[", json.dumps({"prompt_tokens": 472, "completion_tokens": 18}), "]"),
        ("[2026-01-02 03:04:05] Finish: obj=X(), out={'prompt_tokens': 472, 'completion_tokens':"
         " 18}",),
    ],
)  # fmt: skip
def test_a_byte_order_mark_is_fine_in_every_format(
    tmp_path: Path, lines: tuple[object, ...]
) -> None:
    path = written(tmp_path, *lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert lengths(read_trace(path)) == [(472, 18)]


def test_a_mooncake_line_with_too_few_ids_is_left_out_for_that_reason(tmp_path: Path) -> None:
    short = {**MOONCAKE, "hash_ids": [1]}
    trace = read_trace(written(tmp_path, short, MOONCAKE, short, short, short))
    reason = "fewer hash_ids than its prompt has blocks of 512 tokens"
    assert trace.left_out == (LeftOut(reason=reason, count=4, unit="line", first=(1, 3, 4)),)
    assert str(trace.left_out[0]) == f"4: {reason} (line 1, 3, 4, ...)"
    with pytest.raises(TraceError, match=rf"no request in this mooncake trace; .* 1: {reason}"):
        read_trace(written(tmp_path, short))


def test_ids_may_be_hashes_of_any_size(tmp_path: Path) -> None:
    ids = [[-1, 2**63, 10**40], [-1, 2**63, 7]]
    lines = [{**MOONCAKE, "input_length": 1500, "hash_ids": found} for found in ids]
    text = contents_of(read_trace(written(tmp_path, *lines)))
    assert common(text.prompt(0), text.prompt(1)) == 1024


def test_skip_and_limit_choose_requests() -> None:
    path = TRACES / "azure_llm_2023_code.csv"
    whole = read_trace(path).requests
    assert read_trace(path, skip=10, limit=5).requests == whole[10:15]


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        ((), 1, "empty"),
        (("once \x1b[2Jupon a time",), 1, r"no trace format begins like this"),
        (("once \x1b[2Jupon a time",), 1, r"\x1b[2Jupon"),
        (({"\x1b[2J": 1},), 1, r"keys are '\x1b[2J'"),
        (({"input_length": 10**12, "output_length": 1, "hash_ids": []},), 1, "1000000000000"),
        ((BURST, '5,"' + "x" * 200_000), 2, "no line of a CSV"),
        (("ContextTokens,GeneratedTokens", "3"), 2, "the line has 1 cells"),
        (("ContextTokens,GeneratedTokens", "3,-4"), 2, "-4 is no number of tokens"),
        (("ContextTokens,GeneratedTokens", "3," + "9" * 5000), 2, "two numbers expected"),
        (({"prompt_tokens": 1, "completion_tokens": 1}, "[" * 100_000), 2, "nested too deeply"),
        (('{"prompt_tokens": ' + "9" * 5000 + "}",), 1, "not JSON"),
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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", ": entry 1: the array is empty"),
        ('[{"prompt_tokens": 1}, ', ": entry 1: no token counts"),
        ('[{"prompt_tokens": 1, "completion_tokens": 2}, ', ": entry 2: the array ends without ]"),
        ('[{"prompt_tokens": 1, "completion_tokens": 2} 5]', ": entry 2: '5' where ','"),
        ('[{"prompt_tokens": 1, "completion_tokens": 2}, 5]', ": entry 2: not a JSON object"),
        ('[{"prompt_tokens": 1, "completion_tokens": 2}, {"a"]', ": entry 2: not JSON"),
        ('[{"a": ' + "[" * 100_000, ": entry 1: not JSON: nested too deeply"),
    ],
)
def test_an_error_in_an_array_names_its_entry(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=re.escape(f"{path}{problem}")):
        read_trace(path)


def test_an_entry_that_never_ends_is_given_up_soon(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text('[{"conversations": "' + "x" * 70_000_000)
    began = time.process_time()
    with pytest.raises(TraceError, match="entry 1: not JSON"):
        read_trace(path)
    assert time.process_time() - began < 20


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
