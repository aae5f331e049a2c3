# SPDX-License-Identifier: Apache-2.0
"""What does a visitor of a shared prefix cost when thousands came before? Beside SGLang's cores.

    shared_prefix.py [--visitors 16,128,1024,8192] [--windows 128,1024,4096] [--repeats 40]
    shared_prefix.py --table    only rewrite results/shared_prefix.md

One process holds the three systems, each serves the same visitors; they take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from sglang.srt.runtime_context import publish, reset_context
from sglang.srt.server_args import ServerArgs

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from provenance import commit  # noqa: E402

from eviction import Python, Rust  # noqa: E402
from sglang_jenga.sglang_ext import plugin  # noqa: E402
from systems import VOCABULARY, Jenga, System  # noqa: E402

RAW, TABLE = HERE / "results" / "shared_prefix.jsonl", HERE / "results" / "shared_prefix.md"
SYSTEMS: tuple[type[System], ...] = (Rust, Python, Jenga)
SHARED_TOKENS = 4000
LEVELS, SIBLINGS = 4, 2
QUESTION_TOKENS = range(16, 1000)
#: What the systems hold: the prefix, and the questions of some 700 visitors. Older ones go.
HELD_TOKENS = 400_000
#: The measured question begins with it, so that it leaves the prefix where the prefix ends.
NOBODYS_TOKEN = VOCABULARY - 1
OPERATIONS = ("match", "lock and unlock")
#: Floors: cost after the most visitors over cost after the fewest, and over SGLang's Python core.
MOST_GROWTH, MOST_OF_PYTHON = 1.5, 3.0

Draw = Callable[[int], list[int]]


def one_prefix(draw: Draw) -> list[list[int]]:
    """Every visitor brings the same tokens and leaves at their end."""
    return [draw(SHARED_TOKENS)]


def tree_of_prefixes(draw: Draw) -> list[list[int]]:
    """Four levels, two ways on at each. A visitor leaves at the end of any level."""
    levels = SHARED_TOKENS // LEVELS
    pieces = {(): list[int]()}
    for depth in range(LEVELS):
        for path in [path for path in pieces if len(path) == depth]:
            for way in range(SIBLINGS):
                pieces[(*path, way)] = pieces[path] + draw(levels)
    return [pieces[path] for path in sorted(pieces, key=len, reverse=True) if path]


#: The prefixes of a layout, the measured one first.
LAYOUTS = {"one prefix": one_prefix, "tree of prefixes": tree_of_prefixes}


def microseconds(work: Callable[..., Any], *args: Any) -> float:
    begin = time.thread_time()
    work(*args)
    return (time.thread_time() - begin) * 1e6


def lock_and_unlock(system: System, node: Any) -> None:
    system.tree.unlock(system.tree.lock(node))


def visit(system: System, prompt: Sequence[int]) -> None:
    system.drop(system.start([prompt]))


def measure(
    systems: Sequence[System], prefix: Sequence[int], draw: Draw, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """By system: tokens of the hit, nodes on the way there, microseconds of each operation."""
    taken: dict[str, dict[str, list[float]]] = {
        system.name: {"hit": [], "nodes": [], **{operation: [] for operation in OPERATIONS}}
        for system in systems
    }
    gc.collect()
    gc.disable()
    for repeat in range(repeats + 1):  # the first one warms up
        prompt = [*prefix, NOBODYS_TOKEN, *draw(200)]
        for system in systems:
            req = system.request(prompt)
            matched = microseconds(req.init_next_round_input, system.tree)
            locked = microseconds(lock_and_unlock, system, req.last_node)
            hits_all = req.prefix_len == len(prefix)
            assert hits_all or not isinstance(system, Jenga), "the arena keeps the prefix's window"
            if repeat:
                row = taken[system.name]
                row["match"].append(round(matched, 1))
                row["lock and unlock"].append(round(locked, 1))
                row["hit"] = [req.prefix_len]
                row["nodes"] = [len(system.tree.tree_core.collect_path_info([req.last_node])[0])]
    gc.enable()
    return taken


def run(
    layout: str, window: int, visitors: Sequence[int], repeats: int
) -> list[tuple[int, dict[str, dict[str, list[float]]]]]:
    """(visitors so far, what a visit cost then), for each of ``visitors``."""
    rng = random.Random(window)

    def draw(tokens: int) -> list[int]:
        return [rng.randrange(NOBODYS_TOKEN) for _ in range(tokens)]

    prefixes = LAYOUTS[layout](draw)
    systems = [
        kind(
            shape="gemma3",
            page_tokens=1,
            tokens=HELD_TOKENS,
            rows=8,
            context=SHARED_TOKENS + QUESTION_TOKENS.stop + 64,
            device="cpu",
            window=window,
        )
        for kind in SYSTEMS
    ]
    measured, served, rows = prefixes[0], 0, []
    for prefix in prefixes:  # what grows from here on is the number of visitors
        for system in systems:
            visit(system, prefix)
    for target in visitors:
        while served < target:
            by_length = rng.choice(sorted({len(prefix) for prefix in prefixes}))
            prefix = rng.choice([prefix for prefix in prefixes if len(prefix) == by_length])
            prompt = [*prefix, *draw(rng.choice(QUESTION_TOKENS))]
            for system in systems:
                visit(system, prompt)
            served += 1
        for system in systems:  # stock keeps a window where a prompt ends, nowhere before
            visit(system, measured)
        rows.append((target, measure(systems, measured, draw, repeats)))
    return rows


def write_table() -> None:
    rows: dict[tuple[str, int], dict[int, Any]] = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault((row["layout"], row["window"]), {})[row["visitors"]] = row["taken"]
    names = [system.name for system in SYSTEMS]
    text = [
        "<!-- written by shared_prefix.py from shared_prefix.jsonl -->",
        f"# Microseconds to match a prefix of {SHARED_TOKENS:,} tokens and to lock it",
        "",
        "Median (interquartile range) of this thread's CPU time. Nodes: on the way to "
        "the end of the prefix.",
        "",
        f"| prefixes | window | operation | visitors | {' | '.join(names)} | jenga / python "
        "| jenga, of the fewest visitors | nodes: python, jenga | hit: python, jenga |",
        "|---" * (8 + len(names)) + "|",
    ]
    missed = []
    for (layout, window), by_visitors in sorted(rows.items()):
        for operation in OPERATIONS:
            fewest = statistics.median(by_visitors[min(by_visitors)][names[-1]][operation])
            for visitors, taken in sorted(by_visitors.items()):
                cells = []
                for name in names:
                    low, middle, high = statistics.quantiles(taken[name][operation], n=4)
                    cells.append(f"{middle:,.0f} ({high - low:,.0f})")
                python, jenga = (statistics.median(taken[n][operation]) for n in names[1:])
                nodes, hits = (
                    ", ".join(f"{taken[name][what][0]:,}" for name in names[1:])
                    for what in ("nodes", "hit")
                )
                text.append(
                    f"| {layout} | {window:,} | {operation} | {visitors:,} | {' | '.join(cells)} "
                    f"| {jenga / python:.2f} | {jenga / fewest:.2f} | {nodes} | {hits} |"
                )
            if jenga / fewest > MOST_GROWTH or jenga / python > MOST_OF_PYTHON:
                missed.append(f"{layout}, window {window:,}, {operation}")
    floors = (
        f"at most {MOST_GROWTH} times the cost of the fewest visitors, "
        f"{MOST_OF_PYTHON:g} times the Python core's"
    )
    text += [
        "",
        f"Floors, after the most visitors: {floors}. Missed: {'; '.join(missed) or 'none'}.",
    ]
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--visitors", default="16,128,1024,8192")
    parser.add_argument("--windows", default="128,1024,4096")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        reset_context()
        publish(ServerArgs(model_path="dummy", device="cpu"), role="tokenizer")
        plugin.load()
        visitors = sorted(map(int, args.visitors.split(",")))
        RAW.write_text("", encoding="utf-8")
        for window in map(int, args.windows.split(",")):
            for layout in LAYOUTS:
                for served, taken in run(layout, window, visitors, args.repeats):
                    row = {
                        "commit": commit(),
                        "cpu": platform.processor() or platform.machine(),
                        "python": platform.python_version(),
                        "sglang": metadata.version("sglang"),
                        "layout": layout,
                        "window": window,
                        "visitors": served,
                        "taken": taken,
                    }
                    with RAW.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{layout}, window {window}, {served} visitors", flush=True)
    write_table()


if __name__ == "__main__":
    main()
