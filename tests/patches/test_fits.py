# SPDX-License-Identifier: Apache-2.0
"""What another release lacks is found in its sources, before anybody installs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from patch_series import fits
from patch_series.sources import Sources, parameters
from patch_series.tree import installed_wheel
from sglang_jenga.sglang_ext.hook_table import Hook

MODULE = """
from .base import Base
from .base import thing as renamed

if True:
    def conditional(a, *, b, **rest): ...

class Given(Base):
    table: dict = {}
    def method(self, one, two): ...

Given = rebuilt("Given", Given)
"""
BASE = "class Base:\n    def inherited(self, x): ...\n\ndef thing(y): ...\n"


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text("from made.module import *\n", encoding="utf-8")
    (package / "module.py").write_text(MODULE, encoding="utf-8")
    (package / "base.py").write_text(BASE, encoding="utf-8")
    return Sources(tmp_path)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("made.module.conditional", ["a", "b", "rest"]),
        ("made.module.Given.method", ["self", "one", "two"]),
        ("made.module.Given.inherited", ["self", "x"]),
        ("made.module.renamed", ["y"]),
        ("made.Given.method", ["self", "one", "two"]),
    ],
)
def test_a_definition_is_found_where_python_would(
    sources: Sources, target: str, expected: list[str]
) -> None:
    found = sources.find(target)
    assert found is not None and parameters(found) == expected


@pytest.mark.parametrize("target", ["made.module.Given.lost", "made.lost", "lost.module.f"])
def test_what_is_not_there_is_not_found(sources: Sources, target: str) -> None:
    assert sources.find(target) is None


@pytest.mark.slow
def test_all_that_is_attached_and_imported_is_found_in_the_supported_release() -> None:
    here = Sources(installed_wheel().folder)
    attached = [fits._attachment(hook, here, here, set()) for hook in fits.HOOKS]
    found = [*attached, *fits._imports(here, here)]
    assert [finding for finding in found if finding.verdict != fits.SAME] == []


@pytest.mark.parametrize(
    ("other", "verdict", "why"),
    [
        ("def f(self, node): ...", fits.SAME, ""),
        ("def f(self, node, more=0): ...", fits.CHANGED, ""),
        ("def f(self): ...", fits.MISFIT, "no parameter node (it has self)"),
        ("def g(self, node): ...", fits.MISFIT, "missing"),
        ("f = None", fits.MISFIT, "not a function"),
    ],
)
def test_a_misfit_says_why(tmp_path: Path, other: str, verdict: str, why: str) -> None:
    for name, text in (("here", "def f(self, node): ..."), ("there", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(text, encoding="utf-8")
    hook = Hook(
        target="m.f", parameters=("self", "node"), kind="uses", reason="test", upstream="none"
    )
    here, there = Sources(tmp_path / "here"), Sources(tmp_path / "there")
    found = fits._attachment(hook, there, here, set())
    assert (found.verdict, found.why) == (verdict, why)
