# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the server is always stopped, failures say why, output is plain text."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sglang_jenga.cli.arena_text import arena_lines
from sglang_jenga.cli.terminal import Screen
from sglang_jenga.demo.__main__ import choose_target, parse
from sglang_jenga.demo.server import Server, ServerError, free_port

READY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health_generate" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CHILD = (
    "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
)


def server(tmp_path: Path, code: str) -> Server:
    """A Server whose process runs ``code`` with the port as its argument."""
    made = Server("model", [], log_path=tmp_path / "server.log")
    made.command = [sys.executable, "-c", code, str(made.port)]
    return made


def living(pgid: int) -> list[int]:
    """Processes of a group that still run; a killed orphan may stay a zombie for a while."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.info["pid"]) == pgid:
                    found.append(process.info["pid"])
    return found


def wait_until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """However busy the machine is; a minute is for what never comes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def wait_for(pgid: int, count: int) -> None:
    wait_until(
        lambda: len(living(pgid)) == count,
        lambda: f"expected {count} processes, found {living(pgid)}",
    )


def test_ports_are_free_and_on_loopback() -> None:
    assert free_port() != free_port()


def test_the_command_is_a_real_server_on_loopback(tmp_path: Path) -> None:
    made = Server("some/model", ["--page-size", "16"], log_path=tmp_path / "log")
    assert made.command[1:5] == ["-m", "sglang.launch_server", "--model-path", "some/model"]
    assert made.command[5:7] == ["--host", "127.0.0.1"]
    assert made.command[-2:] == ["--page-size", "16"]


def test_waiting_ends_when_the_server_answers(tmp_path: Path) -> None:
    with server(tmp_path, READY) as running:
        seconds = running.wait_until_ready(30, lambda elapsed: None)
        running.require_running()
    assert seconds < 30


def test_a_server_that_dies_says_why_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "print('loading'); raise ValueError('the arena is too small')"
    with server(tmp_path, code) as running, pytest.raises(ServerError) as caught:
        running.wait_until_ready(30, lambda elapsed: None)
    message = str(caught.value)
    assert "ended with status 1. ValueError: the arena is too small" in message
    assert "loading" in message and str(tmp_path / "server.log") in message


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    ticks: list[float] = []
    waiting = pytest.raises(ServerError, match="did not answer within 1 s")
    with server(tmp_path, "import time; time.sleep(600)") as running, waiting:
        running.wait_until_ready(1.0, ticks.append)
    assert ticks and ticks == sorted(ticks) and ticks[-1] <= 1


def test_leaving_stops_the_server_and_its_children(tmp_path: Path) -> None:
    with server(tmp_path, CHILD) as running:
        process = running._process
        assert process is not None
        wait_for(process.pid, 2)
    wait_for(process.pid, 0)
    running.stop()  # idempotent


def test_a_server_that_ignores_the_request_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_jenga.demo.server._STOP_SECONDS", 0.5)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('ignoring', flush=True); time.sleep(600)"
    )
    with server(tmp_path, code) as running:
        process = running._process
        assert process is not None
        wait_until(lambda: "ignoring" in running.log_path.read_text(), running.log_path.read_text)
    assert process.returncode == -signal.SIGKILL


def test_an_error_inside_stops_the_server_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), server(tmp_path, CHILD) as running:
        process = running._process
        raise KeyboardInterrupt
    assert process is not None
    wait_for(process.pid, 0)


# ---- flags -------------------------------------------------------------------------------------


def flag(flags: tuple[str, ...], name: str) -> str:
    return flags[flags.index(name) + 1]


def test_a_cpu_gets_flags_that_a_laptop_survives(tmp_path: Path) -> None:
    target = choose_target("some/model", tmp_path, has_cuda=False)
    assert flag(target.flags, "--radix-cache-backend") == "jenga"
    assert flag(target.flags, "--device") == "cpu"
    assert int(flag(target.flags, "--max-total-tokens")) <= 8192
    assert int(flag(target.flags, "--max-running-requests")) <= 16
    assert "--dtype" not in target.flags


def test_a_gpu_keeps_the_defaults_for_your_model(tmp_path: Path) -> None:
    target = choose_target("some/model", tmp_path, has_cuda=True)
    assert target.flags == ("--radix-cache-backend", "jenga", "--enable-cache-report")


def test_flags_behind_the_dashes_go_to_the_server() -> None:
    args, flags = parse(["--model", "m", "--", "--page-size", "16"])
    assert args.model == "m" and flags == ["--page-size", "16"]
    assert parse(["--"]) == parse([])


# ---- output ------------------------------------------------------------------------------------

ARENA = {
    "arena_bytes": 58744832,
    "large_page_bytes": 24576,
    "large_pages_total": 2389,
    "large_pages_free": 1887,
    "longest_request_tokens": 13566,
    "kinds": [
        {
            "kind": "full", "span_tokens": None, "layers": 2, "slot_bytes": 4096,
            "large_pages": 95, "slots_held": 93, "slots_cached": 446, "slots_reserved": 2,
            "slots_free": 29, "partial_page_waste_bytes": 31 * 4096, "padding_waste_bytes": 0,
        },
        {
            "kind": "window", "span_tokens": 63, "layers": 12, "slot_bytes": 24576,
            "large_pages": 0, "slots_held": 0, "slots_cached": 0, "slots_reserved": 0,
            "slots_free": 0, "partial_page_waste_bytes": 0, "padding_waste_bytes": 0,
        },
    ],
}  # fmt: skip


def test_the_arena_table_adds_up_per_kind() -> None:
    titles, full, window, free = arena_lines(ARENA)
    assert titles.split()[-5:] == ["held", "cached", "reserved", "free", "waste"]
    assert full.split()[:3] == ["full,", "2", "layers"]
    assert full.split()[-6:] == ["93", "446", "2", "29", "5.4", "%"]
    assert window.startswith("window(63), 12 layers") and window.endswith("-")
    assert free.split() == ["free", "1,887"]
    assert len({len(line) for line in (titles, full, window)}) == 1, "columns are aligned"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> str:
    screen = Screen(stream)
    screen.heading("title")
    for elapsed in (0.0, 1.0, 16.0):
        screen.progress("starting", elapsed)
    screen.line("done")
    return stream.getvalue()


def test_a_terminal_gets_one_progress_line_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(Terminal())
    assert "\x1b[1mtitle\x1b[0m" in text
    assert text.count("\n") == 3, "only the heading, its blank line and the last line"


def test_no_color_has_no_escape_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(Terminal())


def test_a_pipe_gets_sparse_whole_lines() -> None:
    text = shown(io.StringIO())
    assert "\x1b" not in text and "\r" not in text
    assert text.splitlines() == ["", "title", "starting 0 s", "starting 16 s", "done"]


def test_help_explains_the_flags_without_starting_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglang_jenga.demo", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Flags after -- go to the server" in done.stdout
