# SPDX-License-Identifier: Apache-2.0
"""What newcomers leave to the cache: rows of the judge before and after, and those of peers.

    newcomers.py NAME RECORDS.jsonl ...   append rows of these records (--json of a driver) as NAME
    newcomers.py                          print the table from results/newcomers.jsonl

NAME: ``before``, ``after`` or any other; peers are named by themselves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RAW = Path(__file__).resolve().parent / "results" / "newcomers.jsonl"
BEFORE, AFTER = "before", "after"


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a record of the judge."""
    result, peer = record["result"], record["peer"]
    return {
        "manager": name if peer == "jenga" else f"{peer} {record['mode']}",
        "model": record["model"],
        "stream": record["stream"],
        "budget_gib": record["budget_gib"],
        "steps": result["steps"],
        "hit": result["prefix_hit_ratio"],
        "roofline": result["roofline"],
        "running_while_somebody_waits": result["mean_running_saturated"],
        "held_over_budget": result["sat_held_over_budget"],
        "preemptions": result["preemptions"],
        "prefill_tokens": result["prefill_tokens"],
    }


def print_table() -> None:
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        stream = row["stream"]
        about = f"{stream['stream']}, {stream['n']} of {stream.get('seen', stream['n'])}"
        key = (row["model"], about, f"{row['budget_gib']:g}", str(round(stream["prompt_mean"])))
        found.setdefault(key, {})[row["manager"]] = row
    print(
        "| model | stream | GiB | steps | hits, % | seconds | of before | peers: steps, hits, % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (model, about, gib, _), rows in sorted(found.items()):
        if BEFORE not in rows or AFTER not in rows:
            continue
        pair = rows.pop(BEFORE), rows.pop(AFTER)
        steps = " -> ".join(f"{row['steps']:,}" for row in pair)
        hits = " -> ".join(f"{100 * row['hit']:.1f}" for row in pair)
        seconds = [row["roofline"]["busy_seconds"] for row in pair]
        others = "; ".join(
            f"{name} {row['steps']:,}, {100 * row['hit']:.1f}" for name, row in sorted(rows.items())
        )
        took = " -> ".join(f"{second:.1f}" for second in seconds)
        ratio = f"{seconds[1] / seconds[0]:.3f}"
        print(f"| {model} | {about} | {gib} | {steps} | {hits} | {took} | {ratio} | {others} |")


def main() -> None:
    if len(sys.argv) == 1:
        print_table()
        return
    with RAW.open("a", encoding="utf-8") as file:
        for path in sys.argv[2:]:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                if "result" in record:
                    file.write(json.dumps(row_of(sys.argv[1], record)) + "\n")


if __name__ == "__main__":
    main()
