# SPDX-License-Identifier: Apache-2.0
"""GPU tests run where torch sees a CUDA device; elsewhere each is reported as not run, and why."""

from collections.abc import Callable

import pytest
import torch

#: Offsets behind which tests place their slots: 2**32 bfloat16 elements, and 2**31 of float32.
BELOW_BYTES = 2**33 + 2**20


@pytest.fixture
def room_for() -> Callable[[int], int]:
    """``BELOW_BYTES``, where the GPU has this many times as much free; else the test is skipped."""

    def below_bytes(times: int) -> int:
        needed, free = times * BELOW_BYTES, torch.cuda.mem_get_info()[0]
        if free < needed:
            pytest.skip(
                f"not run, needs {needed >> 30} GiB of free GPU memory, {free >> 30} are free"
            )
        return BELOW_BYTES

    return below_bytes


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
