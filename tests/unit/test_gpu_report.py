# SPDX-License-Identifier: Apache-2.0
"""The half hour on a GPU, as far as it can be tried without one: time, stages, report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_report  # noqa: E402
from gpu_report import Done, Outcome, Stage  # noqa: E402

FACTS = {"device": "NVIDIA H200", "driver": "570.1", "sglang": "0.5.23", "commit": "abc"}


def stage(name: str, *, limit_s: float = 100, least_s: float = 10) -> Stage:
    return Stage(name=name, command=("true", name), limit_s=limit_s, least_s=least_s)


class Machine:
    """A clock, and stages that take what they are said to, as far as they may."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now, self.takes, self.limits = 0.0, takes, dict[str, float]()

    def run(self, command: Sequence[str], limit_s: float) -> tuple[Outcome, str]:
        wanted = self.takes[command[-1]]
        self.limits[command[-1]] = limit_s
        self.now += min(wanted, limit_s)
        return ("passed", "1 passed") if wanted <= limit_s else ("out of time", "cut")

    def carry_out(self, plan: Sequence[Stage], total_s: float) -> dict[str, str]:
        done = gpu_report.carry_out(plan, total_s=total_s, run=self.run, clock=lambda: self.now)
        return {one.name: one.outcome for one in done}


def test_stages_that_take_all_they_may_leave_the_later_ones_their_least() -> None:
    plan = [stage("a"), stage("b", least_s=30), stage("c", least_s=40)]
    machine = Machine({"a": 999, "b": 999, "c": 35})
    assert machine.carry_out(plan, 150) == {
        "a": "out of time",
        "b": "out of time",
        "c": "passed",
    }
    assert machine.limits == {"a": 70, "b": 30, "c": 40}
    assert machine.now <= 150


def test_a_stage_that_cannot_be_finished_is_not_begun() -> None:
    machine = Machine({"a": 15, "b": 5})
    assert machine.carry_out([stage("a", limit_s=20), stage("b", least_s=30)], 40) == {
        "a": "passed",
        "b": "not run",
    }
    assert "b" not in machine.limits


def test_the_stages_of_a_run_fit_in_half_an_hour() -> None:
    plan = gpu_report.stages("gpu")
    assert gpu_report.TOTAL_SECONDS < 30 * 60
    assert sum(one.least_s for one in plan) + 10 <= gpu_report.TOTAL_SECONDS
    machine = Machine({one.command[-1]: 10_000 for one in plan})
    machine.carry_out(plan, gpu_report.TOTAL_SECONDS)
    assert len(machine.limits) == len({one.command[-1] for one in plan}), "each got its share"
    assert machine.now <= gpu_report.TOTAL_SECONDS


@pytest.mark.parametrize("one", gpu_report.stages("gpu"), ids=lambda one: one.name)
def test_what_a_stage_runs_exists(one: Stage) -> None:
    files = [word for word in one.command[1:] if word.endswith(".py") or "tests/" in word]
    assert files and all((ROOT / word).exists() for word in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    "one",
    [one for one in gpu_report.stages("gpu") if "pytest" in one.command],
    ids=lambda one: one.name,
)
def test_every_stage_of_tests_collects_some(one: Stage) -> None:
    done = subprocess.run(
        [*one.command, "--collect-only", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "::test_" in done.stdout


def test_a_stage_is_ended_when_its_time_is_over() -> None:
    sleep = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(600)"]
    assert gpu_report.run(sleep, 2.0) == ("out of time", "begun\n")
    assert gpu_report.run([sys.executable, "-c", "print(1)"], 60.0) == ("passed", "1\n")
    assert gpu_report.run([sys.executable, "-c", "raise SystemExit(3)"], 60.0)[0] == "failed"


def test_the_report_names_gpu_driver_versions_and_outcomes(tmp_path: Path) -> None:
    done = [
        Done(name="kernels", command="python a", outcome="passed", seconds=61.2, said=("9 ok",)),
        Done(name="servers", command="python b", outcome="out of time", seconds=9, said=("a|b",)),
        Done(name="serving", command="python c", outcome="not run", seconds=0, said=()),
    ]
    target = gpu_report.write(tmp_path / "results", "h200", FACTS, done)
    text = target.read_text(encoding="utf-8")
    for name, value in FACTS.items():
        assert f"| {name} | {value} |" in text
    assert "| kernels | passed | 61 | 9 ok |" in text
    assert "| servers | out of time | 9 | a\\|b |" in text
    assert "| serving | not run | 0 |  |" in text
    data = json.loads((tmp_path / "results" / "h200.json").read_text(encoding="utf-8"))
    assert data["facts"] == FACTS
    assert [one["outcome"] for one in data["stages"]] == ["passed", "out of time", "not run"]


def test_without_a_gpu_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_report.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("gpu report: not run") and "no CUDA device" in line
