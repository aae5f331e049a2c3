# SPDX-License-Identifier: Apache-2.0
"""The pool of servers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.pool import ServerPool


@pytest.fixture(scope="session")
def pool(pytestconfig: pytest.Config) -> Iterator[ServerPool]:
    servers = ServerPool(pytestconfig.rootpath / "build" / "identity")
    yield servers
    servers.stop()
