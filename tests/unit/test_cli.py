# SPDX-License-Identifier: Apache-2.0
"""The command ``sglang-jenga`` against a server made of canned answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from canned import JsonHandler, serving
from sglang_jenga.cli.__main__ import main

CUT: dict[str, Any] = {
    "rid": "a",
    "prompt_tokens": 1200,
    "hit_tokens": 0,
    "full_only_tokens": 600,
    "tokens_by_kind": {"window": 0, "state": 512},
    "cut_by": "window",
    "missing_token": 576,
    "evicted_by": {"cause": "request 7 started", "starving_kind": "full"},
    "rest_evicted_by": None,
}
WHOLE = {**CUT, "rid": "b", "hit_tokens": 600, "tokens_by_kind": {"window": 600, "state": 600}}
WHOLE.update(cut_by=None, missing_token=None, evicted_by=None)
HITS = {
    "requests": 2,
    "prompt_tokens": 2400,
    "hit_tokens": 600,
    "full_only_tokens": 1200,
    "cut_tokens": {"window": 600, "state": 0},
    "reports": {"a": CUT, "b": WHOLE},
}


class Handler(JsonHandler):
    states: list[dict[str, Any]]
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.reply(200, {"internal_states": self.states})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "key": self.headers.get("Authorization")})
        if body.get("text") == "too long":
            return self.reply(400, {"error": {"message": "The input is too long"}})
        for state in self.states:
            state["jenga"]["hits"]["reports"][body["rid"]] = {**CUT, "rid": body["rid"]}
        return self.reply(200, {"text": "x"})


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    Handler.states = [{"jenga": {"hits": json.loads(json.dumps(HITS))}}]
    Handler.asked = []
    with serving(Handler) as found:
        yield found


def explain(server: HTTPServer, *args: str) -> int:
    return main(["explain", f"127.0.0.1:{server.server_port}", *args])


def test_a_served_request_is_explained_by_its_id(server: HTTPServer, capsys: Any) -> None:
    assert explain(server, "--rid", "a") == 0
    assert capsys.readouterr().out.splitlines() == [
        "request a: hit 0 of 1,200 tokens",
        "  full    ####################....................  600",
        "  window  ........................................  0",
        "  state   #################.......................  512",
        "  window cut it: a hit of 600 would need its slot of token 576, which was evicted: "
        "request 7 started, and kind full lacked bytes",
        "  from token 600 on: not known to the cache (new, or forgotten)",
    ]


def test_a_whole_hit_says_that_nothing_cut_it(server: HTTPServer, capsys: Any) -> None:
    assert explain(server, "--rid", "b") == 0
    assert "no kind cut the hit: it is all that full attention has" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["--prompt", "--prompt-file", "--token-ids"])
def test_a_prompt_is_sent_and_its_report_is_read(
    server: HTTPServer, capsys: Any, tmp_path: Path, how: str
) -> None:
    (tmp_path / "prompt.txt").write_text("hello", encoding="utf-8")
    value = {"--prompt": "hello", "--prompt-file": str(tmp_path / "prompt.txt")}.get(how, "4,5")
    assert explain(server, how, value, "--format", "json", "--api-key", "secret") == 0
    (asked,) = Handler.asked
    assert asked["sampling_params"] == {"max_new_tokens": 1} and asked["key"] == "Bearer secret"
    assert asked.get("text") == "hello" or asked["input_ids"] == [4, 5]
    assert json.loads(capsys.readouterr().out)["rid"] == asked["rid"]


def test_the_last_reports_come_with_the_sums(server: HTTPServer, capsys: Any) -> None:
    assert explain(server, "--last", "1") == 0
    out = capsys.readouterr().out
    assert "request b" in out and "request a" not in out
    assert out.splitlines()[-5:] == [
        "2 requests, 2,400 prompt tokens",
        "  hit 600 tokens (25.0 %)",
        "  full attention alone had 1,200 tokens (50.0 %)",
        "  window cut 600 tokens (25.0 %)",
        "  state cut 0 tokens (0.0 %)",
    ]


def test_data_parallel_ranks_are_told_apart_and_a_request_is_found_on_any(
    server: HTTPServer, capsys: Any
) -> None:
    first = {"hits": {**HITS, "reports": {"c": {**WHOLE, "rid": "c"}}}, "dp_rank": 0}
    Handler.states[0]["jenga"]["dp_rank"] = 1
    Handler.states.append({"jenga": first})  # it answered later
    assert explain(server, "--last", "1") == 0
    out = capsys.readouterr().out
    order = ["data parallel rank 0", "request c", "data parallel rank 1", "request b"]
    assert sorted(order, key=out.index) == order
    assert explain(server, "--rid", "c") == 0


def test_output_goes_to_a_file(server: HTTPServer, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "out.json"
    assert explain(server, "--last", "9", "--format", "json", "--output", str(path)) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(path.read_text())[0]["reports"].keys() == {"a", "b"}


def test_what_cannot_be_done_is_said_on_standard_error(server: HTTPServer, capsys: Any) -> None:
    for args, message in (
        (("--rid", "zzz"), "has no report of request zzz"),
        (("--prompt", "too long"), "says 400: The input is too long"),
        (("--prompt-file", "/nowhere"), "--prompt-file /nowhere cannot be read"),
        (("--token-ids", "1,x"), "--token-ids takes numbers"),
    ):
        assert explain(server, *args) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("sglang-jenga explain: ") and message in err
    Handler.states = [{}]
    assert explain(server, "--last", "1") == 1
    assert "start it with --radix-cache-backend jenga" in capsys.readouterr().err
    assert main(["explain", "127.0.0.1:9", "--last", "1"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_a_command_line_that_makes_no_sense_exits_with_2(capsys: Any) -> None:
    for argv in ([], ["explain"], ["explain", "x", "--last", "1", "--rid", "a"], ["dance"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
    capsys.readouterr()


def test_help_comes_without_torch_or_sglang() -> None:
    code = (
        "import sys; from sglang_jenga.cli.__main__ import main\n"
        "try: main(['explain', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sglang', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
