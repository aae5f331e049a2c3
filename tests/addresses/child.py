# SPDX-License-Identifier: Apache-2.0
"""A program of this folder in a process of its own, and what it found.

Triton decides while it is imported whether kernels are compiled or interpreted, and a driver that
is no GPU's is for a whole process: neither fits a process that runs other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_ROOT = HERE.parents[1]
_FOLDERS = ("python", "sglang_portable_cpu/src", "benchmark/kernels", "tests/addresses")
_MARK = "found: "


def run(program: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What ``program`` (a file of this folder) handed to :func:`tell`, in its order.

    Raises:
        RuntimeError: it ended with an error; the end of what it said is in the message.
    """
    path = [*(str(_ROOT / folder) for folder in _FOLDERS), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / program), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    return [json.loads(line.removeprefix(_MARK)) for line in lines]


def tell(**found: Any) -> None:
    """From a program: one thing that it found."""
    print(_MARK + json.dumps(found), flush=True)


def serving(main: Callable[[], None]) -> None:
    """Run ``main`` of a program in a published configuration, on SGLang's own functions.

    Plugins are not loaded: the portable CPU platform would replace the kernels in question.
    """
    from sglang.srt.runtime_context import get_context, get_parallel

    with (
        get_context().override_server_args(radix_cache_backend="jenga", device="cpu"),
        get_parallel().override(attn_dcp_rank=0),
    ):
        main()
