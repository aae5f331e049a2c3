# SPDX-License-Identifier: Apache-2.0
"""What the judge's loop measures on the traces of the tests, for tests/unit/test_simulate_judge.py.

    record.py --judge DIR

One run of benchmark/capacity/drive_jenga.py per row; writes tests/data/judge_rows.json. The traces
lie in tests/data/traces under the names that the judge reads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "benchmark" / "capacity" / "drive_jenga.py"
DATA = ROOT / "tests" / "data"
#: (model, the judge's stream, budget as a share of the judge's, the judge's longest request)
ROWS = (
    ("gpt-oss-20b", "mooncake_conv", "0.4", 131072),
    ("gemma3-27b", "mooncake_conv", "0.4", 32768),
    ("qwen3-next-80b", "mooncake_conv", "0.5", 131072),
    ("gemma3-27b", "azure_code", "0.15", 32768),
    ("qwen3-next-80b", "azure_code", "0.15", 131072),
)


def measure(judge: str, model: str, stream: str, scale: str, longest: int) -> dict[str, Any]:
    """One row: what was run, and the figures that both loops report."""
    options = ["--model", model, "--stream", stream, "-n", "1000", "--budget-scale", scale]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.jsonl"
        environment = {**os.environ, "TRACES_DIR": str(DATA / "traces"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(DRIVER), "--judge", judge, *options, "--json", str(out)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if not out.exists():
            sys.exit(f"{model} {stream}: no record\n{done.stderr[-2000:]}")
        record = json.loads(out.read_text(encoding="utf-8"))
    result, final = record["result"], record["final"]
    if final["audit"] or final["held_bytes"]:
        sys.exit(f"{model} {stream}: leak, {final}")
    return {
        "command": " ".join(["TRACES_DIR=tests/data/traces drive_jenga.py", *options]),
        "model": model,
        "stream": stream,
        "arena_bytes": record["setup"]["num_large_pages"] * record["setup"]["large_page_bytes"],
        "longest_request_tokens": longest,
        "requests": record["stream"]["n"],
        "steps": result["steps"],
        "hit_tokens": final["hits"]["hit_tokens"],
        "full_only_tokens": final["hits"]["full_only_tokens"],
        "cut_tokens": final["hits"]["cut_tokens"],
        "preemptions": result["preemptions"],
        "recomputed_tokens": result["recomputed_tokens"],
        "prefill_tokens": result["prefill_tokens"],
        "decode_tokens": result["decode_tokens"],
        "peak_running": result["peak_running"],
        "mean_running": result["mean_running"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", default=os.environ.get("JUDGE_DIR", ""), required=False)
    args = parser.parse_args()
    if not (Path(args.judge or "/nonexistent") / "common.py").is_file():
        sys.exit(f"--judge {args.judge or '(not given)'}: no common.py there")
    rows = [measure(args.judge, *row) for row in ROWS]
    (DATA / "judge_rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row["model"], row["stream"], row["steps"], row["hit_tokens"], row["preemptions"])


if __name__ == "__main__":
    main()
