# SPDX-License-Identifier: Apache-2.0
"""One SGLang server as a child process: started, waited for, and always stopped."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.5
_STOP_SECONDS = 15.0
_PORTS = (20_000, 32_000)
#: The last line of a Python traceback, as SGLang's processes print it.
_ERROR = re.compile(r"^(\[[^]]*\] )?([A-Za-z_]\w*\.)*\w*(Error|Exception|Exhausted): ")


class ServerError(RuntimeError):
    """The server ended, or did not answer in time. The message says which and shows its log."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment.

    Below the range that connections are given theirs from: a server binds it half a minute later.
    """
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """``python -m sglang.launch_server`` on a free loopback port; a context manager.

    Args:
        model: what goes to ``--model-path``.
        flags: further flags of the server.
        log_path: file that takes the output of all server processes.
        environ: variables to set beside the inherited ones.

    Leaving the context stops the server and every process it started.
    """

    #: What answers 200 once the server can serve.
    health_path = "/health_generate"

    def __init__(
        self,
        model: str,
        flags: Sequence[str],
        *,
        log_path: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        self.command = [
            sys.executable,
            "-m",
            "sglang.launch_server",
            *("--model-path", model),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *flags,
        ]
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches only us, one signal reaches all its processes.
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until_ready(self, timeout_seconds: float, tick: Callable[[float], None]) -> float:
        """Seconds until the server generated a token. ``tick`` gets the seconds so far.

        Raises:
            ServerError: it ended, or ``timeout_seconds`` passed.
        """
        start = time.monotonic()
        while not self._answers():
            elapsed = time.monotonic() - start
            self.require_running()
            if elapsed > timeout_seconds:
                raise ServerError(
                    f"the server did not answer within {timeout_seconds:.0f} s: give it more time "
                    f"with --timeout, or read why it is slow:\n{self.log_tail()}"
                )
            tick(elapsed)
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - start

    def require_running(self) -> None:
        """Raise ServerError, with the end of the log, when the server has ended."""
        if self._process is None:
            raise ServerError("the server was never started")
        code = self._process.poll()
        if code is not None:
            reason = next((x for x in reversed(self.log_lines()) if _ERROR.match(x)), "")
            raise ServerError(
                f"the server ended with status {code}. {reason}\n"
                f"The end of its log:\n{self.log_tail()}"
            )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.health_path, timeout=30) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False  # not listening yet, or 503 while it warms up

    def log_lines(self, containing: str = "") -> list[str]:
        """Lines of the server's log, each cut to a readable length."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line[:600] for line in text.splitlines() if containing in line]

    def log_tail(self, lines: int = 25) -> str:
        """The end of the log, indented, and where to read the rest."""
        tail = "\n".join(f"    {line}" for line in self.log_lines()[-lines:])
        return f"{tail}\n(the whole log: {self.log_path})"

    def kill(self) -> None:
        """End it as a crash of the machine would: every process at once, nothing said."""
        if self._process is None:
            raise ServerError("the server was never started")
        os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask the server to end, then make sure that none of its processes is left. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        finally:
            # The group outlives its leader when a child hangs; none of it may outlive us.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
