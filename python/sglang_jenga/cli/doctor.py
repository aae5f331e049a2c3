# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga doctor``: can this environment serve with Jenga, and with these flags?"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from sglang_jenga.cli.arguments import add_output
from sglang_jenga.cli.terminal import Screen

EXAMPLES = """examples:
  sglang-jenga doctor
  sglang-jenga doctor -- --model-path google/gemma-3-27b-it --page-size 16 --tp 2
  sglang-jenga doctor --format json -- --enable-hierarchical-cache

What follows -- is a command line for the server: with a --model-path it is resolved as the server
resolves it. Nothing is served and no weights are read.

Exit status: 0 all fine, 1 something would fail.
"""
SCHEMA = 1
_DISTRIBUTIONS = ("sglang-jenga", "sglang", "torch", "flashinfer-python", "triton", "transformers")
_NEEDED = ("sglang-jenga", "sglang", "torch")
_PLUGIN_GROUP = "sglang.srt.plugins"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds to wait for SGLang (%(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="show what SGLang logs meanwhile")
    parser.add_argument("server", nargs=argparse.REMAINDER, metavar="-- SERVER ARGUMENTS")


def run(args: argparse.Namespace) -> tuple[str, int]:
    """What to print, and 1 if anything is not fine."""
    server_args = args.server[1:] if args.server[:1] == ["--"] else args.server
    findings = [_versions(), _plugin()]
    if all(found["ok"] for found in findings):
        Screen(sys.stderr).line("Loading SGLang and its plugins in two processes ...")
        findings += _inside(server_args, args.timeout, verbose=args.verbose)
    fine = all(found["ok"] for found in findings)
    if args.format == "json":
        return json.dumps({"schema": SCHEMA, "ok": fine, "findings": findings}, indent=2), not fine
    return describe(findings), not fine


def describe(findings: list[dict[str, Any]]) -> str:
    """The findings, for people."""
    width = max(len(found["check"]) for found in findings)
    lines = []
    for found in findings:
        mark = "ok  " if found["ok"] else "FAIL"
        first, *more = found["says"]
        lines.append(f"{mark}  {found['check']:<{width}}  {first}")
        lines += [f"{'':{width + 8}}{text}" for text in more]
    failed = [found["check"] for found in findings if not found["ok"]]
    lines += ["", f"not fine: {', '.join(failed)}" if failed else "all fine"]
    return "\n".join(lines)


def _versions() -> dict[str, Any]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    missing = [name for name in _NEEDED if found[name] == "missing"]
    says = ", ".join(f"{name} {number}" for name, number in found.items())
    problems = [
        f"{name} is not installed here ({sys.prefix}): pip install 'sglang-jenga[serve]'"
        for name in missing
    ]
    return {
        "check": "versions",
        "ok": not missing,
        "says": [*problems, f"python {platform.python_version()}, {says}"],
    }


def _plugin() -> dict[str, Any]:
    found = [ep.value for ep in entry_points(group=_PLUGIN_GROUP) if ep.name == "jenga"]
    fine = len(found) == 1
    says = found or ["no entry point named jenga: pip install sglang-jenga here"]
    if len(found) > 1:
        says = [f"installed {len(found)} times: {', '.join(found)}; uninstall one"]
    return {"check": "plugin", "ok": fine, "says": says}


def _inside(
    server_args: list[str], timeout_seconds: float, *, verbose: bool
) -> list[dict[str, Any]]:
    """Findings of a process that loads SGLang."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "findings.json"
        command = [sys.executable, "-m", "sglang_jenga.sglang_ext.diagnose", str(answer)]
        try:
            done = subprocess.run(
                [*command, *server_args],
                stdout=subprocess.DEVNULL,
                stderr=None if verbose else subprocess.PIPE,
                text=True,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            says = [f"SGLang was not loaded after {timeout_seconds:.0f} s: give --timeout more"]
            return [{"check": "sglang", "ok": False, "says": says}]
        if answer.exists():
            findings: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
            return findings
    last = (done.stderr or "its log is above").strip().splitlines()[-5:]
    says = [f"loading SGLang failed, exit status {done.returncode}:", *last]
    return [{"check": "sglang", "ok": False, "says": says}]
