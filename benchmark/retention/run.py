# SPDX-License-Identifier: Apache-2.0
"""What is each rule of eviction worth? Hits against cache size, rule by rule.

    run.py --judge DIR [--models ...] [--streams ...] [--scales ...]
    run.py --plot               only draw hits.svg and write table.md from results/*.jsonl

Each point is a run of benchmark/capacity/drive_jenga.py: the classes of a server, the judge's loop.
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

RAW = HERE / "results" / "points.jsonl"
DRIVER = HERE.parent / "capacity" / "drive_jenga.py"
#: The paper's experiment: each line has one rule more than the one before.
LINES = {
    "a list per kind": "none",
    "balanced": "balanced",
    "balanced, aligned": "balanced,aligned",
    "balanced, aligned, retention": "all",
}
MODELS = ("gpt-oss-20b", "gemma3-27b", "qwen3-next-80b", "jamba-v0.1")
STREAMS = ("mooncake_chat", "mooncake_conv")
SCALES = ("0.5", "1", "2", "4")


def measure(model: str, stream: str, scale: str, rules: str, judge: str) -> None:
    """One point, appended to points.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.jsonl"
        options = ["--model", model, "--stream", stream, "-n", "400", "--budget-scale", scale]
        command = [sys.executable, str(DRIVER), "--judge", judge, *options, "--rules", rules]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--json", str(out)], env=environment, capture_output=True, text=True
        )
        if not out.exists():
            sys.exit(f"{model} {stream} {scale} {rules}: no record\n{done.stderr[-2000:]}")
        record = json.loads(out.read_text(encoding="utf-8"))
    result, final = record["result"], record["final"]
    if final["audit"] or final["held_bytes"]:
        sys.exit(f"{model} {stream} {scale} {rules}: leak, {final}")
    hits = final["hits"]
    row = {
        "commit": commit(),
        "model": model,
        "stream": stream,
        "scale": float(scale),
        "rules": rules,
        "steps": result["steps"],
        "hit": result["prefix_hit_ratio"],
        "full_only": hits["full_only_tokens"] / hits["prompt_tokens"],
        "cut_tokens": hits["cut_tokens"],
        "preemptions": result["preemptions"],
        "prefill_tokens": result.get("prefill_tokens"),
        "host_us_per_step": result["host_us_per_step"],
    }
    with RAW.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{model} {stream} x{scale} {rules}: {100 * row['hit']:.1f} %", flush=True)


def load() -> dict[tuple[str, str], dict[tuple[str, float], dict[str, Any]]]:
    """(stream, model) -> (rules, scale) -> its latest point."""
    found: dict[tuple[str, str], dict[tuple[str, float], dict[str, Any]]] = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        points = found.setdefault((row["stream"], row["model"]), {})
        points[row["rules"], row["scale"]] = row
    return found


def write_table(found: dict[tuple[str, str], dict[tuple[str, float], dict[str, Any]]]) -> None:
    text = [
        "<!-- written by run.py from results/points.jsonl -->",
        "# Hits in percent of prompt tokens, by rules of eviction and size of the arena",
        "",
        "`full`: what full attention alone would have hit in the run with all rules. In brackets: "
        "steps to drain.",
    ]
    for (stream, model), points in found.items():
        scales = sorted({scale for _, scale in points})
        text += ["", f"## {stream}, {model}", ""]
        text.append("| arena | " + " | ".join(LINES) + " | full |")
        text.append("|---" * (len(LINES) + 2) + "|")
        for scale in scales:
            cells = [f"{scale:g}x"]
            for rules in LINES.values():
                point = points.get((rules, scale))
                cells.append(
                    f"{100 * point['hit']:.1f} [{point['steps']:,}]" if point else "not run"
                )
            whole = points.get(("all", scale))
            cells.append(f"{100 * whole['full_only']:.1f}" if whole else "")
            text.append("| " + " | ".join(cells) + " |")
    (HERE / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def draw(found: dict[tuple[str, str], dict[tuple[str, float], dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sglang-jenga"
    import matplotlib.pyplot as plt

    streams = sorted({stream for stream, _ in found})
    models = list(dict.fromkeys(model for _, model in found))
    figure, axes = plt.subplots(
        len(streams), len(models), figsize=(3.4 * len(models), 3.0 * len(streams)), squeeze=False
    )
    colours = ("#c9c9c9", "#8a8a8a", "#7fb2dd", "#0a6ebd")
    for (stream, model), points in found.items():
        axis = axes[streams.index(stream)][models.index(model)]
        for (label, rules), colour in zip(LINES.items(), colours, strict=True):
            line = sorted((s, 100 * p["hit"]) for (r, s), p in points.items() if r == rules)
            axis.plot(*zip(*line, strict=True), color=colour, marker="o", ms=3, label=label)
        bound = sorted((s, 100 * p["full_only"]) for (r, s), p in points.items() if r == "all")
        axis.plot(*zip(*bound, strict=True), color="#222222", ls=":", lw=1, label="full alone")
        axis.set(title=f"{model}, {stream.removeprefix('mooncake_')}", xscale="log")
        axis.set_xticks([s for s, _ in bound], [f"{s:g}x" for s, _ in bound], minor=False)
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel("hit, % of prompt tokens")
    for axis in axes[-1]:
        axis.set_xlabel("arena, of the judge's budget")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=5, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(HERE / "hits.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--judge", default=os.environ.get("JUDGE_DIR", ""))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--streams", nargs="*", default=list(STREAMS))
    parser.add_argument("--scales", nargs="*", default=list(SCALES))
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if not args.plot:
        if not (Path(args.judge or "/nonexistent") / "common.py").is_file():
            sys.exit(f"--judge {args.judge or '(not given)'}: no common.py there")
        RAW.parent.mkdir(exist_ok=True)
        for stream in args.streams:
            for model in args.models:
                for scale in args.scales:
                    for rules in LINES.values():
                        measure(model, stream, scale, rules, args.judge)
    found = load()
    write_table(found)
    draw(found)


if __name__ == "__main__":
    main()
