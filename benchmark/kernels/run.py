# SPDX-License-Identifier: Apache-2.0
"""``python benchmark/kernels/run.py``: attention on arena views against contiguous pools (CUDA).

One line per kernel and kind: error against float64, median time on the arena's views, median time
on contiguous pools holding the same numbers under the same slot ids, and their ratio. Raw lines go
to ``results/`` as JSON. Where torch sees no CUDA device nothing runs, and that is what is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
#: Behind it lie the states of the second half: 2**31 elements of float32, 2**32 of bfloat16.
BELOW_BYTES = 2**33 + 2**20
sys.path.insert(0, str(RESULTS.parents[1]))

from provenance import commit, gpu_facts  # noqa: E402

from sglang_jenga.sglang_ext.kernel_checks import gpu_of  # noqa: E402


def environment() -> dict[str, str]:
    """What a reader needs to repeat the run."""
    return {
        **gpu_facts(),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", help="default: every model of paged_bench.MODELS")
    parser.add_argument("--page-tokens", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the raw lines")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not torch.cuda.is_available():
        print(
            "kernel benchmark: not run, torch sees no CUDA device on this machine "
            f"(torch {torch.__version__}). Run the same command on one with an NVIDIA GPU."
        )
        return 0
    import state_calls
    from paged_bench import MODELS, Row, cases, fitting, lines, measure, median_us

    models = args.model or list(MODELS)
    if unknown := sorted(set(models) - set(MODELS)):
        sys.exit(f"--model {', '.join(unknown)} is unknown: choose from {', '.join(MODELS)}")
    facts = environment()
    print(json.dumps(facts, indent=1))
    rows: list[Row] = []
    for case in cases(models, args.page_tokens):
        fitted = fitting(case, torch.cuda.mem_get_info()[0])
        if fitted is None:
            print(f"{case.name}: not run, one request does not fit this GPU's memory")
            continue
        for row in measure(fitted, "cuda", median_us, gpu_of("cuda")):
            rows.append(row)
            print(lines([row])[-1], flush=True)
        torch.cuda.empty_cache()
    checks = []
    for below_bytes in (0, BELOW_BYTES):
        if torch.cuda.mem_get_info()[0] < 4 * below_bytes:
            print(f"states behind {below_bytes:,} B: not run, they do not fit this GPU's memory")
            continue
        checks += [
            check(state_calls.States(device="cuda", below_bytes=below_bytes))
            for check in state_calls.CHECKS
        ]
        torch.cuda.empty_cache()
    args.output.mkdir(parents=True, exist_ok=True)
    name = facts["device"].replace(" ", "-").lower()
    target = args.output / f"{name}-{facts['time'][:10]}.jsonl"
    with target.open("w", encoding="utf-8") as file:
        measured = ({**asdict(row), "ratio": row.ratio} for row in rows)
        for record in (facts, *measured, *map(asdict, checks)):
            file.write(json.dumps(record) + "\n")
    table = [*lines(rows), "", *state_calls.lines(checks)]
    described = [f"{facts['device']}, driver {facts['driver']}, CUDA {facts['cuda']}, sglang"]
    described[0] += f" {facts['sglang']}, torch {facts['torch']}, commit {facts['commit']}"
    target.with_suffix(".md").write_text("\n".join([*described, "", *table, ""]), encoding="utf-8")
    print("\n".join(["", *table, "", f"raw lines: {target}"]))
    wrong = [row for row in rows if not row.equal_bits]
    wrong += [check for check in checks if not (check.equal and check.untouched)]
    if wrong:
        print(f"{len(wrong)} kernels answer differently on arena views: see NO above")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
