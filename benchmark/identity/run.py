# SPDX-License-Identifier: Apache-2.0
"""The identity matrix: does a jenga server answer exactly like a stock server?

    python benchmark/identity/run.py [--family F ...] [--variant V ...] [--scenario S ...]

Rows go to results/<family>.jsonl as they come; results/table.md is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "benchmark")]

from provenance import commit  # noqa: E402
from server.compare import LOGPROB_TOLERANCE  # noqa: E402
from server.examples import EXAMPLES  # noqa: E402
from server.matrix import CannotServe, Family, play, prepare, reference_of  # noqa: E402
from server.scenarios import SCENARIOS  # noqa: E402
from server.variants import VARIANTS, Variant, jenga_spec, variants_of  # noqa: E402

from sglang_jenga.tiny import FAMILIES  # noqa: E402

RESULTS = Path(__file__).parent / "results"
EVERY = (*FAMILIES, *EXAMPLES)


def main() -> int:
    args = _arguments()
    RESULTS.mkdir(exist_ok=True)
    failed = 0
    for name in args.family:
        family = prepare(name, args.work_dir)
        chosen = [v for v in variants_of(name) if v.name in args.variant]
        for variant in chosen:
            scenarios = [s for s in variant.scenarios if s in args.scenario]
            # What other variants will compare with is recorded by the same stock server.
            needed = [
                s
                for v in chosen
                if v.reference == variant.reference
                for s in v.scenarios
                if s in args.scenario
            ]
            for row in _rows(family, variant, scenarios, dict.fromkeys(needed)):
                failed += row["status"] == "failed"
                _print(row)
                _store(row)
    (RESULTS / "table.md").write_text(_table(), encoding="utf-8")
    print(f"{failed} failed; rows in {RESULTS}", flush=True)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [v.name for v in VARIANTS]
    parser.add_argument("--family", nargs="+", choices=EVERY, default=EVERY)
    parser.add_argument("--variant", nargs="+", choices=names, default=names)
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=tuple(SCENARIOS))
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=REPOSITORY / "build" / "identity",
        help="checkpoints, recorded stock answers and server logs (default: %(default)s)",
    )
    return parser.parse_args()


def _rows(
    family: Family, variant: Variant, scenarios: list[str], needed: Iterable[str]
) -> Iterator[dict[str, Any]]:
    if not scenarios:
        return
    spec = jenga_spec(variant, family.name, family.checkpoint, family.adapter)
    common = {
        "family": family.name,
        "variant": variant.name,
        "flags": [f for f in spec.flags if not f.startswith(("/", "tiny="))],
        "env": {k: v for k, v in spec.env.items() if k != "PYTHONPATH"},
        "tolerance": LOGPROB_TOLERANCE,
        "sglang": metadata.version("sglang"),
        "python": platform.python_version(),
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        reference = reference_of(family, variant.reference, needed)
    except CannotServe as error:
        for scenario in scenarios:
            yield common | {"scenario": scenario, "status": "skipped", "failure": str(error)}
        return
    for outcome in play(family, variant, scenarios, reference):
        yield common | outcome.row() | {"status": "passed" if outcome.passed else "failed"}


def _print(row: dict[str, Any]) -> None:
    tally = row.get("tally", {})
    print(
        f"{row['status']:7} {row['family']} {row['variant']} {row['scenario']} "
        f"{row.get('seconds', 0):.1f} s  "
        f"requests {tally.get('requests')} cached {tally.get('cached_tokens')}"
        f"/{tally.get('prompt_tokens')} retracted {tally.get('retractions')} "
        f"evicted {tally.get('evicted_tokens')} "
        f"logprob {tally.get('max_logprob_difference', 0):.1e}",
        flush=True,
    )
    if row["failure"]:
        print("    " + row["failure"].replace("\n", "\n    "), flush=True)


def _path(family: str) -> Path:
    return RESULTS / f"{family}.jsonl"


def _stored(family: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest row of each (variant, scenario)."""
    path = _path(family)
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(row["variant"], row["scenario"]): row for row in rows}


def _store(row: dict[str, Any]) -> None:
    rows = _stored(row["family"]) | {(row["variant"], row["scenario"]): row}
    lines = [json.dumps(r, sort_keys=True) for _, r in sorted(rows.items())]
    _path(row["family"]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table() -> str:
    """One table per variant: scenarios down, families across."""
    stored = {family: _stored(family) for family in EVERY if _path(family).exists()}
    lines = ["# Identity matrix", "", f"Families run: {', '.join(stored)}."]
    for variant in VARIANTS:
        lines += ["", f"## {variant.name}", ""]
        lines.append(f"| scenario | {' | '.join(stored)} |")
        lines.append(f"| --- | {' | '.join('---' for _ in stored)} |")
        for scenario in variant.scenarios:
            cells = [_cell(rows.get((variant.name, scenario))) for rows in stored.values()]
            lines.append(f"| {scenario} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row["status"] != "passed":
        return f"**{row['status']}**"
    tally = row["tally"]
    extra = ""
    if tally["retractions"] or tally["evicted_tokens"]:
        extra = f", {tally['retractions']} retr., {tally['evicted_tokens']} evicted"
    return f"{tally['requests']} equal{extra}"


if __name__ == "__main__":
    sys.exit(main())
