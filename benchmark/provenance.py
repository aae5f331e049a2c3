# SPDX-License-Identifier: Apache-2.0
"""Which code a recorded number is about."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Hash of the checked-out commit, with ``+`` after it when tracked files differ from it."""
    hash_ = _git("rev-parse", "--short=12", "HEAD")
    if not hash_:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!*/results/*")
    return f"{hash_}+" if changed else hash_


def _git(*arguments: str) -> str:
    completed = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.stdout.strip()
