# SPDX-License-Identifier: Apache-2.0
"""The fork is SGLang as released, the series and the plugin's package, whole, and serves alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest

from patch_series.fork import make_fork
from patch_series.series import RELEASE, SeriesError, load
from patch_series.tree import RELEASED, Tree, installed_wheel

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """The source tree, and the folder that pip would install from it."""

    tree: Tree
    built: Path

    @property
    def metadata(self) -> Distribution:
        return PathDistribution(self.built / "sglang.egg-info")


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Fork:
    folder = tmp_path_factory.mktemp("fork")
    tree = make_fork(load(), installed_wheel(), folder / "tree")
    built = folder / "built"
    built.mkdir()
    steps = ["egg_info", "--egg-base", str(built), "build_py", "--build-lib", str(built)]
    command = [sys.executable, "setup.py", "--quiet", *steps]
    subprocess.run(command, cwd=tree.folder, check=True, capture_output=True)
    return Fork(tree=tree, built=built)


def test_every_file_of_the_release_is_installed(fork: Fork) -> None:
    assert [p for p in installed_wheel().record() if not (fork.built / p).exists()] == []


def test_only_what_the_series_touches_differs_from_the_release(fork: Fork) -> None:
    wheel = installed_wheel()
    differing = {
        path
        for path in wheel.record()
        if (fork.built / path).read_bytes() != (wheel.folder / path).read_bytes()
    }
    touched = fork.tree.git("diff", "--name-only", RELEASED, "HEAD~", "--", "python").split()
    changed = {path.removeprefix("python/") for path in touched}
    assert differing == changed & set(wheel.record())
    assert all((fork.built / path).exists() for path in changed)


def test_the_package_of_the_plugin_is_installed_whole(fork: Fork) -> None:
    package = ROOT / "python" / "sglang_jenga"
    files = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    for file in files:
        copy = fork.built / "sglang_jenga" / file.relative_to(package)
        assert copy.read_bytes() == file.read_bytes(), file


def test_it_is_sglang_to_pip_and_names_the_plugin_itself(fork: Fork) -> None:
    assert fork.metadata.metadata["Name"] == "sglang"
    assert fork.metadata.version == f"{RELEASE}+jenga"
    named = {(entry.group, entry.name): entry.value for entry in fork.metadata.entry_points}
    assert named["sglang.srt.plugins", "jenga"] == "sglang_jenga.sglang_ext.plugin:load"
    assert named["console_scripts", "sglang-jenga"] == "sglang_jenga.cli.__main__:main"
    for entry in distribution("sglang").entry_points:
        assert named[entry.group, entry.name] == entry.value


def test_it_needs_what_the_release_needs(fork: Fork) -> None:
    def needs(found: Distribution) -> set[str]:
        ignored = str.maketrans("", "", " ()")  # of markers: written in two ways
        return {need.translate(ignored) for need in found.requires or ()}

    assert needs(fork.metadata) == needs(distribution("sglang"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "mine.txt"
    kept.write_text("mine", encoding="utf-8")
    with pytest.raises(SeriesError, match="is not empty"):
        make_fork(load(), installed_wheel(), tmp_path)
    assert [kept] == list(tmp_path.iterdir()) and kept.read_text(encoding="utf-8") == "mine"
