# SPDX-License-Identifier: Apache-2.0
"""``sglang-router`` as a child process: cache-aware routing over servers that are up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_jenga.demo.server import Server, ServerError, free_port

#: A dead server is noticed within two of these.
_HEALTH_CHECK_SECONDS = 1
_FAILURES_TO_GIVE_UP = 2


class Router(Server):
    """The router in front of ``workers``, on a free loopback port; a context manager.

    Args:
        python: an interpreter that has ``sglang_router``.
        policy: how it routes, a value of its ``--policy``.
        workers: URLs of servers.
    """

    def __init__(self, python: str, policy: str, workers: Sequence[str], *, log_path: Path) -> None:
        super().__init__("", (), log_path=log_path)
        self.command = [
            *(python, "-m", "sglang_router.launch_router"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--worker-urls", *workers, "--policy", policy),
            # A small load: differences of a few requests are worth balancing.
            *("--balance-abs-threshold", "4"),
            *("--health-check-interval-secs", str(_HEALTH_CHECK_SECONDS)),
            *("--health-failure-threshold", str(_FAILURES_TO_GIVE_UP)),
            *("--cb-failure-threshold", str(_FAILURES_TO_GIVE_UP)),
            *("--worker-startup-check-interval", "1"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        ]

    health_path = "/readiness"


def router_version(python: str) -> str:
    """The version of ``sglang_router`` that ``python`` imports.

    Raises:
        ServerError: it has none; the message says how to get one.
    """
    code = "import importlib.metadata, sglang_router.router; " + (
        "print(importlib.metadata.version('sglang-router'))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ServerError(
            f"{python} cannot import sglang_router ({last}). Install it, best into an environment "
            "of its own (python -m venv .venv-router; .venv-router/bin/pip install sglang-router), "
            "and name that: --router-python .venv-router/bin/python"
        )
    return done.stdout.strip()


def default_python(root: Path = Path()) -> str:
    """An interpreter that may have the router.

    What ``JENGA_ROUTER_PYTHON`` names, else that of ``.venv-router`` below ``root``, where
    ``make scale-router`` puts it, else this one.
    """
    named = os.environ.get("JENGA_ROUTER_PYTHON")
    own = root / ".venv-router" / "bin" / "python"
    return named or (str(own) if own.exists() else sys.executable)
