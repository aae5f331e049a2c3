# SPDX-License-Identifier: Apache-2.0
"""Start a real SGLang server in its own process group, with every check of SGLang's switched on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sglang_jenga.demo.server import free_port

#: SGLang's own checks: idle and busy memory accounting, page census, radix tree sanity.
STRICT_CHECKS: Mapping[str, str] = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_ENABLE_TREE_CACHE_SANITY_CHECK": "1",
    "SGLANG_DEBUG_MEMORY_POOL": "1",
}
START_TIMEOUT_SECONDS = 420.0
STOP_TIMEOUT_SECONDS = 20.0
#: What a healthy server never logs. SGLang reports a leak or a crashed scheduler in these words.
_TROUBLE = re.compile(
    r"Traceback|leak detected|double free|use-after-free|Leak Detected|AssertionError"
    r"|Scheduler hit an exception|arena: .* failed|SIGQUIT|Failed to apply hook"
)


class ServerDied(RuntimeError):
    """The server's main process ended, or never became ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """What to start. ``jenga``: the arena; otherwise SGLang's own pools, same attention."""

    model_path: Path
    jenga: bool
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1"),
            *("--port", str(port), "--model-path", str(self.model_path)),
            *("--dtype", "float32", "--device", "cpu", "--mem-fraction-static", "0.5"),
            *("--enable-cache-report", "--constrained-json-disable-any-whitespace"),
            *(("--radix-cache-backend", "jenga") if self.jenga else ()),
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **STRICT_CHECKS,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            # The stock server computes attention with the same code: only memory differs.
            "SGLANG_JENGA_REFERENCE_ATTENTION": "1",
            **self.env,
        }


class RunningServer:
    """A started server; ``url`` answers until :meth:`stop`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and b"SIGQUIT" not in self._tail(4096)

    def log_size(self) -> int:
        """Bytes logged so far: a mark for :meth:`log_since`."""
        return self.log_path.stat().st_size

    def log_since(self, mark: int = 0) -> str:
        with self.log_path.open("rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")

    def trouble_since(self, mark: int = 0) -> list[str]:
        """Log lines after ``mark`` that a healthy server never writes."""
        return [line for line in self.log_since(mark).splitlines() if _TROUBLE.search(line)]

    def _tail(self, num_bytes: int) -> bytes:
        return self.log_since(max(0, self.log_size() - num_bytes)).encode()

    def wait_until_ready(self) -> None:
        """Raises ServerDied with the end of the log."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if not self.alive:
                raise ServerDied(f"the server ended while starting:\n{self.excerpt()}")
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{self.url}/health_generate", timeout=30) as response,
            ):
                if response.status == 200:
                    return
            time.sleep(0.5)
        raise ServerDied(f"not ready after {START_TIMEOUT_SECONDS:.0f} s:\n{self.excerpt()}")

    def excerpt(self, lines: int = 40) -> str:
        return "\n".join(self.log_since().splitlines()[-lines:])

    def stop(self) -> None:
        """End the server, then whatever of its process group is left."""
        # Only the main process: it takes the death of a worker for a crash to be diagnosed.
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def last_error(log_path: Path) -> str | None:
    """The last exception in a server's log, in one line; None: it logged none."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception)\b: ", line)]
    return errors[-1] if errors else None


@contextlib.contextmanager
def serving(spec: ServerSpec, log_path: Path) -> Iterator[RunningServer]:
    """A ready server for the length of a ``with`` block.

    Raises:
        ServerDied: it did not become ready.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            spec.command(port),
            env=spec.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = RunningServer(process, port, log_path)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
