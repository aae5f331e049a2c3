# SPDX-License-Identifier: Apache-2.0
"""Run the judge's matrix, one process at a time, and write the table.

    run.py --judge DIR [--vllm-python PATH] [--only jenga ...] [--models ...] [--streams ...]
    run.py --judge DIR --table          only rewrite results.md from results.jsonl

Every record goes to ``results.jsonl`` as the judge wrote it, with ``manager`` and ``row`` added; a
later record of the same manager and row replaces an earlier one in the table. Managers of one row
run one after the other, so their host times were taken under similar load.
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from provenance import commit  # noqa: E402

RAW, TABLE = HERE / "results.jsonl", HERE / "results.md"

MODELS = (
    "llama31-8b",
    "gemma2-9b",
    "gemma3-27b",
    "gpt-oss-20b",
    "ministral-8b",
    "llama4-scout",
    "llama32-11b-vision",
    "jamba-v0.1",
    "qwen3-next-80b",
    "qwen3-next-80b-fp32ssm",
)
#: Models with recurrent states: SGLang caps the requests that run by its split, so that its unified
#: memory without that cap is one more manager, and so is its other way of keeping states.
RECURRENT = ("jamba-v0.1", "qwen3-next-80b", "qwen3-next-80b-fp32ssm")
#: Models that SGLang itself serves from two pools, where its unified memory is another manager.
HYBRID_IN_SGLANG = ("gpt-oss-20b", "llama4-scout", *RECURRENT)
STREAMS = {
    "mooncake_conv": ("-n", "400"),
    "mooncake_chat": ("-n", "400"),
    "azure_code": ("-n", "1500", "--budget-scale", "0.25"),
}
#: SGLang's unified memory without the cap, by its strategy of keeping states.
NO_CAP = {
    "uncapped-extra": ("--mode", "unified_nolimit", "--opt", "strategy=extra_buffer"),
    "uncapped-none": ("--mode", "unified_nolimit", "--opt", "strategy=no_buffer"),
}
SGLANG = ("static", "unified", *NO_CAP)
MANAGERS = ("ideal-inf", "ideal-none", "vllm", *SGLANG, "jenga")
PEERS = ("vllm", *SGLANG)
#: Steps may exceed the best peer's by this much (the judge is deterministic, streams are short).
TOLERANCE = 1.02


def command(manager: str, args: argparse.Namespace) -> list[str]:
    """The driver of one manager, without the row's options."""
    python, judge = sys.executable, Path(args.judge)
    if manager == "jenga":
        return [python, str(HERE / "drive_jenga.py"), "--judge", str(judge)]
    if manager == "vllm":
        return [args.vllm_python, str(judge / "drive_vllm.py")]
    if manager.startswith("ideal"):
        return [python, str(judge / "drive_ideal.py"), "--mode", manager.split("-")[1]]
    mode = NO_CAP.get(manager, ("--mode", manager))
    return [python, str(judge / "drive_sglang.py"), *mode]


def measure(manager: str, model: str, stream: str, args: argparse.Namespace) -> None:
    """Run one manager on one row and append its record."""
    options = ["--model", model, "--stream", stream, *STREAMS[stream], *args.extra.split()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.jsonl"
        line = [*command(manager, args), *options, "--wall-limit", "1500", "--json", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        if not out.exists():
            print(f"{manager} {model} {stream}: no record\n{done.stderr[-2000:]}", flush=True)
            return
        record = json.loads(out.read_text())
    record["manager"] = manager
    record["commit"] = commit()
    record["row"] = {"model": model, "stream": stream, "extra": args.extra}
    with RAW.open("a") as file:
        file.write(json.dumps(record) + "\n")
    result = record.get("result", {})
    print(
        f"{manager:10} {model} {stream} {args.extra}: steps {result.get('steps')} "
        f"hit {result.get('prefix_hit_ratio')} us/step {result.get('host_us_per_step')} "
        f"{record.get('error', '')}",
        flush=True,
    )


def load() -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """Latest record per row and manager."""
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for line in RAW.read_text().splitlines():
        record = json.loads(line)
        row = record["row"]
        rows.setdefault((row["stream"], row["model"], row["extra"]), {})[record["manager"]] = record
    return rows


def problems(managers: dict[str, dict[str, Any]]) -> list[str]:
    """Which goals the row misses."""
    jenga = managers["jenga"]
    if "result" not in jenga:
        return [f"failed: {jenga['error']}"]
    result, final = jenga["result"], jenga["final"]
    steps = {
        name: record["result"]["steps"] for name, record in managers.items() if "result" in record
    }
    hits = {
        name: record["result"]["prefix_hit_ratio"]
        for name, record in managers.items()
        if "result" in record
    }
    peers = [steps[name] for name in PEERS if name in steps]
    out = []
    if result["held_bytes_after_drain"] or result["timed_out"] or final["audit"]:
        out.append("leak or unfinished")
    if final["large_pages_missing_after_evicting_all"] or final["audit_after_evicting_all"]:
        out.append("large pages lost")
    if peers and steps["jenga"] > TOLERANCE * min(peers):
        out.append(f"steps {steps['jenga'] / min(peers):.3f} x best peer")
    unified = [hits[name] for name in SGLANG[1:] if name in hits]
    peer_hit = max(unified, default=hits.get("static", 0.0))
    if hits["jenga"] < peer_hit:
        out.append(f"hits {100 * hits['jenga']:.1f} % < {100 * peer_hit:.1f} %")
    return out


def cell(managers: dict[str, dict[str, Any]], name: str, field: str, percent: bool = False) -> str:
    record = managers.get(name)
    if record is None:
        return ""
    if "result" not in record:
        return "failed"
    value = record["result"][field]
    return f"{100 * value:.1f}" if percent else f"{value:g}"


def bound(final: dict[str, Any]) -> tuple[str, str]:
    """What full attention alone would have hit in this run, and the share of it that was hit."""
    hits = final.get("hits")
    if not hits or not hits["full_only_tokens"]:
        return "", ""
    alone = hits["full_only_tokens"]
    return f"{100 * alone / hits['prompt_tokens']:.1f}", f"{100 * hits['hit_tokens'] / alone:.1f}"


def prefill(managers: dict[str, dict[str, Any]], name: str) -> str:
    """Millions of prompt tokens computed, those of preempted requests again."""
    result = managers.get(name, {}).get("result")
    return f"{result['prefill_tokens'] / 1e6:.2f}" if result else ""


def write_table() -> None:
    """results.md: one table per stream."""
    text = [
        "<!-- written by run.py from results.jsonl -->",
        "# Capacity: jenga beside vLLM, SGLang static and SGLang unified",
        "",
        "Steps to drain the stream (fewer is better), prefix hits, and host time. See README.md.",
    ]
    rows = load()
    for stream in STREAMS:
        for extra in sorted({key[2] for key in rows if key[0] == stream}):
            text += [
                "",
                f"## {stream} {' '.join(STREAMS[stream])} {extra}".rstrip(),
                "",
                HEADER,
                RULE,
            ]
            for model in MODELS:
                managers = rows.get((stream, model, extra), {})
                if "jenga" in managers:
                    text.append(table_row(model, managers))
    TABLE.write_text("\n".join(text) + "\n")


HEADER = (
    "| model | steps: jenga | vLLM | static | unified | ideal inf | ideal none | / best peer "
    "| / ideal inf | hit %: jenga | vLLM | static | unified | preempt: jenga | waste % "
    "| partial pages % | needed / budget % | us/step: jenga | vLLM | static | unified "
    "| full attention alone % | hit of that % | prefill Mtok: jenga | vLLM | static | unified "
    "| missed goals |"
)
RULE = "|" + "---|" * 28


def table_row(model: str, managers: dict[str, dict[str, Any]]) -> str:
    def get(name: str, field: str, percent: bool = False) -> str:
        return cell(managers, name, field, percent)

    jenga = managers["jenga"]
    steps = {n: r["result"]["steps"] for n, r in managers.items() if "result" in r}
    peers = [steps[name] for name in PEERS if name in steps]
    mine = steps.get("jenga", 0)
    final = jenga.get("final", {})
    partial = final.get("mean_reserved_over_budget", 0) + final.get("mean_holes_over_budget", 0)
    cells = [
        model,
        get("jenga", "steps"),
        get("vllm", "steps"),
        get("static", "steps"),
        get("unified", "steps"),
        get("ideal-inf", "steps"),
        get("ideal-none", "steps"),
        f"{mine / min(peers):.3f}" if peers else "",
        f"{mine / steps['ideal-inf']:.3f}" if "ideal-inf" in steps else "",
        get("jenga", "prefix_hit_ratio", True),
        get("vllm", "prefix_hit_ratio", True),
        get("static", "prefix_hit_ratio", True),
        get("unified", "prefix_hit_ratio", True),
        get("jenga", "preemptions"),
        get("jenga", "waste", True),
        f"{100 * partial:.2f}",
        get("jenga", "sat_needed_over_budget", True),
        get("jenga", "host_us_per_step"),
        get("vllm", "host_us_per_step"),
        get("static", "host_us_per_step"),
        get("unified", "host_us_per_step"),
        *bound(final),
        *(prefill(managers, name) for name in ("jenga", "vllm", "static", "unified")),
        "; ".join(problems(managers)) or "none",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--judge", default=os.environ.get("JUDGE_DIR", ""))
    parser.add_argument("--vllm-python", default="", help="python of a venv with vllm==0.33.0")
    parser.add_argument("--only", nargs="*", default=list(MANAGERS), choices=MANAGERS)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--streams", nargs="*", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--extra", default="", help="more judge options, such as '--skip 400'")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        if not (Path(args.judge or "/nonexistent") / "common.py").is_file():
            sys.exit(f"--judge {args.judge or '(not given)'}: no common.py there")
        for stream in args.streams:
            for model in args.models:
                for manager in args.only:
                    if manager == "unified" and model not in HYBRID_IN_SGLANG:
                        continue
                    if manager in NO_CAP and model not in RECURRENT:
                        continue
                    if manager == "vllm" and not args.vllm_python:
                        continue
                    measure(manager, model, stream, args)
    write_table()


if __name__ == "__main__":
    main()
