# SPDX-License-Identifier: Apache-2.0
"""SGLang with the series applied and the plugin's package beside it, as one source tree for pip.

The wheel has lost upstream's ``pyproject.toml``, so one is made from the wheel's metadata. The
fork is SGLang to pip (``sglang 0.5.23+jenga``), and it names the plugin in its own entry points:
no process of SGLang loads a plugin in any other way, and nothing else has to be installed.
"""

from __future__ import annotations

import json
import re
import shutil
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from patch_series.series import Series, SeriesError
from patch_series.tree import Tree, Wheel, make_tree

_ROOT = Path(__file__).resolve().parents[2]
_LOCAL = "jenga"
_EXTRA = re.compile(r"""\s*(?:;|\band\b)\s*extra\s*==\s*['"]([^'"]+)['"]\s*$""")
#: What lies in the folder of a package is part of it, hidden files too.
_MANIFEST = "graft python\nglobal-exclude *.py[cod]\n"
#: SGLang's libraries are built for one Python and one machine, and so is a wheel of them.
_SETUP = '''\
"""Everything is in pyproject.toml, but that the wheel holds compiled libraries."""

from setuptools import Distribution, setup


class WithLibraries(Distribution):
    def has_ext_modules(self):
        return True


setup(distclass=WithLibraries)
'''
_README = """\
# SGLang {release} with sglang-jenga

A modified SGLang: the release, {count} patches, and the package sglang_jenga beside it. Made from
SGLang's wheel by sglang-jenga; `git log --stat released..` shows every change and why it was made.

    pip uninstall sglang-jenga        # if the plugin is installed: it is part of this
    pip install .
    sglang serve --model-path MODEL --radix-cache-backend jenga

Without the flag it is SGLang as released, with the patches. To pip it is sglang {version}.
"""


def make_fork(series: Series, wheel: Wheel, folder: Path) -> Tree:
    """Write the fork into ``folder``: the release, a commit per patch, and one for the rest.

    Raises:
        SeriesError: something is in ``folder``, the wheel is not as released, or a patch fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SeriesError(f"{folder} is not empty; name a folder that is, or that does not exist")
    tree = make_tree(wheel, folder)
    tree.apply([series.path(patch) for patch in series.patches])
    package = _ROOT / "python" / "sglang_jenga"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tree.python / "sglang_jenga", ignore=skipped)
    info = wheel.folder / f"sglang-{wheel.version}.dist-info"
    shutil.copytree(info / "licenses", folder, dirs_exist_ok=True)
    version = f"{wheel.version}+{_LOCAL}"
    readme = _README.format(release=wheel.version, count=len(series.patches), version=version)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "setup.py").write_text(_SETUP, encoding="utf-8")
    (folder / "MANIFEST.in").write_text(_MANIFEST, encoding="utf-8")
    (folder / "pyproject.toml").write_text(project(info, version), encoding="utf-8")
    (folder / ".gitignore").write_text("__pycache__/\n*.so\n/build/\n*.egg-info/\n", "utf-8")
    tree.git("add", "--all")
    tree.git("commit", "--quiet", "--message", "sglang-jenga beside it, and how to install both")
    return tree


def project(info: Path, version: str) -> str:
    """``pyproject.toml`` of the fork, from the wheel's ``.dist-info``."""
    metadata = HeaderParser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    plain, extras = _dependencies(metadata)
    lines = [
        "[build-system]",
        'requires = ["setuptools>=77"]',
        'build-backend = "setuptools.build_meta"',
        "",
        "[project]",
        'name = "sglang"',
        f"version = {json.dumps(version)}",
        'description = "SGLang with the patches and the package of sglang-jenga"',
        'readme = "README.md"',
        'license = "Apache-2.0"',
        'license-files = ["LICENSE"]',
        f"requires-python = {json.dumps(_python(info, metadata))}",
        f"dependencies = {_list(plain)}",
        *(["", "[project.optional-dependencies]"] if extras else []),
        *(f"{json.dumps(name)} = {_list(needs)}" for name, needs in extras.items()),
        "",
        "[project.scripts]",
        *_scripts(info),
        'sglang-jenga = "sglang_jenga.cli.__main__:main"',
        "",
        '[project.entry-points."sglang.srt.plugins"]',
        'jenga = "sglang_jenga.sglang_ext.plugin:load"',
        "",
        "[tool.setuptools]",
        'package-dir = { "" = "python" }',
        "",
        "[tool.setuptools.packages.find]",
        'where = ["python"]',
        'include = ["sglang", "sglang.*", "sglang_jenga", "sglang_jenga.*"]',
    ]
    return "\n".join(lines) + "\n"


def _dependencies(metadata: Message) -> tuple[list[str], dict[str, list[str]]]:
    """Requirements without an extra, and by extra."""
    plain: list[str] = []
    extras: dict[str, list[str]] = {n: [] for n in metadata.get_all("Provides-Extra", [])}
    for need in metadata.get_all("Requires-Dist", []):
        extra = _EXTRA.search(need)
        if extra:
            extras.setdefault(extra[1], []).append(need[: extra.start()])
        else:
            plain.append(need)
    return plain, extras


def _python(info: Path, metadata: Message) -> str:
    """The Pythons that the wheel's libraries load in, not only those that its sources run on."""
    wheel = HeaderParser().parsestr((info / "WHEEL").read_text(encoding="utf-8"))
    interpreter, abi, _ = wheel["Tag"].split("-")
    bound = re.fullmatch(r"cp(\d)(\d+)", abi)
    if bound and interpreter == abi:
        return f"=={bound[1]}.{bound[2]}.*"
    return str(metadata["Requires-Python"])


def _scripts(info: Path) -> list[str]:
    text = (info / "entry_points.txt").read_text(encoding="utf-8")
    section = text.split("[console_scripts]", 1)[1].split("[", 1)[0]
    named = [line.split("=", 1) for line in section.splitlines() if "=" in line]
    return [f"{name.strip()} = {json.dumps(where.strip())}" for name, where in named]


def _list(requirements: list[str]) -> str:
    return "[\n" + "".join(f"    {json.dumps(need)},\n" for need in requirements) + "]"
