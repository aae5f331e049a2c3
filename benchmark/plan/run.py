# SPDX-License-Identifier: Apache-2.0
"""Does a server build the arena that ``sglang-jenga plan`` predicts?

    python benchmark/plan/run.py [--family F ...] [--setting S ...]

For each tested family the command plans the tiny checkpoint, a real server is started on it, and
what the server reports is compared. Rows go to results/<family>.jsonl, results/table.md is written
from all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "benchmark")]

from provenance import commit  # noqa: E402
from server.client import Client  # noqa: E402
from server.launch import ServerDied, serving  # noqa: E402
from server.matrix import build_checkpoint  # noqa: E402
from server.planned import SETTINGS, booted, differences, settings_of, spec_of  # noqa: E402

from sglang_jenga.tiny import FAMILIES  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    args = _arguments()
    RESULTS.mkdir(exist_ok=True)
    wrong = 0
    for family in args.family:
        checkpoint = build_checkpoint(family, args.work_dir)
        for setting in settings_of(family):
            if setting in args.setting:
                row = _row(family, setting, checkpoint, args.work_dir)
                wrong += row["status"] != "equal"
                print(row["status"], family, setting, *row["differences"], flush=True)
                _store(row)
                (RESULTS / "table.md").write_text(_table(), encoding="utf-8")
    print(f"{wrong} of the plans differ; rows in {RESULTS}", flush=True)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=tuple(SETTINGS))
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "build" / "identity")
    return parser.parse_args()


def planned(checkpoint: Path, family: str, setting: str) -> Mapping[str, Any]:
    """What the command predicts, as a user runs it."""
    command = [sys.executable, "-m", "sglang_jenga.cli", "plan", str(checkpoint)]
    done = subprocess.run(
        [*command, *settings_of(family)[setting].plan, "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    plan: Mapping[str, Any] = json.loads(done.stdout)
    return plan


def _row(family: str, setting: str, checkpoint: Path, work_dir: Path) -> dict[str, Any]:
    chosen = settings_of(family)[setting]
    spec = spec_of(family, setting, checkpoint)
    row: dict[str, Any] = {
        "family": family,
        "setting": setting,
        "plan_flags": list(chosen.plan),
        "server_flags": list(spec.flags),
        "sglang": metadata.version("sglang"),
        "python": platform.python_version(),
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "predicted": None,
        "booted": None,
    }
    try:
        row["predicted"] = booted(planned(checkpoint, family, setting))
        log_path = work_dir / "logs" / f"{family}-plan-{setting}.log"
        with serving(spec, log_path) as server:
            row["booted"] = booted(Client(server.url).arena())
    except subprocess.CalledProcessError as error:
        return row | {"status": "failed", "differences": [error.stderr.strip()]}
    except ServerDied as error:
        return row | {"status": "failed", "differences": [str(error).splitlines()[-1]]}
    found = differences(row["predicted"], row["booted"])
    return row | {"status": "different" if found else "equal", "differences": found}


def _stored(family: str) -> dict[str, dict[str, Any]]:
    path = RESULTS / f"{family}.jsonl"
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["setting"]: row for row in rows}


def _store(row: dict[str, Any]) -> None:
    rows = _stored(row["family"]) | {row["setting"]: row}
    lines = [json.dumps(rows[name], sort_keys=True) for name in sorted(rows)]
    path = RESULTS / f"{row['family']}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table() -> str:
    lines = [
        "# Predicted and booted arenas",
        "",
        "predicted / booted, where they differ; one number where they are equal.",
        "",
        "| family | setting | kinds: slot x slots per large page | large page | large pages "
        "| longest request | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        for setting, row in sorted(_stored(family).items()):
            one, other = row["predicted"], row["booted"]
            if one is None or other is None:
                lines.append(f"| {family} | {setting} | | | | | **failed** |")
                continue
            cells = [
                _both(_kinds(one), _kinds(other)),
                _both(f"{one['large_page_bytes']:,} B", f"{other['large_page_bytes']:,} B"),
                _both(f"{one['num_large_pages']:,}", f"{other['num_large_pages']:,}"),
                _both(f"{one['longest_request_tokens']:,}", f"{other['longest_request_tokens']:,}"),
            ]
            status = row["status"] if row["status"] == "equal" else f"**{row['status']}**"
            lines.append(f"| {family} | {setting} | {' | '.join(cells)} | {status} |")
    return "\n".join(lines) + "\n"


def _kinds(arena: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k['name']} {k['slot_bytes']:,} B x {k['slots_per_large_page']:,}" for k in arena["kinds"]
    )


def _both(one: str, other: str) -> str:
    return one if one == other else f"**{one} / {other}**"


if __name__ == "__main__":
    sys.exit(main())
