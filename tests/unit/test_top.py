# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga top`` against a server made of canned answers, and in a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from threading import Timer
from typing import Any

import pytest

from canned import Handler, address, arena, canned
from sglang_jenga.cli.__main__ import main
from sglang_jenga.cli.frame import Frame, draw
from sglang_jenga.cli.samples import History, Sample, SchedulerSample
from sglang_jenga.cli.spans import ASCII, UNICODE, bar, clipped, line, rendered, sparkline, width_of


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with canned(arena()) as found:
        yield found


def top(server: ThreadingHTTPServer, *args: str) -> int:
    return main(["top", address(server), *args])


def sample(seconds: float, *arenas: dict[str, Any], **load: Any) -> Sample:
    return Sample(
        unix_seconds=seconds,
        schedulers=tuple(SchedulerSample(state={"jenga": found}, load=load) for found in arenas),
    )


def text_of(columns: int, *samples: Sample, rows: int | None = None, glyphs: Any = ASCII) -> str:
    history = History()
    for found in samples:
        views = history.add(found)
    frame = Frame(columns=columns, rows=rows, glyphs=glyphs)
    lines = draw(frame, views, url="u", clock="c", trouble=None)
    return "\n".join(rendered(spans, colour=False) for spans in lines)


# ---- one frame -------------------------------------------------------------------------------


def test_one_frame_shows_each_kind_as_its_part_of_the_arena(
    server: ThreadingHTTPServer, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "76")  # bars of 24 columns
    assert top(server, "--once", "--ascii") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines: dict[str, str] = {}
    for text in out.splitlines():
        lines.setdefault((text.split() or [""])[0], text)
    # 4 of 10 large pages: 12 + 6 + 3 + 3 slots of 100 B on a scale of 6,000 B.
    assert lines["full"][12:36] == "#####==+..              "
    assert lines["full"].split()[2:5] == ["4", "40.0", "%"]
    assert lines["window"][12:36] == "#####==                 "
    assert lines["free"][12:36] == "_______                 "
    assert lines["free"].split()[2:5] == ["3", "30.0", "%"]
    assert "arena 6,600 B = 10 large pages of 600 B" in out
    assert "running     3 of at most -, retracted - since start" in out
    assert "tiny" in out.splitlines()[0]


def test_numbers_that_the_server_does_not_give_are_shown_as_unknown() -> None:
    out = text_of(120, sample(1.0, arena(evicted_tokens={})))
    assert "running     - of at most -, retracted - since start" in out
    assert "waiting     -" in out and "starving    -" in out and "evicted     -" in out
    assert "waste       padding -, partly used pages -" in out
    assert "generates   - tokens/s" in out


def test_numbers_of_a_newer_server_are_used() -> None:
    waste = {"padding_bytes": 0, "partial_page_bytes": 600}
    new = arena(
        waits={"window": 4},
        retractions=5,
        running_requests=1,
        waiting_requests=6,
        max_running_requests=9,
        realised_running_cap=4,
        waste=waste,
    )
    later = {**new, "waits": {"window": 7}}
    assert "refusals (+" not in text_of(120, sample(1.0, new), sample(2.0, new))
    delayed = {**later, "delayed_requests": {"window": 1}, "evicted_slots": {"window": 99}}
    out = text_of(120, sample(1.0, new), sample(2.0, delayed))
    assert "full 0 requests delayed, 0 refusals; window 1 request delayed, 7 refusals (+3)" in out
    assert "evicted     window 99 slots" in out
    out = text_of(120, sample(1.0, new), sample(2.0, later, num_running_reqs=77))
    assert "running     1 of at most 9 (4 when memory last ran out), retracted 5 since start" in out
    assert "waiting     6" in out
    assert "starving    full 0 refusals; window 7 refusals (+3)" in out
    assert "waste       padding 0 B, partly used pages 600 B" in out


def test_rates_are_those_between_the_last_two_samples() -> None:
    before = arena(prompt_tokens=1000, hit_tokens=400)
    after = arena(prompt_tokens=1400, hit_tokens=700, evicted_tokens={"full": 50, "swa": 120})
    out = text_of(140, sample(10.0, before), sample(14.0, after))
    assert "hit rate    50.0 % of 1,400 prompt tokens, since the last sample 75.0 %" in out
    assert "full attention alone had 57.1 %; cut by window 7.1 %" in out
    assert "evicted     full 50 slots (0.0/s), window 120 slots (25.0/s)" in out
    idle = text_of(140, sample(10.0, before), sample(14.0, before))
    assert "since the last sample -" in idle


def test_evictions_are_counted_under_the_kinds_own_names() -> None:
    """The prefix tree calls windows swa and states mamba."""
    found = arena(evicted_tokens={"full": 1, "swa": 2, "mamba": 3})
    found["kinds"].append({**found["kinds"][1], "name": "state", "kind": "state"})
    found["kinds"][1].update(name="chunked", kind="chunked")
    (view,) = History().add(sample(1.0, found))
    assert {k.name: k.evicted_slots for k in view.kinds} == {"full": 1, "chunked": 2, "state": 3}


def test_a_server_that_started_anew_begins_a_new_trend() -> None:
    history = History()
    history.add(sample(1.0, arena(prompt_tokens=1000)))
    (view,) = history.add(sample(2.0, arena(prompt_tokens=100, hit_tokens=40)))
    assert view.hit_rate_since_last is None and len(view.free_trend) == 1
    (view,) = history.add(sample(3.0, arena(prompt_tokens=200, hit_tokens=80)))
    assert view.hit_rate_since_last == pytest.approx(0.4) and len(view.free_trend) == 2


def test_several_schedulers_have_a_block_each(server: ThreadingHTTPServer, capsys: Any) -> None:
    with canned(arena(rank=1, full=(0, 0, 0, 0)), arena(rank=0)) as two:
        assert top(two, "--once", "--format", "json") == 0
        views = json.loads(capsys.readouterr().out)["schedulers"]
        assert [view["dp_rank"] for view in views] == [0, 1], "whoever answered first"
        assert [view["large_pages_free"] for view in views] == [3, 7]
        assert top(two, "--once") == 0
    out = capsys.readouterr().out
    assert out.index("data parallel rank 0: arena") < out.index("data parallel rank 1: arena")


def test_json_has_a_schema_and_knows_unknown_from_zero(
    server: ThreadingHTTPServer, capsys: Any
) -> None:
    assert top(server, "--once", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1 and found["url"] == f"http://{address(server)}"
    (view,) = found["schedulers"]
    assert view["running_requests"] == 3 and view["waiting_requests"] == 2
    assert view["retractions"] is None and view["hit_rate"] == 0.4
    full, window = view["kinds"]
    assert full["held_bytes"] == 1200 and full["evicted_slots"] == 50
    assert window["evicted_slots"] == 20 and window["evicted_slots_per_second"] is None


def test_json_frames_are_one_line_each_and_the_second_has_rates(
    server: ThreadingHTTPServer, capsys: Any
) -> None:
    assert top(server, "--frames", "2", "--interval", "0.05", "--format", "json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    rates = [
        found["schedulers"][0]["kinds"][0]["evicted_slots_per_second"] for found in (first, second)
    ]
    assert rates == [None, 0.0]


def test_only_two_cheap_addresses_are_read(server: ThreadingHTTPServer, capsys: Any) -> None:
    assert top(server, "--once") == 0
    assert Handler.paths == ["/server_info", "/v1/loads?include=core"]


def test_a_server_without_loads_is_shown_all_the_same(
    server: ThreadingHTTPServer, capsys: Any
) -> None:
    Handler.loads = None
    assert top(server, "--once") == 0
    out = capsys.readouterr().out
    assert "running     - of at most" in out and "generates   7.5 tokens/s" in out


def test_once_fails_where_there_is_no_jenga_server(
    server: ThreadingHTTPServer, capsys: Any
) -> None:
    Handler.arenas = []
    assert top(server, "--once") == 1
    assert "serves without Jenga" in capsys.readouterr().err
    assert main(["top", "127.0.0.1:9", "--once"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "cannot be reached" in err


def test_a_server_of_another_version_is_told_apart(
    server: ThreadingHTTPServer, capsys: Any
) -> None:
    del Handler.arenas[0]["kinds"][0]["slots_held"]
    assert top(server, "--once") == 1
    assert "has no 'slots_held': install the same sglang-jenga" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [["--interval", "0"], ["--frames", "0"], ["--once", "--frames", "2"], ["--output", "x"]],
)
def test_a_command_line_that_makes_no_sense_exits_with_2(capsys: Any, args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "x", *args])
    assert ended.value.code == 2
    capsys.readouterr()


# ---- drawing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 20, 40, 80, 100, 250])
@pytest.mark.parametrize("rows", [1, 5, 24, None])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_a_frame_never_leaves_its_window(columns: int, rows: int | None, glyphs: Any) -> None:
    long = arena(rank=1)
    long["kinds"][0]["name"] = "a_kind_with_a_long_name"
    (out,) = [text_of(columns, sample(1.0, arena(), long), rows=rows, glyphs=glyphs)]
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    assert rows is None or len(lines) <= rows
    if glyphs is ASCII:
        assert out.isascii()


def test_a_window_that_is_too_low_says_so() -> None:
    assert (
        text_of(100, sample(1.0, arena()), rows=6)
        .splitlines()[-1]
        .endswith("more lines: make the window higher")
    )


def test_states_differ_without_colour() -> None:
    for glyphs in (UNICODE, ASCII):
        marks = [glyphs.held, glyphs.cached, glyphs.reserved, glyphs.hole, glyphs.free]
        marks.append(glyphs.sessions)
        assert len(set(marks)) == 6 and all(len(mark) == 1 for mark in marks)


def test_sessions_that_hold_memory_between_their_turns_are_shown() -> None:
    plain = arena()
    text = text_of(120, sample(1.0, plain))
    assert "session" not in text, "there is none"
    plain["kinds"][0]["slots_sessions"] = plain["kinds"][0]["slots_held"]
    plain["kinds"][0]["slots_held"] = 0
    plain["sessions"] = {"idle": 3, "evicted": 12, "evicted_tokens": 900}
    text = text_of(120, sample(1.0, plain))
    assert "3 hold memory between their turns, 12 gave it up since start" in text
    assert "by idle sessions" in text


def test_a_server_that_does_not_tell_sessions_apart_is_watched_on() -> None:
    history = History()
    for seconds in (1.0, 2.0, 3.0):
        old = arena()
        assert "slots_sessions" not in old["kinds"][0]
        (view,) = history.add(sample(seconds, old))
    assert view.kinds[0].session_bytes == 0 and len(view.free_trend) == 3


def test_bars_are_as_long_as_their_sum_however_many_parts_there_are() -> None:
    for columns in (1, 7, 10, 33):
        for parts in ([1.0] * 3, [0.4] * 7, [0.0, 0.3, 0.0], [10.0]):
            spans = bar([(value, "#", "") for value in parts], 10.0, columns)
            assert width_of(spans) == columns
            drawn = "".join(span.text for span in spans).count("#")
            assert drawn == max(1, round(columns * sum(parts) / 10.0))
    assert "#" not in bar([(0.0, "#", "")], 10.0, 5)[-1].text


def test_sparklines_show_little_as_something_and_nothing_as_nothing() -> None:
    assert sparkline([0.0, 0.01, 0.5, 1.0], 6, ASCII, top=1.0) == "   .=@"
    assert sparkline([], 3, ASCII) == "   "
    assert sparkline([0, 0], 2, UNICODE) == "  "
    assert sparkline(range(100), 3, ASCII) == "@@@"


def test_what_is_clipped_is_marked() -> None:
    assert rendered(clipped(line("abcdef"), 4, ASCII), colour=False) == "abc>"
    assert rendered(clipped(line("abcd"), 4, ASCII), colour=False) == "abcd"


# ---- a terminal ------------------------------------------------------------------------------


#: A shell in short: a session of its own, the command in the foreground. Without a parent in the
#: session the system would not stop it on Ctrl-Z.
_SHELL = """
import fcntl, os, runpy, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.setpgid(0, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, os.getpid())
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
runpy.run_module("sglang_jenga.cli", run_name="__main__")
"""


class Terminal:
    """``top`` in a pseudo terminal; ``screen`` has what it wrote."""

    def __init__(self, url: str, *args: str, **environ: str) -> None:
        self.leader, follower = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(follower)
        self.follower = follower
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SHELL, "top", url, "--interval", "0.1", *args],
            stdin=follower,
            stdout=follower,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "TERM": "xterm-256color",
                "PYTHONUTF8": "1",
                "NO_COLOR": "",
                **environ,
            },
            start_new_session=True,
        )
        self.screen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        """To the command, not to its shell."""
        os.killpg(os.tcgetpgrp(self.leader), number)

    def until(self, *wanted: str, seconds: float = 60.0) -> str:
        """What was written from now on, once it has all of ``wanted``."""
        self.screen = ""
        deadline = time.monotonic() + seconds
        while not all(text in self.screen for text in wanted):
            assert time.monotonic() < deadline, f"no {wanted} in {self.screen[-3000:]!r}"
            self._read(0.1)
        return self.screen

    def _read(self, seconds: float) -> None:
        if select.select([self.leader], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                self.screen += os.read(self.leader, 65536).decode(errors="replace")

    def ended(self) -> int:
        """The exit status; the screen has what came last."""
        self.screen = ""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        self._read(0.05)
        return self.process.wait(1)

    def until_keyboard_is_back(self) -> None:
        deadline = time.monotonic() + 60
        while termios.tcgetattr(self.follower) != self.before:
            assert time.monotonic() < deadline, "the keyboard's modes were not given back"
            time.sleep(0.01)

    def until_stopped(self) -> None:
        """It gives the keyboard back before it stops; what comes between would be lost."""
        command = ["ps", "-o", "stat=", "-p", str(os.tcgetpgrp(self.leader))]
        deadline = time.monotonic() + 60
        while not subprocess.run(command, capture_output=True, text=True).stdout.startswith("T"):
            assert time.monotonic() < deadline, "the command did not stop"
            time.sleep(0.01)

    def restored(self) -> bool:
        """Whether the normal screen, the cursor and the keyboard's modes are back."""
        left = "\x1b[?25h\x1b[?1049l" in self.screen
        return left and termios.tcgetattr(self.follower) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self.leader)
        os.close(self.follower)


@contextlib.contextmanager
def terminal(url: str, *args: str, **environ: str) -> Iterator[Terminal]:
    found = Terminal(url, *args, **environ)
    try:
        yield found
    finally:
        found.close()


def test_q_quits_and_gives_the_terminal_back(server: ThreadingHTTPServer) -> None:
    with terminal(address(server)) as screen:
        shown = screen.until("window", "q quits")
        assert "\x1b[?1049h\x1b[?25l" in shown and "\x1b[38;5;33m" in shown and "█" in shown
        os.write(screen.leader, b"x")  # another key does nothing
        screen.until("\x1b[H")
        os.write(screen.leader, b"q")
        assert screen.ended() == 0 and screen.restored()


def test_ctrl_c_quits_and_gives_the_terminal_back(server: ThreadingHTTPServer) -> None:
    with terminal(address(server)) as screen:
        screen.until("q quits")
        os.write(screen.leader, b"\x03")
        assert screen.ended() == 0 and screen.restored()


def test_sigterm_gives_the_terminal_back(server: ThreadingHTTPServer) -> None:
    with terminal(address(server)) as screen:
        screen.until("q quits")
        screen.signal(signal.SIGTERM)
        assert screen.ended() == 128 + signal.SIGTERM and screen.restored()


def test_ctrl_z_gives_the_terminal_to_the_shell_and_takes_it_again(
    server: ThreadingHTTPServer,
) -> None:
    with terminal(address(server)) as screen:
        screen.until("q quits")
        os.write(screen.leader, b"\x1a")
        screen.until("\x1b[?1049l")
        screen.until_keyboard_is_back()
        screen.until_stopped()
        screen.signal(signal.SIGCONT)
        screen.until("\x1b[?1049h", "window")
        os.write(screen.leader, b"q")
        assert screen.ended() == 0 and screen.restored()


def test_no_color_leaves_positions_but_no_colours(server: ThreadingHTTPServer) -> None:
    with terminal(address(server), NO_COLOR="1") as screen:
        shown = screen.until("window", "\x1b[J")
        assert not re.findall(r"\x1b\[[0-9;]*m", shown) and "█" in shown
        os.write(screen.leader, b"q")
        assert screen.ended() == 0


def test_frames_follow_the_size_of_the_window(server: ThreadingHTTPServer) -> None:
    with terminal(address(server), "--ascii", NO_COLOR="1") as screen:
        screen.until("free large pages", "\x1b[J")
        screen.resize(50, 8)
        shown = screen.until("more lines", "\x1b[J")
        last = shown.split("\x1b[H")[-1].split("\x1b[J")[0]
        lines = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]", "", last).split("\r\n")
        assert len(lines) == 8 and max(map(len, lines)) <= 50
        os.write(screen.leader, b"q")
        assert screen.ended() == 0


def test_a_server_that_goes_away_is_waited_for(server: ThreadingHTTPServer) -> None:
    with canned(arena()) as first:
        where, port = address(first), first.server_port
        with terminal(where, NO_COLOR="1") as screen:
            screen.until("of 1,000 prompt tokens")
            first.shutdown()
            first.server_close()
            shown = screen.until("not reachable, trying again")
            assert "window" in screen.until("\x1b[J") or "window" in shown, "the last frame stays"
            with canned(arena(prompt_tokens=2300), port=port):
                back = screen.until("of 2,300 prompt tokens", "\x1b[J")
                assert "not reachable" not in back.split("\x1b[H")[-1]
                Handler.broken = True
                screen.until("trying again: http", "says 503: warming up")
                Handler.broken = False
                os.write(screen.leader, b"q")
                assert screen.ended() == 0 and screen.restored()


def test_without_a_terminal_frames_follow_each_other_as_text(server: ThreadingHTTPServer) -> None:
    code = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('sglang_jenga.cli', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "top", address(server), "--interval", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    too_long = Timer(60, process.kill)
    too_long.start()
    seen = ""
    while seen.count("sglang-jenga top") < 3 and process.poll() is None:
        seen += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(20) == 130
    too_long.cancel()
    assert "\x1b" not in seen + rest


def test_top_loads_neither_torch_nor_numpy(server: ThreadingHTTPServer) -> None:
    code = (
        "import sys; from sglang_jenga.cli.__main__ import main\n"
        f"assert main(['top', '{address(server)}', '--once']) == 0\n"
        "import sglang_jenga.cli.live\n"
        "assert not {'torch', 'sglang', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
