# SPDX-License-Identifier: Apache-2.0
"""Servers that tests share: one of a pytest process runs at a time, for all tests that want it.

A boot takes as long as most tests, so tests that need the same server run one after the other
(``xdist_group``, put on by tests/conftest.py), whichever file they are in.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from server.launch import RunningServer, serving
from server.matrix import Family, prepare
from server.variants import Variant, jenga_spec, variant

#: For the tests that look at metrics and at the log; nobody else minds them.
_WATCHED = ("--enable-metrics", "--decode-log-interval", "5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A jenga server and what it serves."""

    server: RunningServer
    family: Family
    variant: Variant


def group_of(family: str, variant_name: str) -> str:
    """Name of the group of tests that share a server."""
    return f"{family}-{variant_name}"


class ServerPool:
    """The server that runs now. Asking for another one stops it."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._group = ""
        self._served: Served | None = None
        self._running = ExitStack()

    def get(self, family_name: str, variant_name: str) -> Served:
        """The server of this family and variant; it may have served other tests before."""
        group = group_of(family_name, variant_name)
        if self._served is None or self._group != group or not self._served.server.alive:
            self.stop()
            self._served = self._start(family_name, variant(variant_name, family_name))
            self._group = group
        return self._served

    def _start(self, family_name: str, chosen: Variant) -> Served:
        family = prepare(family_name, self._work_dir)
        spec = jenga_spec(chosen, family.name, family.checkpoint, family.adapter)
        spec = replace(spec, flags=(*spec.flags, *_WATCHED))
        log_path = family.work_dir / "logs" / f"test-{family.name}-{chosen.name}.log"
        server = self._running.enter_context(serving(spec, log_path))
        return Served(server=server, family=family, variant=chosen)

    def stop(self) -> None:
        self._served = None
        self._running.close()
