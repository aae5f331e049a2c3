# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does: links, commands, tables and messages exist."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sglang_jenga.core.catalog import CATALOG
from sglang_jenga.sglang_ext.config import KNOWN, TEST_SEED
from sglang_jenga.sglang_ext.hook_table import HOOKS
from sglang_jenga.tiny import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import docs_tables  # noqa: E402

FOLDERS = ("python", "sglang_portable_cpu", "tests", "benchmark", "scripts", "docs", "patches")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(found), f"{name(page)}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_commands_in_the_docs_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE))
    assert used <= targets, f"{name(page)} names {used - targets}, the Makefile has {targets}"


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].strip() for line in lines[1:6] if line.startswith("    ")]
    assert commands == ["make demo", "make test"]


def test_every_make_target_that_runs_a_script_has_its_script() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = re.findall(r"\$\(PY(?:THON)?\) ((?:scripts|benchmark)/\S+\.py)", makefile)
    assert len(scripts) >= 4
    missing = [script for script in scripts if not (ROOT / script).exists()]
    assert not missing, f"the Makefile runs {missing}"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=name
)
def test_tables_made_from_code_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert docs_tables.rewritten(text) == text, "run `make docs` and commit what it writes"


def test_the_design_has_every_hook_and_every_catalogue_model() -> None:
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    for hook in HOOKS:
        assert f"`{hook.target.removeprefix('sglang.srt.')}` | {hook.kind}" in text
    for model in CATALOG:
        assert f"| {model} |" in text


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    for page in ("README.md", "docs/user-guide.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"\bSGLANG_JENGA_[A-Z_]*[A-Z]\b", text))
        assert named == set(KNOWN) - {TEST_SEED}, page


def test_the_readme_lists_the_architectures_that_are_checked() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|.*\| `([a-z0-9_]+)` \|$", text, re.MULTILINE)
    assert sorted(listed) == sorted(FAMILIES)


def literals(paths: list[Path]) -> str:
    """String literals of the sources, adjacent ones joined, as messages read."""
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                found.append("".join(map(str, parts)))
    return "\n".join(found)


@pytest.mark.parametrize("page", ["docs/user-guide.md", "docs/plan.md"])
def test_messages_in_the_troubleshooting_table_are_messages_of_the_code(page: str) -> None:
    guide = (ROOT / page).read_text(encoding="utf-8")
    section = guide.split("## Troubleshooting by message")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(quoted) >= 6
    sglang = find_spec("sglang")
    assert sglang is not None and sglang.origin is not None
    registry = Path(sglang.origin).parent / "srt/mem_cache/registry.py"
    ours = [path for path in SOURCES if path.is_relative_to(ROOT / "python")]
    text = literals([*ours, registry])
    for message in quoted:
        # A variable's name is put in where the message is made.
        shown = message.replace("SGLANG_JENGA_", "{}")
        assert message in text or shown in text, f"nothing prints {message!r}"


def test_sources_state_their_licence() -> None:
    texts = {name(source): source.read_text(encoding="utf-8") for source in SOURCES}
    licence = "# SPDX-License-Identifier: Apache-2.0"
    assert not [where for where, text in texts.items() if text and text.split("\n")[0] != licence]


def test_packaged_modules_stay_readable_in_one_sitting() -> None:
    """400 lines; a module that grows past them holds two ideas."""
    limit = 400
    long = {
        name(path): lines
        for path in SOURCES
        if path.is_relative_to(ROOT / "python") or path.is_relative_to(ROOT / "sglang_portable_cpu")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit
    }
    assert not long, f"split these: {long}"


def test_nothing_mentions_a_place_outside_of_the_repository() -> None:
    places = ("/" + "work/", "/" + "opt/")
    for path in (*SOURCES, *PAGES, ROOT / "Makefile", ROOT / "pyproject.toml"):
        text = path.read_text(encoding="utf-8")
        found = [place for place in places if place in text]
        assert not found, f"{name(path)} mentions {found}"


def test_the_code_of_a_new_kind_is_the_code_of_its_example() -> None:
    text = (ROOT / "docs/new-kind.md").read_text(encoding="utf-8")
    example = [path.read_text("utf-8") for path in (ROOT / "docs/examples").glob("*/*.py")]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert any(block in source for source in example), block
