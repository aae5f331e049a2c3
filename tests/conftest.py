# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a reason for each test that this machine cannot run, and their order.

This file puts its folder on ``sys.path``: tests import helpers as ``server.client``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

#: The group of tests that a process of pytest-xdist runs as one piece.
_GROUP = "xdist_group"


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups, whenever it registered
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    if not _has_cuda():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="not run: needs a CUDA device"))
    for item in items:  # a module's fixtures are made once, so a module is one piece
        if not item.get_closest_marker(_GROUP):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    place = {group: n for n, group in enumerate(dict.fromkeys(map(_group, items)))}
    # Servers first: they are the longest pieces, and a process must not end with one of them.
    items.sort(
        key=lambda item: (
            item.get_closest_marker("server") is None,
            place[_group(item)],
            item.get_closest_marker("fresh_server") is None,
        )
    )
    yield


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker(_GROUP)
    assert mark is not None
    return str(mark.args[0])


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
