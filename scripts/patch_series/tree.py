# SPDX-License-Identifier: Apache-2.0
"""SGLang's installed wheel as a git repository in upstream's layout (``python/sglang/...``).

Upstream's repository is not needed, and no network: the wheel holds every file that a patch of the
series touches, and its RECORD says whether they are still what was released.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from patch_series.series import SeriesError

#: The commit that is the wheel as released.
RELEASED = "released"
_IDENTITY = ("-c", "user.name=sglang-jenga", "-c", "user.email=sglang-jenga@localhost")
# Written by nobody: the same tree gives the same commit on every machine.
_WHEN = "2026-10-30T00:00:00+00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """An unpacked wheel: the folder that holds ``sglang/`` and its ``.dist-info``."""

    folder: Path
    version: str

    def record(self) -> dict[str, str]:
        """Hashes (``sha256=...``) of SGLang's own files by path below ``folder``."""
        info = self.folder / f"sglang-{self.version}.dist-info" / "RECORD"
        with info.open(encoding="utf-8", newline="") as file:
            return {
                path: digest
                for path, digest, _ in csv.reader(file)
                if path.startswith("sglang/") and digest
            }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A git repository in upstream's layout."""

    folder: Path

    @property
    def python(self) -> Path:
        """What goes on PYTHONPATH."""
        return self.folder / "python"

    def git(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        """Run git in the tree and return what it prints.

        Raises:
            SeriesError: its exit status is not one of ``ok``.
        """
        return git(self.folder, *arguments, ok=ok)

    def reset(self) -> None:
        """Back to the wheel as released, with no patch."""
        self.git("am", "--abort", ok=(0, 128))
        self._checkout(RELEASED)

    def apply(self, patches: Sequence[Path]) -> None:
        """Commit ``patches`` on top of what is checked out, as ``git am`` does, fuzz not allowed.

        Raises:
            SeriesError: one of them does not apply; the tree is as it was before that one.
        """
        for patch in patches:
            try:
                # Keep [Area] in the subject: without the flag all brackets go.
                self.git("am", "--quiet", "--keep-non-patch", str(patch))
            except SeriesError as error:
                self.git("am", "--abort", ok=(0, 128))
                raise SeriesError(f"{patch.name} does not apply: {error}") from error

    def _checkout(self, commit: str) -> None:
        self.git("checkout", "--quiet", "--force", "--detach", commit)
        self.git("clean", "--quiet", "--force", "-d")


def git(folder: Path, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
    """Run git in ``folder``, not looking for a repository above it.

    Raises:
        SeriesError: git is missing, or its exit status is not one of ``ok``.
    """
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment |= {
        "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_DATE": _WHEN,
        "GIT_COMMITTER_DATE": _WHEN,
    }
    try:
        done = subprocess.run(
            ["git", *_IDENTITY, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise SeriesError("git is not installed; the series needs it (apt install git)") from None
    if done.returncode not in ok:
        said = (done.stderr + done.stdout).strip()
        raise SeriesError(f"git {' '.join(arguments[:3])}: exit status {done.returncode}: {said}")
    return done.stdout


def installed_wheel() -> Wheel:
    """The SGLang of the running interpreter."""
    found = distribution("sglang")
    return Wheel(folder=Path(str(found.locate_file(""))), version=found.version)


def require_released(wheel: Wheel) -> None:
    """Compare every Python source of ``wheel`` with the hash in its RECORD.

    Raises:
        SeriesError: files differ from what was released, or are missing.
    """
    wrong = []
    for path, digest in wheel.record().items():
        name, _, expected = digest.partition("=")
        try:
            found = hashlib.new(name, (wheel.folder / path).read_bytes()).digest()
        except FileNotFoundError:
            wrong.append(f"{path} is missing")
            continue
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != expected:
            wrong.append(f"{path} was changed")
    if wrong:
        raise SeriesError(
            f"sglang {wheel.version} in {wheel.folder} is not as released, {len(wrong)} files "
            f"differ: {', '.join(wrong[:5])}. Install it again: "
            f"pip install --force-reinstall --no-deps sglang=={wheel.version}"
        )


def make_tree(wheel: Wheel, folder: Path) -> Tree:
    """The tree of ``wheel`` in ``folder``, made unless a finished one is there; at ``RELEASED``.

    Raises:
        SeriesError: the wheel is not as released.
    """
    tree = Tree(folder=folder)
    stamp = folder / ".git" / f"made-from-{_fingerprint(wheel)}"
    if stamp.exists():
        tree.reset()
        return tree
    require_released(wheel)
    shutil.rmtree(folder, ignore_errors=True)
    for path in wheel.record():
        _place(wheel.folder / path, tree.python / path)
    (folder / ".gitignore").write_text("__pycache__/\n*.so\n", encoding="utf-8")
    tree.git("init", "--quiet")
    # A wheel has lost the modes of upstream's files; patches name them all the same.
    tree.git("config", "core.fileMode", "false")
    tree.git("add", "--all")
    tree.git("commit", "--quiet", "--message", f"SGLang {wheel.version}, as in its wheel")
    tree.git("tag", RELEASED)
    stamp.touch()
    return tree


def _place(source: Path, target: Path) -> None:
    """Libraries are large and never patched: linked where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".so":
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)


def _fingerprint(wheel: Wheel) -> str:
    lines = "\n".join(f"{path} {digest}" for path, digest in sorted(wheel.record().items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
