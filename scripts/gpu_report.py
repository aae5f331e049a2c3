# SPDX-License-Identifier: Apache-2.0
"""``python scripts/gpu_report.py``: everything that a first GPU is asked, in under half an hour.

Tests, kernels, a server of every family and a stock-against-jenga run, one after the other, each
with a limit. What they find goes where it belongs (``benchmark/*/results``), and what became of
each, with GPU, driver and versions, into ``benchmark/gpu/results`` as JSON and as a table. A stage
that runs out of time is ended and reported; the next one still gets its share.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "gpu" / "results"
sys.path.insert(0, str(ROOT / "benchmark"))

from provenance import commit, gpu_facts  # noqa: E402

TOTAL_SECONDS = 29 * 60
#: Seconds that the report itself keeps back.
_WRITING_SECONDS = 10
_LAST_LINES = 15

Outcome = Literal["passed", "failed", "out of time", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command. limit_s: the longest it may take; least_s: what it needs to be worth starting,
    kept back from the stages before it."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a stage. said: the end of its output."""

    name: str
    command: str
    outcome: Outcome
    seconds: float
    said: tuple[str, ...]


def stages(device: str) -> tuple[Stage, ...]:
    """In the order of what is learnt first. ``device``: name of the GPU, for folders of results."""
    python, pytest = sys.executable, (sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu")
    serving = ROOT / "benchmark" / "serving"
    return (
        Stage(
            name="kernel tests",
            command=(*pytest, "tests/gpu", "-k", "not server"),
            limit_s=480,
            least_s=120,
        ),
        Stage(
            name="kernel benchmark",
            command=(python, str(ROOT / "benchmark" / "kernels" / "run.py")),
            limit_s=480,
            least_s=120,
        ),
        Stage(
            name="servers against stock",
            command=(*pytest, "tests/gpu/test_server_smoke.py", "-k", "stock"),
            limit_s=360,
            least_s=120,
        ),
        Stage(
            name="a server of every family",
            command=(*pytest, "tests/gpu/test_server_smoke.py", "-k", "every_family"),
            limit_s=540,
            least_s=240,
        ),
        Stage(
            name="serving, stock against jenga",
            command=(
                *(python, str(serving / "run.py"), "--device", "cuda", "--shape", "gemma3"),
                *("--rounds", "1", "--out", str(serving / "results" / device)),
            ),
            limit_s=420,
            least_s=180,
        ),
    )


def allowance(plan: Sequence[Stage], index: int, left_s: float) -> float:
    """Seconds that stage ``index`` may take: its limit, or what the least of the later ones leave.

    0: not worth starting.
    """
    later = sum(stage.least_s for stage in plan[index + 1 :])
    seconds = min(plan[index].limit_s, left_s - _WRITING_SECONDS - later)
    if seconds < plan[index].least_s:
        # Too late for all of them: those that come first are what is most worth knowing.
        seconds = min(plan[index].limit_s, left_s - _WRITING_SECONDS)
    return seconds if seconds >= plan[index].least_s else 0.0


def run(command: Sequence[str], limit_s: float) -> tuple[Outcome, str]:
    """Run in a process group of its own, which is ended when its time is over."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return "out of time", said
    return ("passed" if process.returncode == 0 else "failed"), said


def carry_out(
    plan: Sequence[Stage],
    *,
    total_s: float,
    run: Callable[[Sequence[str], float], tuple[Outcome, str]] = run,
    clock: Callable[[], float] = time.monotonic,
) -> list[Done]:
    """Every stage in its order, within ``total_s``."""
    end = clock() + total_s
    done = []
    for index, stage in enumerate(plan):
        limit = allowance(plan, index, end - clock())
        start = clock()
        outcome: Outcome = "not run"
        said = f"{end - start:.0f} s are left, it needs {stage.least_s:.0f}"
        if limit:
            outcome, said = run(stage.command, limit)
        done.append(
            Done(
                name=stage.name,
                command=" ".join(stage.command).replace(sys.executable, "python"),
                outcome=outcome,
                seconds=round(clock() - start, 1),
                said=tuple(said.strip().splitlines()[-_LAST_LINES:]),
            )
        )
        print(f"{stage.name}: {outcome}, {done[-1].seconds:.0f} s", flush=True)
    return done


def report(facts: Mapping[str, str], done: Sequence[Done]) -> str:
    """GPU, driver, versions and a row per stage, then the end of what each stage said."""
    lines = ["| what | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "| stage | outcome | seconds | last line |", "| --- | --- | --- | --- |"]
    for stage in done:
        last = stage.said[-1].replace("|", "\\|") if stage.said else ""
        lines.append(f"| {stage.name} | {stage.outcome} | {stage.seconds:.0f} | {last} |")
    for stage in done:
        lines += ["", f"## {stage.name}", "", f"    {stage.command}", ""]
        lines += [f"    {line}".rstrip() for line in stage.said]
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, facts: Mapping[str, str], done: Sequence[Done]) -> Path:
    """``NAME.json`` and ``NAME.md``; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"facts": dict(facts), "stages": [asdict(stage) for stage in done]}
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    target = folder / f"{name}.md"
    target.write_text(report(facts, done), encoding="utf-8")
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print(f"gpu report: not run, torch {torch.__version__} sees no CUDA device on this machine")
        return 0
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = {**gpu_facts(), "commit": commit(), "time": began}
    name = f"{facts['device'].replace(' ', '-').lower()}-{began[:10]}"
    done = carry_out(stages(name), total_s=args.seconds)
    target = write(args.out, name, facts, done)
    print(f"\n{report(facts, done)}\nwritten: {target}")
    return 0 if all(stage.outcome == "passed" for stage in done) else 1


if __name__ == "__main__":
    sys.exit(main())
