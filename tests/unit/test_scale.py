# SPDX-License-Identifier: Apache-2.0
"""Scale-out runs: lost answers are sent again and counted, reports say whose they were."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_jenga.core.request_digest import request_digest
from sglang_jenga.demo.load import Asked, Load, drive, system_prompt
from sglang_jenga.demo.router import Router, default_python, router_version
from sglang_jenga.demo.scale import parse
from sglang_jenga.demo.scale_report import Counts, Report
from sglang_jenga.demo.server import ServerError

LOAD = Load(groups=2, chats=2, turns=2, at_once=3, output_tokens=4)


class FakeApi(http.server.BaseHTTPRequestHandler):
    """As much of an OpenAI server as the load needs. Breaks off the first answer to chat 1."""

    protocol_version = "HTTP/1.0"
    asked: list[dict[str, Any]]

    def log_message(self, *args: Any) -> None:
        pass

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def do_GET(self) -> None:
        self._begin("application/json")
        model = {"id": "tiny", "object": "model", "created": 0, "owned_by": "nobody"}
        self.wfile.write(json.dumps({"object": "list", "data": [model]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self._begin("text/event-stream")
        self._send({"choices": [_choice("one ")]})
        chat, first = "(chat 1)", body["messages"][-1]["content"]
        if chat in first and len(body["messages"]) == 2 and self.asked.count(body) == 1:
            return
        self._send({"choices": [_choice("two", "stop")]})
        details = {"cached_tokens": 7}
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        self._send({"choices": [], "usage": usage | {"prompt_tokens_details": details}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, event: dict[str, Any]) -> None:
        base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
        self.wfile.write(f"data: {json.dumps(base | event)}\n\n".encode())


def _choice(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text}, "finish_reason": finish}


@pytest.fixture
def api() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (FakeApi,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_that_breaks_off_is_counted_as_lost_and_asked_for_again(
    api: tuple[str, list[dict[str, Any]]],
) -> None:
    url, received = api
    done: list[Asked] = []
    asked = drive(url, LOAD, done.append)
    lost = [one for one in asked if one.error]
    assert [one.name for one in lost] == ["chat-1-turn-0-attempt-0"]
    assert lost[0].pieces == 1 and "ended before" in lost[0].error
    assert sum(not one.error for one in asked) == LOAD.requests
    assert {one.name for one in done} == {one.name for one in asked}
    assert len(asked) == len(received) and {one.rid for one in asked} == {"x"}
    assert all(one.cached_tokens == 7 and one.prompt_tokens == 9 for one in asked if not one.error)


def test_a_chat_sends_its_history_and_groups_share_nothing(
    api: tuple[str, list[dict[str, Any]]],
) -> None:
    url, received = api
    drive(url, LOAD, lambda one: None)
    chats = {chat: [] for chat in range(4)}
    for body in received:
        number = int(body["messages"][1]["content"].split("(chat ")[1][0])
        chats[number].append(body["messages"])
    first, second = chats[0]
    assert second[: len(first)] == first and second[len(first)]["content"] == "one two"
    assert chats[2][0][0] == first[0], "chats 0 and 2 are of one group"
    assert system_prompt(0).split()[1] != system_prompt(1).split()[1]


def attempt(rid: str, began: float, ended: float, error: str = "") -> Asked:
    return Asked(
        name=f"name of {rid}",
        rid=rid,
        began_seconds=began,
        ended_seconds=ended,
        prompt_tokens=10,
        cached_tokens=5,
        pieces=1,
        error=error,
    )


def counts(requests: int, *rids: str) -> Counts:
    return Counts(
        requests=requests,
        prompt_tokens=10 * requests,
        hit_tokens=4 * requests,
        rids=frozenset(map(request_digest, rids)),
    )


def report(asked: list[Asked], killed_seconds: float | None) -> Report:
    return Report.of(
        mode="router",
        policy="cache_aware",
        router="1",
        load=LOAD,
        servers=[("first", counts(6, "a", "b")), ("second", counts(2, "c"))],
        asked=asked,
        killed_seconds=killed_seconds,
    )


def test_balance_is_the_busiest_over_the_average_and_the_hit_rate_of_all_tokens() -> None:
    found = report([attempt("a", 0, 1)], None)
    assert found.balance == 6 / 4 and found.hit_rate == 0.4 and found.killed is None
    assert [row.hit_rate for row in found.servers] == [0.4, 0.4]


def test_what_a_killed_server_lost_is_told_apart_from_what_others_lost() -> None:
    asked = [
        attempt("a", 0, 9),  # on the first server, runs on
        attempt("b", 0, 5.1, "lost, though its server lives"),
        attempt("c", 0, 5.1, "its server died"),
        attempt("", 4.9, 5.2, "nothing had arrived"),
        attempt("", 5.5, 5.6, "sent to the dead server"),
        attempt("e", 5.5, 6.5),
        attempt("f", 0, 4),
    ]
    killed = report(asked, 5.0).killed
    assert killed is not None
    assert (killed.running, killed.running_there) == (4, 1)
    assert len(killed.lost) == 4
    assert killed.lost_elsewhere == (request_digest("b"),)
    assert killed.lost_after == ("name of ",)


def test_a_request_that_a_living_server_began_and_nobody_got_is_lost_elsewhere() -> None:
    """Also where its id never reached the client."""
    killed = report([attempt("a", 0, 9), attempt("", 0, 5.1, "lost")], 5.0).killed
    assert killed is not None and killed.lost_elsewhere == (request_digest("b"),)


def test_counts_are_of_the_load_and_leave_out_health_checks_and_what_was_before() -> None:
    reports = {
        request_digest("HEALTH_CHECK_1"): {"prompt_tokens": 0, "hit_tokens": 0},
        "warm-up": {"prompt_tokens": 7, "hit_tokens": 1},
        "a": {"prompt_tokens": 40, "hit_tokens": 0},
        "b": {"prompt_tokens": 60, "hit_tokens": 39},
    }
    counts = Counts.of({"requests": 4, "reports": reports}, frozenset({"warm-up"}))
    assert (counts.requests, counts.prompt_tokens, counts.hit_tokens) == (2, 100, 39)
    assert counts.rids == {"a", "b"}


def test_an_interpreter_without_the_router_is_named_with_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named sglang_router' >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(ServerError, match="pip install sglang-router"):
        router_version(str(python))


def test_the_interpreter_of_the_router_is_the_named_one_the_own_one_or_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JENGA_ROUTER_PYTHON", raising=False)
    assert default_python(tmp_path) == sys.executable
    own = tmp_path / ".venv-router" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert default_python(tmp_path) == str(own)
    monkeypatch.setenv("JENGA_ROUTER_PYTHON", "named")
    assert default_python(tmp_path) == "named"


def test_a_dead_server_is_given_up_within_two_health_checks(tmp_path: Path) -> None:
    router = Router("python", "cache_aware", ["http://a", "http://b"], log_path=tmp_path / "log")
    flags = dict(zip(router.command, router.command[1:], strict=False))
    assert flags["--health-check-interval-secs"] == "1"
    assert flags["--health-failure-threshold"] == "2"
    assert router.command[router.command.index("--worker-urls") + 1 :][:2] == [
        "http://a",
        "http://b",
    ]


@pytest.mark.parametrize(
    "argv", [["dp", "--kill-at", "0.4"], ["router", "--kill-at", "1"], ["dp", "--turns", "40"], []]
)
def test_what_makes_no_sense_is_refused_before_anything_starts(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(argv)


def test_flags_after_two_dashes_go_to_the_servers() -> None:
    args, flags = parse(["tp", "--", "--page-size", "16"])
    assert args.mode == "tp" and flags == ["--page-size", "16"]
