# SPDX-License-Identifier: Apache-2.0
"""What does an eviction cost as the tree grows? The arena beside SGLang's rust and python cores.

    eviction.py [--nodes 1000,10000,100000] [--repeats 9]
    eviction.py --table         only rewrite results/eviction.md

One process holds the three systems, each with the same cached prompts; they take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.runtime_context import publish, reset_context
from sglang.srt.server_args import ServerArgs

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from provenance import commit  # noqa: E402

from sglang_jenga.sglang_ext import plugin  # noqa: E402
from systems import VOCABULARY, Jenga, Stock, System  # noqa: E402

RAW, TABLE = HERE / "results" / "eviction.jsonl", HERE / "results" / "eviction.md"
#: A conversation: a shared beginning and what is its own.
SHARED_TOKENS, OWN_TOKENS = 16, 8
#: One call makes room for that many tokens, as a chunk of a prompt would.
ASKED_TOKENS = 512
MATCHES = 64


class Rust(Stock):
    name, tree_core = "stock, rust core", "rust"


class Python(Stock):
    name, tree_core = "stock, python core", "python"


SYSTEMS: tuple[type[System], ...] = (Rust, Python, Jenga)


def prompts(nodes: int) -> list[list[int]]:
    """As many prompts as the tree shall have leaves; every eighth begins anew."""
    rng = random.Random(nodes)
    shared: list[int] = []
    found = []
    for i in range(nodes):
        if i % 8 == 0:
            shared = [rng.randrange(VOCABULARY) for _ in range(SHARED_TOKENS)]
        found.append([*shared, *(rng.randrange(VOCABULARY) for _ in range(OWN_TOKENS))])
    return found


def fill(system: System, cached: Sequence[Sequence[int]]) -> None:
    for first in range(0, len(cached), 16):
        system.drop(system.start(cached[first : first + 16]))


def microseconds(work: Callable[..., Any], *args: Any) -> float:
    begin = time.thread_time()
    work(*args)
    return (time.thread_time() - begin) * 1e6


def match(system: System, wanted: Sequence[Sequence[int]]) -> None:
    for prompt in wanted:
        system.request([*prompt, 1]).init_next_round_input(system.tree)


def evict(system: System) -> None:
    window = ASKED_TOKENS if system.hybrid else 0
    system.tree.evict(EvictParams(num_tokens=ASKED_TOKENS, swa_num_tokens=window))


def run(shape: str, nodes: int, repeats: int) -> dict[str, Any]:
    """Microseconds per matched prompt and per eviction of ASKED_TOKENS, by system and repeat."""
    cached = prompts(nodes)
    tokens = 2 * nodes * (SHARED_TOKENS // 8 + OWN_TOKENS) + 4096
    systems = [
        kind(shape=shape, page_tokens=1, tokens=tokens, rows=32, context=256, device="cpu")
        for kind in SYSTEMS
    ]
    for system in systems:
        fill(system, cached)
    rng = random.Random(1)
    taken: dict[str, dict[str, list[float]]] = {
        system.name: {"match": [], "evict": []} for system in systems
    }
    for _ in range(repeats + 1):  # the first one warms up
        wanted = rng.sample(cached[len(cached) // 2 :], min(MATCHES, len(cached) // 2))
        for system in systems:
            per_match = microseconds(match, system, wanted) / len(wanted)
            taken[system.name]["match"].append(per_match)
            taken[system.name]["evict"].append(microseconds(evict, system))
    return {name: {op: values[1:] for op, values in ops.items()} for name, ops in taken.items()}


def write_table() -> None:
    rows = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["shape"], row["nodes"]] = row
    names = [system.name for system in SYSTEMS]
    text = [
        "<!-- written by eviction.py from eviction.jsonl -->",
        f"# Microseconds per eviction of {ASKED_TOKENS} tokens and per matched prompt",
        "",
        "Median (interquartile range) of this thread's CPU time.",
        "",
        f"| shape | leaves | operation | {' | '.join(names)} | jenga / rust | jenga / python |",
        "|---" * (5 + len(names)) + "|",
    ]
    for (shape, nodes), row in sorted(rows.items()):
        for operation in ("evict", "match"):
            values = [row["microseconds"][name][operation] for name in names]
            cells = []
            for found in values:
                low, middle, high = statistics.quantiles(found, n=4)
                cells.append(f"{middle:,.0f} ({high - low:,.0f})")
            rust, python, jenga = (statistics.median(found) for found in values)
            text.append(
                f"| {shape} | {nodes:,} | {operation} | {' | '.join(cells)} "
                f"| {jenga / rust:.2f} | {jenga / python:.2f} |"
            )
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nodes", default="1000,10000,100000")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        reset_context()
        publish(ServerArgs(model_path="dummy", device="cpu"), role="tokenizer")
        plugin.load()
        for nodes in map(int, args.nodes.split(",")):
            for shape in ("uniform", "small"):
                row = {
                    "commit": commit(),
                    "cpu": platform.processor() or platform.machine(),
                    "python": platform.python_version(),
                    "sglang": metadata.version("sglang"),
                    "shape": shape,
                    "nodes": nodes,
                    "microseconds": run(shape, nodes, args.repeats),
                }
                with RAW.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{shape} {nodes}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
