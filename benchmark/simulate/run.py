# SPDX-License-Identifier: Apache-2.0
"""How fast is a replay, by engine? Also draws the picture of docs/simulate.md.

    run.py --azure FILE [--mooncake FILE] [--only hour week ...]    rows go to results/speed.jsonl
    run.py --table                                                  only rewrite table.md
    run.py --picture                                                only draw docs/simulate.svg

Each row is one run of ``sglang-jenga simulate`` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from provenance import commit  # noqa: E402

RAW = HERE / "results" / "speed.jsonl"
SLICE = ROOT / "tests" / "data" / "traces" / "mooncake_conversation_trace.jsonl"
#: Hours in a week: the Azure code trace is about one.
WEEK = 168
#: name -> (trace, options). The last two are the same requests on both engines.
ROWS = {
    "hour, llama31-8b": ("azure", "--model llama31-8b --kv 20GiB"),
    "hour, gemma3-27b": ("azure", "--model gemma3-27b --kv 17GiB"),
    "week, llama31-8b": ("azure", f"--model llama31-8b --kv 20GiB --repeat {WEEK}"),
    "week, gemma3-27b": ("azure", f"--model gemma3-27b --kv 17GiB --repeat {WEEK}"),
    "week, gemma3-27b, pages of 16": (
        "azure",
        f"--model gemma3-27b --kv 17GiB --page-size 16 --repeat {WEEK}",
    ),
    "chat, gpt-oss-20b": ("mooncake", "--model gpt-oss-20b --kv 8GiB --limit 400"),
    "chat, qwen3-next-80b": ("mooncake", "--model qwen3-next-80b --kv 6GiB --limit 400"),
    "hour, gemma3-27b, server classes": (
        "azure",
        "--model gemma3-27b --kv 17GiB --engine server --disable-radix-cache",
    ),
}


def simulate(*words: str) -> dict[str, Any]:
    """One run of the command; its JSON."""
    paths = [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "sglang_jenga.cli", "simulate", *words, "--format", "json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(name: str, trace: str, options: str, path: Path) -> None:
    found = simulate("--trace", str(path), *options.split())
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    row = {
        "commit": commit(),
        "name": name,
        "command": f"sglang-jenga simulate --trace {trace} {options}",
        "engine": found["engine"],
        "requests": found["requests"],
        **found["result"],
        "most_host_mib_so_far": peak_mib,
    }
    with RAW.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{name}: {row['seconds']:.1f} s, {row['events_per_second']:,} events/s", flush=True)


def write_table() -> None:
    """The latest row of each name."""
    rows = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["name"]] = row
    text = [
        "<!-- written by run.py from results/speed.jsonl -->",
        "# Seconds of a replay",
        "",
        "| replay | engine | requests | steps | events | seconds | events/s |",
        "|---" * 7 + "|",
    ]
    for name in ROWS:
        if (found := rows.get(name)) is None:
            continue
        numbers = (found["requests"], found["steps"], found["events"])
        cells = [name, found["engine"], *(f"{number:,}" for number in numbers)]
        cells += [f"{found['seconds']:.1f}", f"{found['events_per_second']:,}"]
        text.append("| " + " | ".join(cells) + " |")
    (HERE / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def draw() -> None:
    """A replay of the tests' slice of chat."""
    picture = ROOT / "docs" / "simulate.svg"
    options = ["--model", "gemma3-27b", "--trace", str(SLICE), "--kv", "7GiB"]
    simulate(*options, "--timeline", str(picture))
    lines = picture.read_text(encoding="utf-8").splitlines()
    picture.write_text("\n".join(map(str.rstrip, lines)) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--azure", type=Path, help="AzureLLMInferenceTrace_code.csv of 2023")
    parser.add_argument("--mooncake", type=Path, help="Mooncake's conversation trace")
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name begins so")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", action="store_true")
    args = parser.parse_args()
    if args.picture:
        draw()
        return
    if not args.table:
        RAW.parent.mkdir(exist_ok=True)
        for name, (trace, options) in ROWS.items():
            path = getattr(args, trace)
            if path is not None and name.startswith(tuple(args.only)):
                measure(name, trace, options, path)
    write_table()


if __name__ == "__main__":
    main()
