# SPDX-License-Identifier: Apache-2.0
"""A jenga server answers exactly like a stock server: the subset that every change must pass.

Real servers on the same tiny checkpoint, SGLang's strict memory checks on. The full matrix (every
family, variant and scenario) is ``python benchmark/identity/run.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    ("llama", "tight"): ("pressure", "multi_turn"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A jenga server and the stock answers it must give."""

    server: RunningServer
    reference: Reference
    variant: Variant


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    family_name, variant_name = request.param
    chosen = variant(variant_name)
    family = prepare(family_name, request.config.rootpath / "build" / "identity")
    needed = [s for (f, _), names in SUBSET.items() if f == family_name for s in names]
    reference = reference_of(family, chosen.reference, needed)
    spec = jenga_spec(chosen, family.name, family.checkpoint, family.adapter)
    log_path = family.work_dir / "logs" / f"test-{family.name}-{chosen.name}.log"
    with serving(spec, log_path) as server:
        yield Served(server=server, reference=reference, variant=chosen)


@pytest.mark.server
@pytest.mark.parametrize(
    ("served", "scenario"),
    [
        pytest.param(where, scenario, id=f"{where[0]}-{where[1]}-{scenario}")
        for where, scenarios in SUBSET.items()
        for scenario in scenarios
    ],
    indirect=["served"],
)
def test_jenga_answers_like_stock(served: Served, scenario: str) -> None:
    outcome = check(SCENARIOS[scenario], served.server, served.reference, served.variant.setting)
    assert outcome.passed, outcome.failure
