# SPDX-License-Identifier: Apache-2.0
"""Which code and which machine a recorded number is about."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def commit() -> str:
    """Hash of the checked-out commit, with ``+`` after it when tracked files differ from it."""
    hash_ = _git("rev-parse", "--short=12", "HEAD")
    if not hash_:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!*/results/*")
    return f"{hash_}+" if changed else hash_


def gpu_facts() -> dict[str, str]:
    """The GPU, its driver and the versions of what runs on it. Needs CUDA."""
    import torch

    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown: nvidia-smi does not run"
    major, minor = torch.cuda.get_device_capability()
    packages = ("sglang", "sglang-jenga", "torch", "triton", "flashinfer-python", "sgl-kernel")
    return {
        "device": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "memory_bytes": str(torch.cuda.mem_get_info()[1]),
        "driver": driver,
        "cuda": str(torch.version.cuda),
        **{name: _version(name) for name in packages},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    completed = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.stdout.strip()
