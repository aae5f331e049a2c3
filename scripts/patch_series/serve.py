# SPDX-License-Identifier: Apache-2.0
"""The plugin on a patched SGLang: what is still wrapped there, and whether answers stay equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from patch_series.tree import Tree

_ROOT = Path(__file__).resolve().parents[2]
#: Families whose servers use every seam between them: windows, states, images, flags of the plugin.
_SUBSET = "gemma3-tight or granite_hybrid-tight or gemma3_vision-tight"


def environment(tree: Tree | None) -> dict[str, str]:
    """The environment of a command that imports ``tree``'s SGLang, None: the installed one."""
    paths = [*([] if tree is None else [tree.python]), _ROOT / "python"]
    paths.append(_ROOT / "sglang_portable_cpu" / "src")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def attachments(tree: Tree | None) -> str:
    """How many attachments the plugin makes there, in words."""
    command = (
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang_jenga.sglang_ext.diagnose import attached, how_attached\n"
        "problems = attached()\n"
        "print(problems or ', '.join(f'{n} {how}' for how, n in how_attached().items()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        env=environment(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def demo(tree: Tree) -> int:
    """Serve the demo on the patched SGLang. Exit status."""
    return subprocess.call([sys.executable, "-m", "sglang_jenga.demo"], env=environment(tree))


def identity(tree: Tree) -> int:
    """Answers of a patched server with the plugin against a stock one. Exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/server/test_identity.py"]
    return subprocess.call([*command, "-k", _SUBSET], env=environment(tree), cwd=_ROOT)
