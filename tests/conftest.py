# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a reason for each test that this machine cannot run.

This file puts its folder on ``sys.path``: tests import helpers as ``server.client``.
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu or _has_cuda():
        return
    for item in gpu:
        item.add_marker(pytest.mark.skip(reason="not run: needs a CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
