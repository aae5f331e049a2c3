# SPDX-License-Identifier: Apache-2.0
"""Recurrent states that running requests pin, step by step: results/states.jsonl -> states.svg.

python benchmark/serving/plot.py [--results DIR]      (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "sglang-jenga"
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
COLOURS = {"stock": "#8a8a8a", "jenga": "#0a6ebd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    lines = (args.results / "states.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = [row for row in map(json.loads, lines) if row["round"] == 0]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure, axes = plt.subplots(
        2, len(workloads), figsize=(5 * len(workloads), 5), sharex="col", squeeze=False
    )
    for row in rows:
        column = axes[:, workloads.index(row["workload"])]
        running = [step[0] for step in row["steps"]]
        each = [states / max(1, requests) for requests, states in row["steps"]]
        for axis, values in zip(column, (running, each), strict=True):
            axis.step(
                range(len(values)), values, color=COLOURS[row["manager"]], label=row["manager"]
            )
            axis.grid(alpha=0.3)
        column[0].set_title(row["workload"])
        column[1].set_xlabel("decode step")
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("running requests")
    axes[1][0].set_ylabel("states pinned per request")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(args.results / "states.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
