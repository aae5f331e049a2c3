# SPDX-License-Identifier: Apache-2.0
"""What SGLang's triton attention backend launches multiplies slot ids in 64 bits on every GPU.

Compiled for Hopper and Blackwell without either, through the backend's own metadata; the IR says in
how many bits a product of a loaded id is made that reaches an address of the arena.
"""

from __future__ import annotations

from typing import Any

import pytest

import child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["90", "100"], ids=lambda a: f"sm_{a}")
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return child.run("compiled_attention.py", request.param)


def labelled(found: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    return [row for row in found if row["label"] == label]


@pytest.mark.parametrize("label", ["decode", "extend", "deterministic"])
def test_no_32_bit_product_of_a_slot_id_reaches_an_address(
    found: list[dict[str, Any]], label: str
) -> None:
    rows = labelled(found, label)
    assert rows, "nothing of this kind was launched on the arena"
    for row in rows:
        assert row["narrow"] == [], row
        assert row["wide"] > 0, f"no product of an id was found at all: {row}"
        assert row["cubin_bytes"] > 0, row


def test_each_page_size_and_kind_was_compiled(found: list[dict[str, Any]]) -> None:
    for batch in ("decode", "extend"):
        cases = {(row["page_tokens"], row["kind"]) for row in labelled(found, batch)}
        assert cases == {(page, kind) for page in (1, 16) for kind in ("full", "window")}


@pytest.mark.parametrize("batch", ["decode", "extend"])
def test_the_same_kernels_with_int32_ids_are_found_out(
    found: list[dict[str, Any]], batch: str
) -> None:
    """The control: what the backend's int64 index tensors prevent."""
    rows = labelled(found, f"{batch}, int32 ids")
    assert rows and all(row["narrow"] for row in rows), rows
