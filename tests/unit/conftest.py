# SPDX-License-Identifier: Apache-2.0
"""One process, no server: SGLang with the plugin loaded, and a published configuration."""

import os

# Before SGLang is imported: these tests run on the CPU, whatever the machine has.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def plugins() -> None:
    """Load SGLang's plugins as its processes do: platform, hooks, backends."""
    from sglang.srt.plugins import load_plugins

    load_plugins()


@pytest.fixture(autouse=True)
def published(plugins: None) -> Iterator[None]:
    """A configuration as a scheduler process publishes it, jenga asked for."""
    from sglang.srt.runtime_context import get_context

    with get_context().override_server_args(radix_cache_backend="jenga", device="cpu"):
        yield


@pytest.fixture(scope="session")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with full and window layers, for server arguments that need a real model."""
    from sglang_jenga.tiny import build

    return build("gemma3", tmp_path_factory.mktemp("models") / "gemma3")
