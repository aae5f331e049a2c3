# SPDX-License-Identifier: Apache-2.0
"""Record every way to scale out: ``python benchmark/scale_out/run.py [--only router kill ...]``.

Each run is the documented command, ``python -m sglang_jenga.demo.scale``, and leaves two files in
``results/``: what it printed, and its report with every request, the command and the commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from provenance import commit  # noqa: E402

RUNS: dict[str, tuple[str, ...]] = {
    "router": ("router",),
    "router-round-robin": ("router", "--policy", "round_robin"),
    "router-kill": ("router", "--kill-at", "0.4", "--max-tokens", "48"),
    "dp": ("dp",),
    "tp": ("tp",),
}


def record(name: str, out: Path, extra: list[str]) -> None:
    """One run. Raises CalledProcessError when it failed; what it printed is kept."""
    arguments = ["-m", "sglang_jenga.demo.scale", *RUNS[name]]
    report_path, text_path = out / f"{name}.json", out / f"{name}.txt"
    with text_path.open("w", encoding="utf-8") as text:
        subprocess.run(
            [sys.executable, *arguments, "--output", str(report_path), *extra],
            stdout=text,
            stderr=subprocess.STDOUT,
            check=True,
        )
    report = json.loads(report_path.read_text(encoding="utf-8"))
    origin = {"command": " ".join(["python", *arguments]), "commit": commit()}
    report_path.write_text(json.dumps(origin | report, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {text_path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the ways to scale out.")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args, extra = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        record(name, args.out, extra)


if __name__ == "__main__":
    main()
