# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga map``: the map in ``/server_info``, recordings, and the page in a real browser."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canned import Handler, address, arena, canned
from sglang_jenga.cli.__main__ import main
from sglang_jenga.cli.map_page import page, page_data
from sglang_jenga.cli.recording import as_line, read
from sglang_jenga.cli.samples import Sample, SchedulerSample
from sglang_jenga.core.allocator import ArenaAllocator
from sglang_jenga.core.errors import ConfigError, Exhausted
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import KindSpec, RowSpec
from sglang_jenga.core.page_states import page_states
from sglang_jenga.core.policies import Full, Window
from sglang_jenga.sglang_ext.page_map import MAX_CELLS, large_page_map

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import screenshots  # noqa: E402


def allocator(num_large_pages: int) -> ArenaAllocator:
    """26 full or 5 window slots in a large page, as Gemma 3 27B has them."""
    sizes = ((Full(), 81_920), (Window(window_tokens=1024), 425_984))
    kinds = [
        KindSpec(
            name=policy.NAME,
            policy=policy,
            rows=(RowSpec(layer_id=index, part="k", row_bytes=row_bytes),),
        )
        for index, (policy, row_bytes) in enumerate(sizes)
    ]
    plan = plan_arena(kinds, arena_bytes=num_large_pages * 2_129_920)
    assert plan.num_large_pages == num_large_pages and plan.large_page_bytes == 2_129_920
    return ArenaAllocator(plan, num_rows=256)


def shuffled(alloc: ArenaAllocator, seed: int) -> ArenaAllocator:
    """Fill most of it, then free at random: as many different neighbours as there can be."""
    rng = random.Random(seed)
    pages = alloc.large.num_usable
    for row in range(200):
        try:
            alloc.extend([row], [[rng.randrange(pages // 8)], [rng.randrange(1 + pages // 40)]])
        except Exhausted:
            break
    for kind, small in enumerate(alloc.small_pages):
        used = np.flatnonzero(small.state == 2)
        chosen = np.random.default_rng(seed).permutation(used)[: len(used) // 2]
        alloc.free(kind, chosen)
    return alloc


def cells_of(found: dict[str, Any]) -> list[dict[int, tuple[int, int, int]]]:
    """The grammar of the text, read independently: kind -> (large pages, used, reserved)."""
    cells: list[dict[int, tuple[int, int, int]]] = []
    for run in found["cells"].split(" "):
        match = re.fullmatch(r"(?:(\d+)\*)?(-|\d+\.\d+\.\d+\.\d+(?:\+\d+\.\d+\.\d+\.\d+)*)", run)
        assert match is not None, run
        cell = {}
        if match[2] != "-":
            for part in match[2].split("+"):
                kind, *numbers = map(int, part.split("."))
                cell[kind] = tuple(numbers)
        cells += [cell] * int(match[1] or 1)  # type: ignore[list-item]
    return cells


# ---- the text in /server_info ----------------------------------------------------------------


def test_a_fresh_arena_is_one_run_of_free_cells() -> None:
    found = large_page_map(allocator(101))
    assert found == {
        "first_large_page": 1,
        "large_pages": 100,
        "large_pages_per_cell": 1,
        "small_pages_per_large_page": [26, 5],
        "cells": "100*-",
    }


@pytest.mark.parametrize("pages", [30, MAX_CELLS + 1])
def test_up_to_the_limit_every_large_page_is_told(pages: int) -> None:
    alloc = shuffled(allocator(pages), seed=1)
    found, states = large_page_map(alloc), page_states(alloc)
    assert found["large_pages_per_cell"] == 1
    columns = (states.owner, states.used_small_pages, states.reserved_small_pages)
    expected = [
        {} if owner < 0 else {owner: (1, used, reserved)}
        for owner, used, reserved in zip(*(c.tolist() for c in columns), strict=True)
    ]
    assert cells_of(found) == expected
    assert len({str(cell) for cell in expected}) > 3, "states that differ"


@pytest.mark.parametrize("pages", [MAX_CELLS + 2, 10_000])
def test_beyond_the_limit_neighbours_are_summed(pages: int) -> None:
    alloc = shuffled(allocator(pages), seed=2)
    found, states = large_page_map(alloc), page_states(alloc)
    group = found["large_pages_per_cell"]
    cells = cells_of(found)
    assert len(cells) == -(-(pages - 1) // group) <= MAX_CELLS
    for index, cell in enumerate(cells):
        here = slice(index * group, (index + 1) * group)
        owners = states.owner[here]
        for kind in range(2):
            mine = owners == kind
            used = int(states.used_small_pages[here][mine].sum())
            reserved = int(states.reserved_small_pages[here][mine].sum())
            told = cell.get(kind, (0, 0, 0))
            assert told == (int(mine.sum()), used, reserved), index


def test_the_text_is_bounded_for_any_arena() -> None:
    found = large_page_map(shuffled(allocator(100_000), seed=3))
    assert found["large_pages_per_cell"] == 25
    assert len(found["cells"]) < 100_000
    assert len(cells_of(found)) == 4000


# ---- the command -----------------------------------------------------------------------------


def test_one_snapshot_becomes_a_page(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "map.html"
    with canned(arena()) as server:
        assert main(["map", address(server), "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.match(r"wrote .*map\.html \(.*\): 1 snapshot of 10 large pages\n", said)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_can_go_to_standard_output(capsys: Any) -> None:
    with canned(arena()) as server:
        assert main(["map", address(server), "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


def test_snapshots_are_recorded_and_drawn_again(tmp_path: Path, capsys: Any) -> None:
    kept = tmp_path / "arena.jsonl"
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    with canned(arena(rank=1), arena()) as server:
        take = ["map", address(server), "--samples", "3", "--interval", "0.01"]
        assert main([*take, "--record", str(kept), "-o", str(first)]) == 0
        assert main([*take[:2], "--record", str(kept)]) == 0
    out, err = capsys.readouterr()
    assert "added 3 snapshots" in out and "added 1 snapshot to" in out
    assert "\x1b" not in out + err
    url, samples = read(kept)
    assert url == f"http://{address(server)}" and len(samples) == 4
    assert [s.state["jenga"]["dp_rank"] for s in samples[0].schedulers] == [0, 1]
    kept.write_text("".join(kept.read_text("utf-8").splitlines(keepends=True)[:3]), "utf-8")
    assert main(["map", "--from", str(kept), "-o", str(second)]) == 0
    assert second.read_text("utf-8") == first.read_text("utf-8"), "the same page from the file"


def test_reports_of_single_requests_are_not_kept(tmp_path: Path) -> None:
    with canned(arena()) as server:
        assert main(["map", address(server), "--record", str(tmp_path / "a")]) == 0
    assert '"rid"' not in (tmp_path / "a").read_text("utf-8")


def test_a_server_that_goes_away_leaves_out_a_snapshot(tmp_path: Path, capsys: Any) -> None:
    from sglang_jenga.cli import map as command
    from sglang_jenga.cli.server import Server, ServerError

    with canned(arena()) as server:
        client = Server(address(server), timeout_seconds=5.0)
        answers = iter([True, False, True])
        ask = client.states
        client.states = lambda: ask() if next(answers) else fail()  # type: ignore[method-assign]

        def fail() -> Any:
            raise ServerError("gone")

        assert len(command.record(client, 3, 0.01, None)) == 2
    assert "snapshot 2 is left out: gone" in capsys.readouterr().err


def test_an_older_server_is_told_apart(capsys: Any, tmp_path: Path) -> None:
    with canned(arena(cells=None)) as server:
        assert main(["map", address(server), "-o", str(tmp_path / "x")]) == 1
        Handler.arenas = []
        assert main(["map", address(server), "-o", str(tmp_path / "x")]) == 1
    err = capsys.readouterr().err
    assert "gives no large_page_map" in err and "serves without Jenga" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sample"),
        ("{}\n", "line 1 is not a sample"),
        ('\n{"schema":9}\n', "line 2: schema 9"),
        ("nonsense", "line 1 is not a sample"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read(path)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["url"],
        ["url", "--from", "x", "-o", "y"],
        ["--from", "x", "--record", "y"],
        ["url", "-o", "x", "--samples", "0"],
    ],
)
def test_a_command_line_that_makes_no_sense_exits_with_2(capsys: Any, args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["map", *args])
    assert ended.value.code == 2
    capsys.readouterr()


# ---- the page --------------------------------------------------------------------------------


def samples(*arenas: dict[str, Any]) -> list[Sample]:
    """One snapshot per arena, ten seconds apart, of a server with one scheduler."""
    return [
        Sample(
            unix_seconds=1_700_000_000.0 + 10 * index,
            schedulers=(SchedulerSample(state={"model": "tiny", "jenga": found}, load={}),),
        )
        for index, found in enumerate(arenas)
    ]


class Elements(HTMLParser):
    """Tags with their attributes, in the order of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(page_data("http://host:1", samples(arena())))
    elements = Elements(text)
    for tag, attributes in elements.found:
        assert not {"src", "href", "srcset"} & set(attributes), tag
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    policies = [a["content"] for a in elements.with_tag("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"]
    assert "@DATA@" not in text and "@SCRIPT@" not in text


def test_the_page_has_names_for_screen_readers() -> None:
    elements = Elements(page(page_data("http://host:1", samples(arena()))))
    assert elements.with_tag("html") == [{"lang": "en"}]
    (slider,) = elements.with_tag("input")
    assert slider["type"] == "range"
    assert {"for": slider["id"]} in elements.with_tag("label")
    for canvas in elements.with_tag("canvas"):
        assert canvas["role"] == "img" and canvas["aria-label"]


def test_a_name_cannot_break_out_of_the_page() -> None:
    evil = "</script><script>alert(1)</script>"
    found = samples(arena())
    found[0].schedulers[0].state["model"] = evil  # type: ignore[index]
    text = page(page_data(evil, found))
    assert evil not in text
    assert len(Elements(text).with_tag("script")) == 2


def browse(path: Path, *scripts: str) -> list[Any]:
    """What a real browser answers to these scripts; skips where there is none."""
    command = [sys.executable, str(ROOT / "scripts" / "browser.py"), str(path), *scripts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 3:
        pytest.skip(f"not run: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "error in the page" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A page of three snapshots: mixed, all free, all used by windows."""
    empty = arena(full=(0, 0, 0, 0), window=(0, 0), cells="10*-")
    windows = arena(full=(0, 0, 0, 0), window=(10, 0), cells="10*1.1.1.0")
    path = tmp_path / "map.html"
    text = page(page_data("http://host:1", samples(arena(), empty, windows)))
    path.write_text(text, encoding="utf-8")
    return path


_VIEW = "jengaMap.views.get(0)"
#: Colours in the middle of cell ``i``, from below to above, without transparency.
_PIXEL = """JSON.stringify((() => {
  const view = jengaMap.views.get(0), scale = devicePixelRatio, grid = view.grid;
  return %s.map(([i, share]) => {
    const x = (i %% grid.columns + 0.5) * grid.pitch - 0.5;
    const y = Math.floor(i / grid.columns) * grid.pitch + (1 - share) * grid.size;
    const at = view.canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data;
    return "#" + [...at].slice(0, 3).map((n) => n.toString(16).padStart(2, "0")).join("");
  });
})())"""


def test_a_browser_draws_every_large_page_in_its_kinds_colour(drawn: Path, tmp_path: Path) -> None:
    shot = tmp_path / "map.png"
    light = "document.documentElement.dataset.theme = 'light'; dispatchEvent(new Event('resize'))"
    # Cells 0 to 3 are full, 4 and 5 free, 6 and 7 windows in use, 8 a reserved window, 9 free.
    probes = [[0, 0.5], [4, 0.5], [6, 0.5], [9, 0.5]]
    counts, title, _, pixels, saved = browse(
        drawn,
        f"JSON.stringify({_VIEW}.drawn)",
        "document.title + '|' + document.querySelectorAll('canvas.map').length",
        light,
        _PIXEL % json.dumps(probes),
        f"shot:{shot}",
    )
    assert json.loads(counts) == {"cells": 10, "free": 3, "byKind": [4, 3]}
    assert title == "Arena of tiny|1"
    assert json.loads(pixels) == ["#0072b2", "#f1f1f1", "#d98200", "#f1f1f1"]
    assert saved and shot.read_bytes().startswith(b"\x89PNG")


def test_the_slider_moves_through_the_snapshots_by_keyboard(drawn: Path) -> None:
    told = f"[jengaMap.shown, {_VIEW}.drawn.byKind.join('/'), snapshot.ariaValueText || "
    told += "snapshot.getAttribute('aria-valuetext')].join('; ')"
    label = f"{_VIEW}.canvas.getAttribute('aria-label')"
    out = browse(
        drawn, "snapshot.focus()", told, "key:Right", told, "key:End", told, label, "key:Home", told
    )
    assert [answer for answer in out if isinstance(answer, str) and answer[:1].isdigit()] == [
        "0; 4/3; 1 of 3, 2023-11-14 22:13:20 UTC",
        "1; 0/0; 2 of 3, 2023-11-14 22:13:30 UTC",
        "2; 0/10; 3 of 3, 2023-11-14 22:13:40 UTC",
        "0; 4/3; 1 of 3, 2023-11-14 22:13:20 UTC",
    ]
    assert "Map of 10 large pages: full 0, window 10, free 0" in out


def test_pointing_at_a_cell_says_what_lies_there(drawn: Path) -> None:
    hover = f"""(() => {{
      const view = {_VIEW}, box = view.canvas.getBoundingClientRect(), pitch = view.grid.pitch;
      view.canvas.dispatchEvent(new MouseEvent("mousemove", {{
        clientX: box.left + %s * pitch + 3, clientY: box.top + 3 }}));
      return view.detail.textContent;
    }})()"""
    *told, table = browse(
        drawn,
        hover % 0,
        hover % 4,
        hover % 8,
        hover % 20,
        f"[...{_VIEW}.totals.querySelectorAll('tr')].map((row) => row.innerText).join('\\n')",
    )
    assert told == [
        "Large page 1: full (small pages: 6 used, 0 reserved, 0 holes)",
        "Large page 5: free",
        "Large page 9: window (small pages: 0 used, 1 reserved, 0 holes)",
        "Point at a cell, or focus the map and use the arrow keys.",
    ]
    rows = [line.split("\t") for line in table.splitlines()]
    assert rows[1][:3] == ["full", "full, 2 layers", "4"]
    assert rows[1][4:] == ["1,200 B", "600 B", "300 B", "300 B"]
    assert rows[2][:4] == ["window", "window(63), 12 layers", "3", "30.0 %"]
    assert rows[3][:4] == ["free", "", "3", "30.0 %"]


def test_a_map_of_a_large_arena_is_read_by_the_page_as_it_was_meant(tmp_path: Path) -> None:
    alloc = shuffled(allocator(10_000), seed=4)
    found = arena() | {"large_page_map": large_page_map(alloc), "large_pages_total": 9_999}
    path = tmp_path / "map.html"
    path.write_text(page(page_data("u", samples(found))), encoding="utf-8")
    (counts,) = browse(path, f"JSON.stringify({_VIEW}.drawn)")
    owned = [k.num_large for k in alloc.small_pages]
    free = alloc.num_free_large_pages
    assert json.loads(counts) == {"cells": 3333, "free": free, "byKind": owned}


# ---- pictures in the documentation -----------------------------------------------------------


def test_the_picture_of_top_shows_what_top_draws() -> None:
    drawn_now = screenshots.svg(screenshots.top_lines())
    kept = (ROOT / "docs/images/top.svg").read_text(encoding="utf-8")
    assert kept == drawn_now, "run `python scripts/screenshots.py` and commit what it writes"


def test_the_recording_of_the_documentation_is_one_of_this_version() -> None:
    url, found = read(screenshots.RECORDING)
    assert len(found) > 10 and page_data(url, found)["schema"] == 1
    again = [json.loads(as_line(sample, url)) for sample in found]
    assert again == [json.loads(x) for x in screenshots.RECORDING.read_text("utf-8").splitlines()]
