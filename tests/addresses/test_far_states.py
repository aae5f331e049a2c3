# SPDX-License-Identifier: Apache-2.0
"""SGLang's kernels of recurrent layers read and write states right where addresses outgrow 32 bits.

Run in triton's interpreter on slots beyond 2^31, 2^32 and 2^36 elements of a sparse arena, against
float64; the kernels that are refused are the control.
"""

from __future__ import annotations

from typing import Any

import pytest

import child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything() -> list[dict[str, Any]]:
    return child.run("far_states.py", TRITON_INTERPRET="1")


@pytest.fixture(params=[31, 32, 36], ids=lambda bits: f"beyond-2^{bits}")
def found(request: pytest.FixtureRequest, everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [row for row in everything if row["beyond"] == 2**request.param]
    for row in rows:
        assert min(row["ssm_element"], row["conv_element"]) >= row["beyond"], row
    return rows


@pytest.mark.parametrize(
    "kernel",
    [
        "conv1d update",
        "conv1d prefill",
        "SSM update",
        "gated delta net decode",
        "gated delta net packed decode",
    ],
)
def test_states_are_read_and_written_beyond_32_bits(
    found: list[dict[str, Any]], kernel: str
) -> None:
    (row,) = (row for row in found if row["kernel"] == kernel)
    assert row["error"] < 1e-2, row  # convolutions answer in half, up to about 8
    assert row["state_error"] < 1e-5, row


def test_snapshots_are_copied_in_every_layer(found: list[dict[str, Any]]) -> None:
    (row,) = (row for row in found if row["kernel"] == "snapshot copies")
    assert row["copied"] and row["something"], row


@pytest.mark.parametrize("kernel", ["lightning", "seg_la"])
def test_the_refused_kernels_do_wrap(found: list[dict[str, Any]], kernel: str) -> None:
    """The control: with int32 ids they answer wrong, with int64 ids right."""
    errors = {row["index_dtype"]: row["error"] for row in found if row["kernel"] == kernel}
    assert errors["torch.int64"] < 1e-5, errors
    assert errors["torch.int32"] > 0.1, errors
