# SPDX-License-Identifier: Apache-2.0
"""What a maintainer sees first: the form of a patch file."""

from __future__ import annotations

import re
from pathlib import Path

from patch_series.series import Patch

_SUBJECT = re.compile(r"^Subject: \[PATCH\] (\[[^\]]+\] .+(?:\n .+)*)$", re.MULTILINE)
_LONGEST_SUBJECT = 72
_CI = "register_cpu_ci("
_CODE = "python/sglang/"
_TESTS = "test/registered/"


def form_problems(patch: Patch, path: Path) -> list[str]:
    """Problems of the file's subject, message, paths and tests."""
    text = path.read_text(encoding="utf-8")
    head, _, body = text.partition("\n---\n")
    problems = []
    subject = _SUBJECT.search(head)
    if subject is None:
        problems.append("its subject does not begin with an [Area]")
    elif len(subject[1].replace("\n", "")) > _LONGEST_SUBJECT:
        problems.append(f"its subject has more than {_LONGEST_SUBJECT} characters")
    if "\n\n" not in head or not head.split("\n\n", 1)[1].strip():
        problems.append("its message does not say why")
    touched = re.findall(r"^diff --git a/(\S+) b/", body, re.MULTILINE)
    strange = [name for name in touched if not name.startswith((_CODE, _TESTS))]
    if strange:
        problems.append(f"it touches {', '.join(strange)}")
    added = {name for name in touched if name.startswith(_TESTS)}
    if added != set(patch.tests):
        problems.append(f"series.toml names other tests: {sorted(added ^ set(patch.tests))}")
    if not any(name.startswith(_CODE) for name in touched):
        problems.append("it changes nothing but tests")
    text_of_request = path.parent / "pull-requests" / f"{patch.number}.md"
    if not text_of_request.exists():
        problems.append(f"{text_of_request.name} is missing, the text of its pull request")
    if body.count("+" + _CI) != len(patch.tests):
        problems.append(f"not every test is registered for CPU CI ({_CI}...))")
    return problems
