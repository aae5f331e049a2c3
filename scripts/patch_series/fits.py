# SPDX-License-Identifier: Apache-2.0
"""What of the plugin and of the series fits another release of SGLang, given as a wheel.

The wheel is unpacked and parsed, not installed or imported. That a name and its parameters are
there does not say that they mean the same, so what has other code than the supported release is
counted too: somebody has to read it.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patch_series.series import Series, SeriesError
from patch_series.sources import Sources, imported_from, parameters, same
from patch_series.tree import Tree, Wheel, make_tree
from sglang_jenga.sglang_ext.hook_table import HOOKS, Hook
from sglang_jenga.sglang_ext.native import SEAMS

_PACKAGE = Path(__file__).resolve().parents[2] / "python" / "sglang_jenga"
SAME, CHANGED, MISFIT, NATIVE = "same", "changed", "misfit", "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How one attachment, import or patch fits.

    verdict: ``same`` (as in the supported release; a patch: applies), ``changed`` (fits, has other
        code), ``misfit``, ``native`` (not needed there). why: of a misfit.
    """

    name: str
    verdict: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All that was found of one release."""

    version: str
    attachments: tuple[Finding, ...]
    imports: tuple[Finding, ...]
    patches: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Nothing of it is a misfit. Whether ``changed`` code means the same is not known."""
        found = (*self.attachments, *self.imports, *self.patches)
        return all(finding.verdict != MISFIT for finding in found)


def fit(wheel: Wheel, supported: Wheel, series: Series, work: Path) -> Fit:
    """Try ``wheel``; ``supported`` is what the plugin and the series are written against.

    Raises:
        SeriesError: the wheel's files are not those of its RECORD.
    """
    there, here = Sources(wheel.folder), Sources(supported.folder)
    native = {t for seam in SEAMS if there.find(seam.symbol) for t in seam.replaces}
    return Fit(
        version=wheel.version,
        attachments=tuple(_attachment(hook, there, here, native) for hook in HOOKS),
        imports=tuple(_imports(there, here)),
        patches=tuple(_patches(series, make_tree(wheel, work / f"{wheel.version}-fits"))),
    )


def _attachment(hook: Hook, there: Sources, here: Sources, native: set[str]) -> Finding:
    if hook.target in native:
        return Finding(name=hook.target, verdict=NATIVE)
    found = there.find(hook.target)
    if found is None:
        return Finding(name=hook.target, verdict=MISFIT, why="missing")
    has = parameters(found)
    lacks = [name for name in hook.parameters if has is not None and name not in has]
    if hook.parameters and has is None:
        return Finding(name=hook.target, verdict=MISFIT, why="not a function")
    if lacks:
        why = f"no parameter {', '.join(lacks)} (it has {', '.join(has or ())})"
        return Finding(name=hook.target, verdict=MISFIT, why=why)
    return Finding(name=hook.target, verdict=_compared(found, here.find(hook.target)))


def _compared(found: ast.AST, before: ast.AST | None) -> str:
    return SAME if before is not None and same(found, before) else CHANGED


def _imports(there: Sources, here: Sources) -> list[Finding]:
    """Names that the package imports."""
    users: dict[str, Path] = {}
    for name, file in imported_from("sglang", sorted(_PACKAGE.rglob("*.py"))):
        users.setdefault(name, file.relative_to(_PACKAGE))
    findings = []
    for name, file in sorted(users.items()):
        before, found = here.find(name), there.find(name)
        if found is None:
            findings.append(Finding(name=name, verdict=MISFIT, why=f"missing; {file} imports it"))
        else:
            findings.append(Finding(name=name, verdict=_compared(found, before)))
    return findings


def _patches(series: Series, tree: Tree) -> list[Finding]:
    findings = []
    for patch in series.patches:
        tree.reset()
        try:
            tree.apply([series.path(earlier) for earlier in series.needed_by(patch)])
            tree.apply([series.path(patch)])
        except SeriesError as error:
            wrong = [line for line in str(error).splitlines() if line.startswith("error: ")]
            why = "; ".join(line.removeprefix("error: ") for line in wrong) or str(error)
            findings.append(Finding(name=patch.file, verdict=MISFIT, why=why))
        else:
            findings.append(Finding(name=patch.file, verdict=SAME))
    tree.reset()
    return findings


def tell(fit: Fit, supported: str, say: Callable[[str], None]) -> None:
    """The findings in words: counts, then every misfit, then what has to be read."""
    say(f"sglang {fit.version}, compared with {supported}")
    for title, findings in (
        ("attachments", fit.attachments),
        ("imports", fit.imports),
        ("patches", fit.patches),
    ):
        count = Counter(finding.verdict for finding in findings)
        words = ", ".join(f"{count[v]} {v}" for v in (SAME, CHANGED, NATIVE, MISFIT) if count[v])
        say(f"{title:12} {len(findings):4}: {words}")
        for finding in findings:
            if finding.verdict == MISFIT:
                say(f"  misfit   {finding.name}: {finding.why}")
        for finding in findings:
            if finding.verdict == CHANGED:
                say(f"  changed  {finding.name}")
    say("everything fits" if fit.fits else "not everything fits")


def unpacked(asked: str, work: Path) -> Wheel:
    """The wheel ``asked``: a file, or a version that pip downloads; unpacked below ``work``.

    Raises:
        SeriesError: there is no such file, pip could not download it, or it is not SGLang's.
    """
    file = Path(asked)
    if not asked.endswith(".whl"):
        folder = work / "wheels" / asked
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        if not list(folder.glob("*.whl")) and subprocess.call(
            [*command, "--dest", str(folder), f"sglang=={asked}"]
        ):
            raise SeriesError(f"pip could not download sglang {asked}; name a wheel file instead")
        file = next(folder.glob("*.whl"))
    distribution, version, *_ = file.name.split("-")
    if distribution != "sglang" or not file.is_file():
        raise SeriesError(f"{file} is not a file sglang-VERSION-....whl")
    target = work / "wheels" / f"{version}-unpacked"
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(target)
    return Wheel(folder=target, version=version)
