# SPDX-License-Identifier: Apache-2.0
"""Whatever a server answers or a file holds: no traceback, no escape byte, in time, in memory."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canned import arena
from hostile import Network, chunked, drip, flood, http, listening
from sglang_jenga.cli import recording
from sglang_jenga.cli.__main__ import main
from sglang_jenga.cli.bounded_json import MOST_BYTES
from sglang_jenga.cli.map_page import page, page_data
from sglang_jenga.cli.samples import History, Sample, SchedulerSample
from sglang_jenga.core.printable import printable, printable_lines
from sglang_jenga.core.request_digest import request_digest
from test_cli import HITS

KEY = "the-key"
COMMANDS = [
    ["explain", "host:1", "--last", "3"],
    ["explain", "host:1", "--rid", "a", "--format", "json"],
    ["explain", "host:1", "--prompt", "hello"],
    ["explain", "host:1", "--token-ids", "1,2"],
    ["top", "host:1", "--once"],
    ["top", "host:1", "--frames", "2", "--interval", "0.001", "--format", "json"],
    ["map", "host:1", "-o", "-"],
    ["map", "host:1", "-o", "-", "--samples", "2", "--interval", "0.001"],
]
TIMEOUT = 3.0
EVIL = "\x1b]0;X\x07\x1b[2J\r\x9b31m\u202eevil\u2028\u200b\ud800</script>@DATA@"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def spoken(*argv: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command; whatever it raises goes to the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue()


def assert_plain(text: str) -> None:
    """Nothing but printable characters and ends of lines."""
    for character in set(text) - {"\n"}:
        assert character.isprintable(), (character, unicodedata.category(character))


def info(**changed: Any) -> dict[str, Any]:
    """A whole answer of ``/server_info`` that all commands understand."""
    found = arena()
    found["hits"] = {
        **json.loads(json.dumps(HITS)),
        **found["hits"],
    }
    found["hits"]["reports"] = json.loads(json.dumps(HITS["reports"]))
    state = {"served_model_name": "tiny", "last_gen_throughput": 7.5, "jenga": found}
    return {"internal_states": [state], **changed}


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a document."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*path, key))


def with_changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 1e-300]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from([EVIL, "", "x" * 5000, "1*0.1.6.0", "999999999*-", "10*9.1.1.1"]),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(codec=None), max_size=8), inner, max_size=4),
    max_leaves=12,
)
WHOLE = info()
MUTATED = st.builds(
    lambda changes: _mutated(WHOLE, changes),
    st.lists(
        st.tuples(st.sampled_from(sorted(places(WHOLE), key=str)), st.one_of(JSON, st.just(...))),
        min_size=1,
        max_size=4,
    ),
)
BODIES = st.one_of(
    st.just(WHOLE).map(json.dumps).map(str.encode),
    MUTATED.map(json.dumps).map(str.encode),
    MUTATED.map(json.dumps).map(str.encode),
    JSON.map(json.dumps).map(str.encode),
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"[1,2,3]",
            b"null",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"1" * 10_000,
            b"\xff\xfe{\x00}\x00",
            b"{}\xff",
            b'{"internal_states":[{"jenga":null}]}',
            b'{"internal_states":[{"jenga":5}]}',
            b'{"internal_states":' + b"[" * 900 + b"]" * 900 + b"}",
        ]
    ),
)
HEADERS = st.sampled_from(
    [
        "",
        "Location: http://elsewhere/\r\n",
        f"Location: {EVIL.encode('unicode_escape').decode()}\r\n",
        "Location: http://other:1/\x1b[2J\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Encoding: gzip\r\n",
        "X: \x1b[31m\r\n",
        "no colon\r\n",
        "a: b\r\n" * 200,
        "long: " + "x" * 70_000 + "\r\n",
    ]
)
STATUSES = st.sampled_from(
    [
        *("200 OK", "200 \x1b[2J", "204 x", "302 Found", "307 x", "401 \x9b", "404 Not Found"),
        *("500 x", "100 Continue", "101 x", "999 x", "abc", "", "-1 x", "600 x", "2000 x"),
    ]
)


def _mutated(document: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    for path, value in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # gone by a change before
            document = with_changed(document, path, None if not path and value is ... else value)
    return document


@st.composite
def answers(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    """One answer in pieces, whole or cut off, with waits between them."""
    body = draw(BODIES)
    kind = draw(st.sampled_from(["plain", "plain", "plain", "head", "chunked", "torn", "garbage"]))
    if kind == "garbage":
        data = draw(st.binary(max_size=200)) + body
    elif kind in ("chunked", "torn"):
        data = chunked(body, draw(st.sampled_from([1000, 10_000, 100_000])))
        if kind == "torn":
            at = draw(st.integers(0, min(len(data), 500)))
            data = data[:at] + draw(st.binary(max_size=10)) + data[at:]
    elif kind == "head":
        data = http(body, status=draw(STATUSES), headers=draw(HEADERS))
    else:
        data = http(body)
    data = data[: draw(st.one_of(st.none(), st.integers(0, len(data))))]
    wait = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0]))
    pieces = draw(st.integers(1, 8))
    step = max(1, -(-len(data) // pieces))
    return [(wait, data[at : at + step]) for at in range(0, len(data), step)]


@given(command=st.sampled_from(COMMANDS), scripts=st.lists(answers(), min_size=1, max_size=4))
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_answer_of_a_server_breaks_a_command(
    network: Network, command: list[str], scripts: list[list[tuple[float, bytes]]]
) -> None:
    network.wires.clear()
    network.clock.seconds = 0.0
    network.answer = lambda number: scripts[number % len(scripts)]
    status, out, err = spoken(*command, "--api-key", KEY, "--timeout", str(TIMEOUT))
    assert (status == 0 and out) or (status == 1 and err)
    assert status == 0 or not out or "--frames" in command, "frames come as they are taken"
    assert_plain(out + err)
    assert KEY not in out + err
    assert len(err) < 2000 and (status == 0 or err.count("\n") in (1, 2))
    rounds = 2 if "2" in command else 1
    assert network.clock.seconds <= rounds * TIMEOUT + 1e-6
    if b"POST /generate" in network.asked:
        assert network.asked[0] == b"GET /server_info", "asked what it is before it is changed"


@given(st.lists(st.one_of(BODIES, st.binary(max_size=50)), max_size=3))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_recording_breaks_the_map(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    status, out, err = spoken("map", "--from", str(path), "-o", "-")
    assert status in (0, 1) and (status == 1) == (not out)
    assert_plain(out + err)
    assert len(err) < 2000


RECORD = {
    "schema": 1,
    "url": "http://h:1",
    "unix_seconds": 1.7e9,
    "schedulers": [{"state": {"model": "tiny", "jenga": arena()}, "load": {}}],
}


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(places(RECORD), key=str)), st.one_of(JSON, st.just(...))),
        max_size=3,
    )
)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_sample_of_a_recording_breaks_the_map_or_what_draws_it(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [RECORD, _mutated(RECORD, changes)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    status, out, err = spoken("map", "--from", str(path), "-o", "-")
    assert status in (0, 1) and (status == 1) == (not out)
    assert_plain(out + err)
    if not changes:
        assert status == 0


# ---- what was found, one by one --------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((), [1, 2, 3], "has a list of 3, which is not an object"),
        ((), None, "has null, which is not an object"),
        (("internal_states",), "x", 'internal_states, has "x", which is not a list'),
        (("jenga",), 5, "internal_states[0].jenga, has 5, which is not an object"),
        (("jenga", "large_pages_total"), "9", 'large_pages_total, has "9", which is not a whole'),
        (("jenga", "large_pages_total"), 0, "has 0, which is not a whole number from 1"),
        (("jenga", "arena_bytes"), 1e308, "has 1e+308, which is not a whole number"),
        (("jenga", "kinds", 0, "slots_held"), ..., "jenga.kinds[0], has no 'slots_held'"),
        (("jenga", "large_page_map", "cells"), "9*-", "has 9 cells, not 10"),
        (("jenga", "large_page_map", "cells"), EVIL, "which is no run of cells"),
        (("jenga", "kinds", 0, "name"), ["\x1b"], "has a list of 1, which is not a text"),
    ],
)
def test_a_wrong_shape_is_named_with_what_was_sent(
    network: Network, path: tuple[Any, ...], value: Any, said: str
) -> None:
    path = ("internal_states", 0, *path) if path[:1] == ("jenga",) else path
    body = json.dumps(with_changed(info(), path, value)).encode()
    network.answer = lambda _: [(0.0, http(body))]
    status, out, err = spoken("top", "host:1", "--once")
    assert status == 1 and not out and said in err and err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_without_the_backend_is_asked_nothing_that_changes_it(
    network: Network, command: list[str]
) -> None:
    for body in (b"{}", b'{"internal_states":[{"x":1}]}', b'{"internal_states":[{"jenga":null}]}'):
        network.wires.clear()
        network.answer = lambda _, body=body: [(0.0, http(body))]  # type: ignore[misc]
        status, out, err = spoken(*command)
        assert (status, out) == (1, "") and err.count("\n") == 1
        assert "serves without Jenga" in err
        assert network.asked == [b"GET /server_info"]


@pytest.mark.parametrize("ids", ["1,-2", "1,,2", "1,2147483648", "1,x", "", "1e3", "\x1b[2J"])
def test_token_ids_that_no_model_has_are_not_sent(network: Network, ids: str) -> None:
    status, out, err = spoken("explain", "host:1", f"--token-ids={ids}")
    assert (status, out) == (1, "") and "--token-ids takes numbers" in err
    assert_plain(err)
    assert network.wires == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_gets_no_key(network: Network, status: int) -> None:
    head = f"{status} Found"
    network.answer = lambda _: [(0.0, http(b"", status=head, headers="Location: http://b:2/\r\n"))]
    for command in COMMANDS:
        network.wires.clear()
        code, out, err = spoken(*command, "--api-key", KEY)
        assert (code, out) == (1, "")
        assert f"says {status}, a redirect to http://b:2/, which is not followed" in err
        assert len(network.wires) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "localhost:30000?x=1", "file:///etc/passwd", "ftp://h", "gopher://h:1"),
        *("http://u:p@h:1", "http://h:99999", "http://h:0", "http://h:x", "", "::1", "http://"),
        *("h#x", "h?", "a\x1b]0;b", "http://h /x", "http://\u202eh", "http://a..b", "http://[x]"),
        *("javascript:alert(1)", "data:,x", "http://" + "a" * 300, "\ud800", "http://\ud800:1"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_in_one_line(network: Network, url: str) -> None:
    for command in (["explain", url, "--last", "1"], ["top", url], ["map", url, "-o", "-"]):
        status, out, err = spoken(*command)
        assert (status, out) == (1, "") and err.count("\n") == 1
        assert "is not the address of a server" in err and "write it as localhost:30000" in err
        assert_plain(err)
    assert network.wires == []


def test_addresses_that_are_fine_are_asked_as_they_are_written(network: Network) -> None:
    network.answer = lambda _: [(0.0, http(b"{}"))]
    for url, asked, host in (
        ("host:3", b"GET /server_info", b"host:3"),
        ("http://host/a/b/", b"GET /a/b/server_info", b"host"),
        ("https://host", b"GET /server_info", b"host"),
        ("http://[::1]:30000", b"GET /server_info", b"[::1]:30000"),
        ("http://b\u00fccher:1/\u00e4", b"GET /%C3%A4/server_info", b"xn--bcher-kva:1"),
    ):
        spoken("top", url, "--once")
        assert network.asked[-1] == asked
        assert b"\r\nHost: " + host + b"\r\n" in network.wires[-1].sent


@pytest.mark.parametrize("key", ["a\r\nX: y", "\u00e9", "\x1b", "\ud800"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(network: Network, key: str) -> None:
    status, out, err = spoken("top", "h:1", "--once", "--api-key", key)
    assert (status, out) == (1, "") and key not in err and "--api-key" in err


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "1e308", "x"])
def test_times_that_are_none_make_no_sense(seconds: str) -> None:
    for flag in ("--timeout", "--interval"):
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()):
            main(["top", "x", "--once", f"{flag}={seconds}"])
        assert ended.value.code == 2


def test_names_of_a_server_are_shown_without_what_a_terminal_obeys(network: Network) -> None:
    found = info()
    state = found["internal_states"][0]
    state["served_model_name"] = EVIL
    for kind in state["jenga"]["kinds"]:
        kind["name"] += EVIL
    cut = state["jenga"]["hits"]["reports"]["a"]
    cut |= {"rid": EVIL, "cut_by": EVIL, "tokens_by_kind": {EVIL: 1}}
    cut["evicted_by"] = {"cause": EVIL, "starving_kind": EVIL}
    network.answer = lambda _: [(0.0, http(json.dumps(found).encode()))]
    for command in COMMANDS:
        if "--prompt" in command or "--token-ids" in command:
            continue
        status, out, err = spoken(*command)
        assert status == 0, err
        assert_plain(out + err)
        assert "evil" in out
    network.answer = lambda _: [
        (0.0, http(json.dumps({"message": EVIL}).encode(), status="500 x")),
    ]
    status, _, err = spoken("top", "host:1", "--once")
    assert status == 1 and "says 500: \\x1b]0;X" in err
    assert_plain(err)


def test_an_encoding_that_lacks_a_letter_gets_its_number() -> None:
    with listening(_answers(with_changed(info(), _MODEL, "m\u00fcller"))) as url:
        command = [sys.executable, "-m", "sglang_jenga.cli", "top", url, "--once"]
        done = subprocess.run(command, capture_output=True, env=_environ("ascii"), check=False)
    assert done.returncode == 0 and b"m\\xfcller" in done.stdout and done.stderr == b""


def test_a_name_is_filled_into_the_page_as_text() -> None:
    for name in ("@DATA@", "@STYLE@@SCRIPT@", "</script>", "<!--<script>", "\u2028", "\\", EVIL):
        state = {"model": name, "jenga": arena()}
        one = Sample(unix_seconds=1.0, schedulers=(SchedulerSample(state=state, load={}),))
        text = page(page_data(name, [one]))
        data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
        assert json.loads(data)["model"] == name and json.loads(data)["url"] == name
        assert text.count("unix_seconds") == page(page_data("u", [one])).count("unix_seconds")
        assert "<" not in data and "\u2028" not in text and "\x1b" not in text


def test_a_recording_of_any_size_is_read_within_limits(tmp_path: Path) -> None:
    line = json.dumps(RECORD).encode()
    path = tmp_path / "a.jsonl"
    for content, said in (
        (b"[" * 100_000, "line 1 is not a sample of a jenga server: nested too deeply"),
        (line + b"\n\xff\xfe", "line 2 is not a sample of a jenga server"),
        (line + b"\n" + b'"\xe9"', "line 2 is not a sample of a jenga server: not UTF-8 at byte 1"),
        (b"[" + b"0," * 1_500_000 + b"0]", "more than 1,000,000 values"),
        (b" " * (MOST_BYTES + 1) + b"1", f"more than {MOST_BYTES:,} bytes"),
        (b'{"schema":9}', "line 1: schema 9, this version reads 1"),
        (b'{"schema":"\\u001b"}', 'schema, has "\\x1b", which is not a whole number'),
    ):
        path.write_bytes(content)
        status, out, err = spoken("map", "--from", str(path), "-o", "-")
        assert (status, out) == (1, "") and said in err, err
    status, _, err = spoken("map", "--from", "/dev/zero", "-o", "-")
    assert status == 1 and f"line 1 has more than {MOST_BYTES:,} bytes" in err
    path.write_bytes((line + b"\n") * 9)
    for limit in ("MOST_RECORDED_BYTES", "MOST_RECORDED_VALUES"):
        with pytest.MonkeyPatch.context() as patched:
            assert spoken("map", "--from", str(path), "-o", "-")[0] == 0
            patched.setattr(recording, limit, 300)
            status, out, err = spoken("map", "--from", str(path), "-o", "-")
        assert (status, out) == (1, "") and "too many for one page: draw a part" in err


def test_snapshots_of_a_server_end_where_a_recording_would_be_too_long(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server's answers are no larger than the command believes them to be, taken together."""
    body = json.dumps(info()).encode()
    network.answer = lambda _: [(0.0, http(body))]
    monkeypatch.setattr(recording, "MOST_RECORDED_BYTES", 3 * len(body))
    take = ["map", "h:1", "--samples", "9", "--interval", "0.001"]
    status, out, err = spoken(*take, "--record", str(tmp_path / "a"))
    kept = len((tmp_path / "a").read_text("utf-8").splitlines())
    assert status == 0 and 3 <= kept < 9 and f"added {kept} snapshots" in out
    assert f"ended after {kept} of 9 snapshots" in err


def test_kinds_that_change_between_two_snapshots_are_told(tmp_path: Path) -> None:
    other = with_changed(RECORD, ("schedulers", 0, "state", "jenga", "kinds", 1, "name"), "state")
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(other)}\n", encoding="utf-8")
    status, _, err = spoken("map", "--from", str(path), "-o", "-")
    assert status == 1 and "kinds full, state in snapshot 2 and full, window in the first" in err


def test_a_request_is_found_by_its_id_and_by_its_digest(network: Network) -> None:
    found = info()
    hits = found["internal_states"][0]["jenga"]["hits"]
    digest = request_digest("mine \x1b")
    hits["reports"] = {digest: {**HITS["reports"]["a"], "rid": digest}}
    network.answer = lambda _: [(0.0, http(json.dumps(found).encode()))]
    for rid in ("mine \x1b", digest):
        status, out, _ = spoken("explain", "h:1", "--rid", rid)
        assert status == 0 and out.startswith(f"request {digest}: hit 0 of 1,200 tokens")
    status, _, err = spoken("explain", "h:1", "--rid", "other \x1b")
    assert status == 1 and "no report of request other \\x1b (digest " in err


def test_schedulers_that_are_gone_are_forgotten_however_many_there_were() -> None:
    history = History()
    for rank in range(300):
        one = SchedulerSample(state={"jenga": arena(rank=rank)}, load={})
        (view,) = history.add(Sample(unix_seconds=float(rank), schedulers=(one,)))
        assert view.dp_rank == rank and len(view.free_trend) == 1
    assert len(history._kept) == 1 and "large_page_map" not in str(history._kept)


def test_a_report_without_what_may_be_missing_is_described(network: Network) -> None:
    found = info()
    report = found["internal_states"][0]["jenga"]["hits"]["reports"]["a"]
    for name in ("missing_token", "evicted_by", "rest_evicted_by", "cut_by"):
        del report[name]
        network.answer = lambda _, found=found: [(0.0, http(json.dumps(found).encode()))]  # type: ignore[misc]
        status, out, _ = spoken("explain", "h:1", "--rid", "a")
        assert status == 0 and ("window cut it" in out) == (name != "cut_by")


def test_printable_leaves_what_can_be_read_and_escapes_the_rest() -> None:
    assert printable("m\u00fcller/\u6f22 \U0001f600 a\\b") == "m\u00fcller/\u6f22 \U0001f600 a\\b"
    assert printable("a\nb\tc\x7f\x9b\u2066\ufeff\ud800") == (
        "a\\nb\\tc\\x7f\\x9b\\u2066\\ufeff\\ud800"
    )
    assert printable_lines("a\nb\x1b\r\n") == "a\nb\\x1b\\r\n"
    assert printable("x" * 10, 4) == "xxxx... (10 characters)" and printable("xxxx", 4) == "xxxx"


# ---- real sockets ----------------------------------------------------------------------------

#: Kilobytes that the process ever held; ``getrusage`` would count its parent's too.
_PEAK = "[line.split()[1] for line in open('/proc/self/status') if line[:5] == 'VmHWM'][0]"
_MODEL = ("internal_states", 0, "served_model_name")


def _answers(document: Any) -> Any:
    body = http(json.dumps(document).encode())

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(body)

    return answer


def _environ(encoding: str) -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": encoding}


def _silent(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.recv(1)


def test_a_server_that_drips_or_is_silent_is_left_at_the_deadline() -> None:
    for behave in (drip, _silent):
        with listening(behave) as url:
            for command in (["top", "--once"], ["explain", "--prompt", "x"], ["map", "-o", "-"]):
                begun = time.monotonic()
                status, _, err = spoken(command[0], url, *command[1:], "--timeout", "0.5")
                assert time.monotonic() - begun < 5.0, "a second of this is the machine's"
                assert status == 1 and "no whole answer within 0.5 s" in err


def test_a_port_where_nobody_answers_the_handshake_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts nothing
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        status, _, err = spoken("top", url, "--once", "--timeout", "0.3")
    assert status == 1 and "no whole answer within 0.3 s" in err


def test_a_server_that_sends_without_end_takes_little_memory() -> None:
    with listening(flood) as url:
        code = (
            "from sglang_jenga.cli.__main__ import main\n"
            f"status = main(['top', '{url}', '--once', '--timeout', '60'])\n"
            f"print(status, {_PEAK})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    status, kilobytes = map(int, done.stdout.split())
    assert status == 1 and f"answers more than {MOST_BYTES:,} bytes" in done.stderr
    assert kilobytes < 100_000


def test_the_largest_document_that_is_read_takes_a_bounded_part_of_memory() -> None:
    """A million values in 16 MiB: the worst that gets past both limits."""
    code = (
        "from sglang_jenga.cli.bounded_json import *\n"
        "text = b'[' + b'{},' * 499_000 + b'\"' + b'x' * (MOST_BYTES - 1_500_000) + b'\"]'\n"
        "assert len(parsed(text)) == 499_001\n"
        f"print({_PEAK})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250_000
