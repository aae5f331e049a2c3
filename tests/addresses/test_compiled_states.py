# SPDX-License-Identifier: Apache-2.0
"""SGLang's kernels of recurrent layers multiply ids in 64 bits on every GPU, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

import child

pytestmark = pytest.mark.slow

SERVED = [
    "conv1d update",
    "conv1d prefill",
    "SSM update",
    "gated delta net decode",
    "gated delta net packed decode",
    "snapshot copies",
]


@pytest.fixture(scope="module", params=["90", "100"], ids=lambda a: f"sm_{a}")
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return child.run("compiled_states.py", request.param)


@pytest.mark.parametrize("label", SERVED)
def test_no_32_bit_product_of_a_slot_id_reaches_a_state(
    found: list[dict[str, Any]], label: str
) -> None:
    rows = [row for row in found if row["label"] == label]
    assert rows, "no kernel was launched on the arena"
    for row in rows:
        assert row["narrow"] == [], row
        assert row["wide"] > 0, f"no product of an id was found at all: {row}"
        assert row["cubin_bytes"] > 0, row


@pytest.mark.parametrize("label", ["lightning", "seg_la"])
def test_refused_kernels_are_found_out(found: list[dict[str, Any]], label: str) -> None:
    """The control, and the reason of the refusal."""
    rows = [row for row in found if row["label"] == label]
    assert rows and all(row["narrow"] for row in rows), rows
