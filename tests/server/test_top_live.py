# SPDX-License-Identifier: Apache-2.0
"""``top`` and ``map`` against one real server under load: they show what it says it holds."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server import prompts
from server.client import Client
from server.pool import ServerPool, group_of

_COMMAND = [sys.executable, "-m", "sglang_jenga.cli"]


@pytest.mark.server
@pytest.mark.xdist_group(group_of("gemma3", "tight"))
def test_top_and_map_show_a_server_under_load(pool: ServerPool, tmp_path: Path) -> None:
    server = pool.get("gemma3", "tight").server
    client = Client(server.url)
    mark = server.log_size()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            client.map(client.generate, prompts.GROWING, concurrency=16)

    busy = threading.Thread(target=load)
    busy.start()
    try:
        kept = tmp_path / "arena.jsonl"
        page = tmp_path / "map.html"
        shown = _live(server.url)
        under_load = _json("top", server.url, "--frames", "4", "--interval", "1")
        record = ("--record", str(kept), "-o", str(page), "--samples", "6", "--interval", "0.5")
        _run("map", server.url, *record)
    finally:
        stop.set()
        busy.join()
    assert "window" in shown and "running" in shown and "\x1b[?1049l" in shown
    _check_load(under_load)
    snapshots = [json.loads(line)["schedulers"][0] for line in kept.read_text().splitlines()]
    for snapshot in snapshots:
        _check_map(snapshot["state"]["jenga"])
    assert (
        len({snapshot["state"]["jenga"]["large_page_map"]["cells"] for snapshot in snapshots}) > 1
    )
    assert page.read_text("utf-8").count('"unix_seconds"') == 6

    # At rest nothing moves: the frame, the page and the server's own numbers are the same.
    _wait_until_idle(client)
    (view,) = _json("top", server.url, "--once")["schedulers"]
    arena = client.arena()
    assert view["running_requests"] == 0 and view["large_pages_free"] == arena["large_pages_free"]
    for kind, told in zip(view["kinds"], arena["kinds"], strict=True):
        assert kind["held_bytes"] == 0 == told["slots_held"]
        assert kind["cached_bytes"] == told["slots_cached"] * told["slot_bytes"]
    assert "\x1b" not in _run("top", server.url, "--once")
    assert not server.trouble_since(mark)
    _measure(server.url)


def _run(*args: str) -> str:
    done = subprocess.run([*_COMMAND, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _json(*args: str) -> Any:
    """The only JSON object that a command prints, or a list of its lines."""
    text = _run(*args, "--format", "json")
    return json.loads(text) if "--once" in args else [json.loads(x) for x in text.splitlines()]


def _live(url: str) -> str:
    """What ``top`` writes to a terminal until its first frame with numbers, and q."""
    leader, follower = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [*_COMMAND, "top", url, "--interval", "0.5"], stdin=follower, stdout=follower, env=environ
    )
    os.close(follower)
    shown, deadline = "", time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    shown += os.read(leader, 65536).decode(errors="replace")
            if "prompt tokens" in shown:
                os.write(leader, b"q")
        assert process.wait(60) == 0, shown
        with contextlib.suppress(OSError):
            while select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65536).decode(errors="replace")
    finally:
        process.kill()
        os.close(leader)
    return shown


def _check_load(frames: list[dict[str, Any]]) -> None:
    """Requests run, prompts hit, a tight arena evicts; states fill each kind's large pages."""
    for frame in frames:
        (view,) = frame["schedulers"]
        owned = sum(kind["large_pages"] for kind in view["kinds"])
        assert owned + view["large_pages_free"] == view["large_pages_total"]
        for kind in view["kinds"]:
            states = ("held_bytes", "cached_bytes", "reserved_bytes", "hole_bytes")
            filled = sum(kind[state] for state in states)
            assert filled == kind["large_pages"] * view["large_page_bytes"]
    views = [frame["schedulers"][0] for frame in frames]
    assert any(view["running_requests"] for view in views)
    assert any(view["kinds"][0]["held_bytes"] for view in views)
    assert views[-1]["hit_rate"] > 0
    assert any(kind["evicted_slots_per_second"] for view in views for kind in view["kinds"])


def _check_map(arena: dict[str, Any]) -> None:
    """The text of the map has every large page of every kind, and all that is used in them."""
    found = arena["large_page_map"]
    pages = [0 for _ in arena["kinds"]]
    used, reserved = list(pages), list(pages)
    cells = 0
    for run in found["cells"].split(" "):
        length, _, cell = run.rpartition("*")
        times = int(length or 1)
        cells += times
        for part in cell.split("+") if cell != "-" else []:
            kind, *numbers = map(int, part.split("."))
            for column, number in zip((pages, used, reserved), numbers, strict=True):
                column[kind] += times * number
    per_cell = found["large_pages_per_cell"]
    assert cells == -(-arena["large_pages_total"] // per_cell)
    assert pages == [kind["large_pages"] for kind in arena["kinds"]]
    assert used == [kind["slots_held"] + kind["slots_cached"] for kind in arena["kinds"]]
    assert reserved == [kind["slots_reserved"] for kind in arena["kinds"]]


def _wait_until_idle(client: Client) -> None:
    deadline = time.monotonic() + 300
    while any(kind["slots_held"] for kind in client.arena()["kinds"]):
        assert time.monotonic() < deadline, "slots are held after the last answer"
        time.sleep(0.2)


def _measure(url: str) -> None:
    """Prints how long ``/server_info`` takes on a server at rest, and how much it answers."""
    seconds, size = [], 0
    for _ in range(20):
        begun = time.perf_counter()
        with urllib.request.urlopen(f"{url}/server_info", timeout=60) as reply:
            size = len(reply.read())
        seconds.append(time.perf_counter() - begun)
    print(f"/server_info: median {1000 * statistics.median(seconds):.1f} ms, {size:,} bytes")
