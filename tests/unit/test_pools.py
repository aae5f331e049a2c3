# SPDX-License-Identifier: Apache-2.0
"""K/V written through SGLang's pool interface lie where the plan says, and nowhere else."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from machine import DTYPE, make_kinds, make_plan
from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.plan import ArenaPlan, KindPlan
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds
from sglang_jenga.sglang_ext.pools import ArenaHybridKVPool, ArenaKVPool

KINDS = {
    "equal heads": make_kinds(full_layers=2, window_layers=5, policy=Window(window_tokens=8)),
    "other heads per kind": make_kinds(
        full_layers=2,
        window_layers=3,
        policy=Window(window_tokens=8),
        full_heads=(1, 16, 16),
        window_heads=(2, 8, 8),
    ),
    "K and V of unequal width": make_kinds(
        full_layers=2,
        window_layers=3,
        policy=Window(window_tokens=8),
        full_heads=(1, 16, 8),
        window_heads=(3, 8, 16),
    ),
    "padded slots": make_kinds(
        full_layers=1, window_layers=3, policy=Window(window_tokens=8), full_heads=(1, 9, 9)
    ),
}
LARGE_PAGES = 4


def build(kinds: ModelKinds, page_tokens: int) -> tuple[ArenaPlan, ArenaBuffer, Any]:
    plan = make_plan(kinds, page_tokens=page_tokens, large_pages=LARGE_PAGES)
    buffer = ArenaBuffer(plan, "cpu")
    pool = (
        ArenaHybridKVPool(buffer, kinds, DTYPE)
        if kinds.window
        else ArenaKVPool(buffer, plan.kinds[0], kinds.full, DTYPE)
    )
    return plan, buffer, pool


def layers_of(plan: ArenaPlan, kinds: ModelKinds) -> list[tuple[KindPlan, AttentionLayer]]:
    pairs = [(plan.kinds[0], layer) for layer in kinds.full]
    return pairs + [(plan.kinds[-1], layer) for layer in kinds.window]


def write(pool: Any, layer: AttentionLayer, slots: list[int], k: Any, v: Any) -> None:
    """What an attention backend calls; ``slots`` are ids of the layer's own kind."""
    loc = torch.tensor(slots)
    target = KVWriteLoc(loc, loc) if isinstance(pool, SWAKVPool) else loc
    pool.set_kv_buffer(SimpleNamespace(layer_id=layer.layer_id), target, k, v)


def rows(layer: AttentionLayer, first: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of ``number`` tokens, every element of every token another small number."""

    def part(dim: int, sign: int) -> torch.Tensor:
        shape = (number, layer.num_kv_heads, dim)
        values = torch.arange(number * layer.num_kv_heads * dim) % 97 + first
        return (sign * values).reshape(shape).to(DTYPE)

    return part(layer.k_head_dim, 1), part(layer.v_head_dim, -1)


def byte_range(kind: KindPlan, layer: AttentionLayer, part: str, slot: int) -> range:
    start = slot * kind.slot_bytes + kind.row_offset_bytes(layer.layer_id, part)
    dim = layer.k_head_dim if part == "k" else layer.v_head_dim
    return range(start, start + layer.num_kv_heads * dim * DTYPE.itemsize)


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_what_is_written_to_a_slot_is_read_from_it(kinds: ModelKinds, page_tokens: int) -> None:
    """Slots of each kind lie in large pages of their own, as the allocator hands them out."""
    plan, _, pool = build(kinds, page_tokens)
    written = []
    for kind, layer in layers_of(plan, kinds):
        page = 1 if kind is plan.kinds[0] else 2
        slots = [page * kind.slots_per_large_page + i for i in range(kind.slots_per_large_page)]
        k, v = rows(layer, layer.layer_id, len(slots))
        write(pool, layer, slots, k, v)
        written.append((layer, slots, k, v))
    for layer, slots, k, v in written:
        assert torch.equal(pool.get_key_buffer(layer.layer_id)[slots], k)
        assert torch.equal(pool.get_value_buffer(layer.layer_id)[slots], v)
        both = pool.get_kv_buffer(layer.layer_id)
        assert torch.equal(both[0][slots], k) and torch.equal(both[1][slots], v)


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_a_write_changes_the_bytes_of_its_slot_alone(kinds: ModelKinds, page_tokens: int) -> None:
    plan, buffer, pool = build(kinds, page_tokens)
    ones = torch.iinfo(torch.int16).max  # all bytes non-zero in bfloat16
    for kind, layer in layers_of(plan, kinds):
        for slot in (1, kind.slots_per_large_page, 3 * kind.slots_per_large_page - 1):
            buffer.bytes.zero_()
            k, v = (torch.full_like(part, ones, dtype=torch.int16) for part in rows(layer, 0, 1))
            write(pool, layer, [slot], k.view(DTYPE), v.view(DTYPE))
            expected = [*byte_range(kind, layer, "k", slot), *byte_range(kind, layer, "v", slot)]
            assert torch.nonzero(buffer.bytes).flatten().tolist() == expected


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_no_two_slots_layers_or_parts_share_a_byte(kinds: ModelKinds, page_tokens: int) -> None:
    """Brute force over every byte of the arena, large pages given to the kinds in turn."""
    plan, buffer, _ = build(kinds, page_tokens)
    owners: Counter[int] = Counter()
    for kind, layer in layers_of(plan, kinds):
        for large_page in range(plan.kinds.index(kind), LARGE_PAGES, len(plan.kinds)):
            first = large_page * kind.slots_per_large_page
            for slot in range(first, first + kind.slots_per_large_page):
                for part in "kv":
                    owners.update(byte_range(kind, layer, part, slot))
    assert max(owners.values()) == 1
    assert max(owners) < buffer.bytes.numel()
    used = sum(k.slots_per_large_page * k.spec.payload_bytes for k in plan.kinds)
    assert len(owners) == used * LARGE_PAGES // len(plan.kinds)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_the_pool_owns_the_bytes_of_the_arena_and_no_more(kinds: ModelKinds) -> None:
    plan, buffer, pool = build(kinds, 16)
    assert buffer.bytes.numel() == plan.arena_bytes == LARGE_PAGES * plan.large_page_bytes
    assert sum(pool.get_kv_size_bytes()) == plan.arena_bytes
    assert pool.mem_usage * 2**30 == plan.arena_bytes
    storages = {
        pool.get_key_buffer(layer.layer_id).untyped_storage().data_ptr()
        for layer in (*kinds.full, *kinds.window)
    }
    assert storages == {buffer.bytes.untyped_storage().data_ptr()}


def test_kernels_see_contiguous_rows_and_one_stride_per_kind() -> None:
    """What flashinfer, triton and fa3 ask of a view: rows contiguous, tokens at one distance."""
    plan, _, pool = build(KINDS["other heads per kind"], 16)
    for kind, layer in layers_of(plan, KINDS["other heads per kind"]):
        view = pool.get_key_buffer(layer.layer_id)
        assert view.shape == (plan.num_slots(kind.spec.name), layer.num_kv_heads, layer.k_head_dim)
        assert view.stride() == (kind.slot_bytes // DTYPE.itemsize, layer.k_head_dim, 1)
        assert view.data_ptr() % 16 == 0


def test_a_model_without_windows_gets_a_plain_pool() -> None:
    kinds = make_kinds(full_layers=3)
    plan, _, pool = build(kinds, 1)
    assert not kinds.window
    assert isinstance(pool, MHATokenToKVPool) and not isinstance(pool, SWAKVPool)
    layer = kinds.full[2]
    k, v = rows(layer, 5, 2)
    write(pool, layer, [3, 1], k, v)
    assert torch.equal(pool.get_key_buffer(2)[[3, 1]], k)
    assert pool.size + 1 == plan.num_slots("full")


def test_moving_tokens_moves_every_layer() -> None:
    kinds = KINDS["equal heads"]
    _, _, pool = build(kinds, 1)
    layer = kinds.full[1]
    k, v = rows(layer, 3, 1)
    pool.full_kv_pool.set_kv_buffer(None, torch.tensor([5]), k, v, layer_id_override=1)
    pool.full_kv_pool.move_kv_cache(torch.tensor([9]), torch.tensor([5]))
    assert torch.equal(pool.get_key_buffer(layer.layer_id)[9], k[0])


def test_features_that_need_contiguous_layers_fail_loudly() -> None:
    _, _, pool = build(KINDS["equal heads"], 1)
    with pytest.raises(NotImplementedError, match="refused at start"):
        pool.full_kv_pool.get_contiguous_buf_infos()


def test_a_view_of_the_wrong_size_is_refused_with_both_numbers() -> None:
    plan, buffer, _ = build(KINDS["equal heads"], 1)
    layer = KINDS["equal heads"].full[0].layer_id
    with pytest.raises(ValueError, match=r"\(1, 4\).* is 8 B, the plan has 16 B"):
        buffer.view(plan.kinds[0], layer, "k", DTYPE, (1, 4))
