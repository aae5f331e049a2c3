# SPDX-License-Identifier: Apache-2.0
"""SGLang's triton attention reads and writes an arena right where addresses outgrow 32 bits.

Run in triton's interpreter, through the backend's own metadata: the same source as on a GPU, on
slots beyond 2^31, 2^32 and 2^36 elements of a sparse arena, against float64.
"""

from __future__ import annotations

from typing import Any

import pytest

import child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything() -> list[dict[str, Any]]:
    return child.run("far_attention.py", TRITON_INTERPRET="1")


@pytest.fixture(
    params=[(page, batch) for page in (1, 16) for batch in ("decode", "extend")],
    ids=lambda pair: f"{pair[1]}-page{pair[0]}",
)
def found(request: pytest.FixtureRequest, everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in everything if (row["page_tokens"], row["batch"]) == request.param]


def test_every_offset_and_kind_was_asked(found: list[dict[str, Any]]) -> None:
    assert [(row["beyond"], row["kind"]) for row in found] == [
        (2**bits, kind) for bits in (31, 32, 36) for kind in ("full", "window")
    ]
    for row in found:
        assert row["first_element"] >= row["beyond"], "the batch lies beyond the offset"


def test_attention_is_right_beyond_32_bits(found: list[dict[str, Any]]) -> None:
    for row in found:
        assert row["error"] < 2e-3, row


def test_new_tokens_are_written_to_their_slots_and_nowhere_else(
    found: list[dict[str, Any]],
) -> None:
    for row in found:
        assert row["written"], row
        assert row["other_bytes_changed"] == 0, row


def test_only_the_backends_int64_ids_protect_the_kernels(found: list[dict[str, Any]]) -> None:
    """The control: the same kernels with int32 ids wrap, so this test would notice."""
    for row in found:
        assert row["index_dtypes"] == ["torch.int64"], row
        assert row["error_of_int32"] > 0.1, row
