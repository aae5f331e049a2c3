# SPDX-License-Identifier: Apache-2.0
"""GPU tests run where torch sees a CUDA device; elsewhere each is reported as not run, and why."""

import pytest
import torch


def _why_not() -> str | None:
    if torch.cuda.is_available():
        return None
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    return f"no CUDA device: {built} and sees none on this machine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = _why_not()
    if why is None:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"not run, {why}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    not_run = [report for report in skipped if "gpu" in report.keywords]
    if not_run:
        terminalreporter.write_line(f"GPU tests: {len(not_run)} not run, {_why_not()}.")
