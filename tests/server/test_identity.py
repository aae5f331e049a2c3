# SPDX-License-Identifier: Apache-2.0
"""A jenga server answers exactly like a stock server: the subset that every change must pass.

Real servers on the same tiny checkpoint, SGLang's strict memory checks on. The full matrix (every
family, variant and scenario) is ``python benchmark/identity/run.py``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from server.matrix import prepare, reference_of
from server.pool import ServerPool, group_of
from server.reference import Reference
from server.run import check
from server.scenarios import SCENARIOS
from server.variants import variant

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


@lru_cache
def recorded(family_name: str, reference: str, work_dir: Path) -> Reference:
    """What the stock server answers to all that the subset asks of a family."""
    needed = [s for (family, _), names in SUBSET.items() if family == family_name for s in names]
    return reference_of(prepare(family_name, work_dir), reference, needed)


@pytest.mark.server
@pytest.mark.parametrize(
    ("family", "variant_name", "scenario"),
    [
        pytest.param(
            family,
            name,
            scenario,
            id=f"{family}-{name}-{scenario}",
            marks=pytest.mark.xdist_group(group_of(family, name)),
        )
        for (family, name), scenarios in SUBSET.items()
        for scenario in scenarios
    ],
)
def test_jenga_answers_like_stock(
    pool: ServerPool, pytestconfig: pytest.Config, family: str, variant_name: str, scenario: str
) -> None:
    chosen = variant(variant_name, family)
    # Before the server starts: both at once would share the memory.
    work_dir = pytestconfig.rootpath / "build" / "identity"
    reference = recorded(family, chosen.reference, work_dir)
    served = pool.get(family, variant_name)
    outcome = check(SCENARIOS[scenario], served.server, reference, chosen.setting)
    assert outcome.passed, outcome.failure
