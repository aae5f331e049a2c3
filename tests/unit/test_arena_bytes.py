# SPDX-License-Identifier: Apache-2.0
"""The boot log says which pool of the stock server each part of the arena's size comes from."""

from __future__ import annotations

from types import SimpleNamespace

from sglang_jenga.sglang_ext.arena_bytes import (
    ArenaBytes,
    embedding_share,
    state_share,
    token_share,
)


def schedule(max_total_tokens: int | None) -> SimpleNamespace:
    return SimpleNamespace(
        max_total_tokens=max_total_tokens, mem_fraction_static=0.5, mamba_full_memory_ratio=0.9
    )


def test_few_tokens_beside_states_that_fill_what_memory_leaves_are_told_apart() -> None:
    few = schedule(2048)
    size = ArenaBytes(
        shares=(
            token_share(2 << 20, few),
            state_share(3 << 30, 513, few, None),
            embedding_share(0),
        )
    )
    assert size.total == (2 << 20) + (3 << 30)
    line = size.describe()
    assert "2.00 MiB for tokens (--max-total-tokens 2048" in line
    assert "3.00 GiB for 513 recurrent states (--mamba-full-memory-ratio 0.9" in line
    assert "whatever --max-total-tokens says" in line and "--max-mamba-cache-size sets" in line
    assert "embeddings" not in line, "there are none"
    assert "--jenga-arena-size" in line


def test_a_number_of_states_that_was_asked_for_is_named_as_such() -> None:
    line = ArenaBytes(
        shares=(
            token_share(1 << 20, schedule(None)),
            state_share(1 << 20, 9, schedule(None), 8),
            embedding_share(1 << 20),
        )
    ).describe()
    assert "tokens (what --mem-fraction-static 0.5 leaves)" in line
    assert "9 recurrent states (--max-mamba-cache-size 8)" in line
    assert "embeddings of images (SGLANG_VLM_CACHE_SIZE_MB sets it)" in line
