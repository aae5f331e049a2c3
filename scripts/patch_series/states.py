# SPDX-License-Identifier: Apache-2.0
"""Runs upstream-style tests on one state of the tree after another, each in a fresh process.

Importing torch, transformers and the kernel libraries takes longer than most tests, and they are
the same in every state. So one process imports them and forks for each state; only SGLang itself
is imported anew. The first state teaches it what to import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from patch_series.series import SeriesError

_WORKER = Path(__file__).with_name("state_worker.py")
#: A state that takes longer than this hangs.
_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one process found.

    tests: outcome (``ok``, ``failed: ...``, ``error: ...``, ``skipped: ...``) by test, the name
        being ``file::Class.method``, or ``file`` alone where it could not be imported.
    symbols: whether each dotted path resolved.
    defaults: the default of every server argument, as text.
    probe: what upstream's test kits computed, as text by name.
    """

    tests: dict[str, str]
    symbols: dict[str, bool]
    defaults: dict[str, str]
    probe: dict[str, str]

    def of_file(self, file: str) -> dict[str, str]:
        return {name: said for name, said in self.tests.items() if name.split("::")[0] == file}


class Worker:
    """The process that forks. Use as a context manager."""

    def __enter__(self) -> Worker:
        environment = dict(os.environ)
        # The tests are upstream's: our hooks do not load. The platform says that there is a CPU.
        environment |= {"SGLANG_PLUGINS": "portable_cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        # A test that fails and passes when run again has failed.
        environment["SGLANG_TEST_MAX_RETRY"] = "0"
        # sglang.test.test_utils takes the first character of this for a digit.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what tests print; their outcomes come in the answer
            text=True,
            env=environment,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def run(
        self,
        root: Path,
        *,
        tests: Sequence[str] = (),
        symbols: Sequence[str] = (),
        defaults: bool = False,
        probe: bool = False,
    ) -> State:
        """Run ``tests`` (paths below ``root``) and look at what is asked for, in a fresh process
        that imports ``root/python/sglang``.

        Raises:
            SeriesError: the process died, or took too long.
        """
        job = {
            "root": str(root),
            "tests": list(tests),
            "symbols": list(symbols),
            "defaults": defaults,
            "probe": probe,
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"died": "worker"}')
        if "died" in answer:
            raise SeriesError(f"the process that ran {list(tests)} died: {answer['died']}")
        return State(**answer)
