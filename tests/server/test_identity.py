# SPDX-License-Identifier: Apache-2.0
"""A jenga server answers exactly like a stock server: the subset that every change must pass.

Real servers on the same tiny checkpoint, SGLang's strict memory checks on. The full matrix (every
family, variant and scenario) is ``python benchmark/identity/run.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.launch import RunningServer, serving
from server.matrix import prepare, reference_of
from server.reference import Reference
from server.run import check
from server.scenarios import SCENARIOS
from server.variants import Variant, jenga_spec, variant

#: (family, variant) -> scenarios. Families with windows need more of them than a uniform one.
SUBSET: dict[tuple[str, str], tuple[str, ...]] = {
    ("gemma3", "tight"): ("pressure", "abort_decode", "flush_under_load", "too_long"),
    ("gemma3", "page16"): (
        "prefill_hit",
        "decode_hit",
        "multi_turn",
        "streaming",
        "constraints",
        "streaming_sessions",
        "abort_prefill",
    ),
    # Text in full layers and images in cross layers; without images it is a uniform model.
    ("mllama", "tight"): ("pressure", "images_crowd", "images_hit"),
    ("gemma3_vision", "tight"): ("images_crowd", "images_abort"),
    # The example of docs/new-kind.md.
    ("sink_llama", "tight"): ("branching", "pressure"),
    ("granite_hybrid", "tight"): ("pressure", "flush_under_load"),
    ("qwen3_next", "plain"): ("prefill_hit", "decode_hit", "parallel_sampling", "abort_prefill"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A jenga server and the stock answers it must give."""

    server: RunningServer
    reference: Reference
    variant: Variant


class OneServer:
    """The server that runs now. Asking for another one stops it: servers never run side by side."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._where: tuple[str, str] | None = None
        self._served: Served | None = None
        self._running = ExitStack()

    def get(self, family_name: str, variant_name: str) -> Served:
        if self._served is None or self._where != (family_name, variant_name):
            self.stop()
            self._served = self._start(family_name, variant(variant_name, family_name))
            self._where = (family_name, variant_name)
        return self._served

    def _start(self, family_name: str, chosen: Variant) -> Served:
        family = prepare(family_name, self._work_dir)
        needed = [s for (f, _), names in SUBSET.items() if f == family_name for s in names]
        reference = reference_of(family, chosen.reference, needed)
        spec = jenga_spec(chosen, family.name, family.checkpoint, family.adapter)
        log_path = family.work_dir / "logs" / f"test-{family.name}-{chosen.name}.log"
        server = self._running.enter_context(serving(spec, log_path))
        return Served(server=server, reference=reference, variant=chosen)

    def stop(self) -> None:
        self._served = None
        self._running.close()


@pytest.fixture(scope="module")
def one_server(pytestconfig: pytest.Config) -> Iterator[OneServer]:
    # Not a parametrized fixture: pytest would start a server for each test.
    holder = OneServer(pytestconfig.rootpath / "build" / "identity")
    yield holder
    holder.stop()


@pytest.mark.server
@pytest.mark.parametrize(
    ("family", "variant_name", "scenario"),
    [
        pytest.param(family, name, scenario, id=f"{family}-{name}-{scenario}")
        for (family, name), scenarios in SUBSET.items()
        for scenario in scenarios
    ],
)
def test_jenga_answers_like_stock(
    one_server: OneServer, family: str, variant_name: str, scenario: str
) -> None:
    served = one_server.get(family, variant_name)
    outcome = check(SCENARIOS[scenario], served.server, served.reference, served.variant.setting)
    assert outcome.passed, outcome.failure
