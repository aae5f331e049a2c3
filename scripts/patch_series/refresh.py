# SPDX-License-Identifier: Apache-2.0
"""Patch files from the commits of a tree, the same bytes on every machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from patch_series.series import SeriesError
from patch_series.tree import RELEASED, Tree

_FORM = (
    "format-patch",
    "--quiet",
    "--zero-commit",
    "--no-signature",
    "--no-numbered",
    "--full-index",
    "--abbrev=40",
    "--subject-prefix=PATCH",
)


def written(tree: Tree) -> dict[str, bytes]:
    """The series that the commits of ``tree`` since the release are, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        tree.git(*_FORM, "--output-directory", folder, RELEASED)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def refresh(series: Path, folder: Path) -> list[str]:
    """Write the commits of the tree in ``folder`` into the folder ``series``; what changed there.

    Files that the commits no longer give are removed. ``series.toml`` is yours to adjust.

    Raises:
        SeriesError: there is no tree, or it has no commit.
    """
    if not (folder / ".git").exists():
        raise SeriesError(f"{folder} is no tree: make it with `upstream.py tree`")
    new = written(Tree(folder=folder))
    if not new:
        raise SeriesError(f"{folder} has no commit since {RELEASED!r}: nothing to write")
    changed = []
    for old in series.glob("*.patch"):
        if old.name not in new:
            old.unlink()
            changed.append(f"{old.name} (removed)")
    for name, content in new.items():
        path = series / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
            changed.append(name)
    return changed
