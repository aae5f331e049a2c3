# SPDX-License-Identifier: Apache-2.0
"""The table of kernels names evidence that exists, and says no more than it shows."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest

from sglang_jenga.sglang_ext.kernel_table import KERNELS, VERDICTS, KernelRow

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sysconfig.get_path("purelib"))


def name(row: KernelRow) -> str:
    return f"{row.backend}: {row.operation}"


def problem(evidence: str) -> str | None:
    """Why a piece of evidence is none: there is no such test, file or line."""
    if (ROOT / evidence.partition("::")[0]).exists():
        path, _, test = evidence.partition("::")
        if test and f"def {test}(" not in (ROOT / path).read_text():
            return f"{path} has no test {test}"
        return None
    source = re.fullmatch(r"(.+):(\d+)", evidence)
    if source is None or not (PACKAGES / source[1]).is_file():
        return f"there is no {evidence}"
    lines = (PACKAGES / source[1]).read_text(errors="replace").splitlines()
    number = int(source[2])
    if number > len(lines) or not lines[number - 1].strip():
        return f"{source[1]} has no line {number}"
    return None


@pytest.mark.parametrize("row", KERNELS, ids=name)
def test_evidence_exists(row: KernelRow) -> None:
    assert [why for why in map(problem, row.evidence) if why] == []


@pytest.mark.parametrize("row", KERNELS, ids=name)
def test_a_verdict_needs_its_kind_of_evidence(row: KernelRow) -> None:
    assert row.verdict in VERDICTS
    tests = [one for one in row.evidence if one.startswith(("tests/", "benchmark/"))]
    if row.verdict in ("ran", "compiled"):
        assert tests, "nothing that can be repeated shows it"
    if row.verdict == "read":
        assert set(row.evidence) - set(tests), "no source is named"
    if row.verdict == "unchecked":
        assert not row.evidence, "then it is checked somehow"


@pytest.mark.parametrize(
    "evidence",
    [
        "tests/addresses/test_kernel_table.py::test_nothing",
        "sglang/no.py:1",
        "sglang/utils.py:0999999",
    ],
)
def test_evidence_that_does_not_exist_is_noticed(evidence: str) -> None:
    assert problem(evidence) is not None
