# SPDX-License-Identifier: Apache-2.0
"""The host's tables decide, the device's tables follow: both agree after every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lives import live
from machine import Machine, make_kinds
from sglang_jenga.arena.tables import Translation, to_device
from sglang_jenga.core.allocator import IntArray
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator

CPU = torch.device("cpu")
W = 32
KINDS = {
    "uniform": make_kinds(),
    "window": make_kinds(window_layers=5, policy=Window(window_tokens=W)),
    "chunked": make_kinds(window_layers=3, policy=Chunked(chunk_tokens=W)),
}


def ids(*numbers: int) -> IntArray:
    return np.array(numbers, dtype=np.int64)


@pytest.fixture
def apart() -> Translation:
    """A translation whose device table is a tensor of its own, as on a GPU."""
    table = Translation(8, CPU)
    table.shared = False
    table.device_table = table.device_table.clone()
    return table


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_host_and_device_agree_after_every_step(kind: str, page_tokens: int) -> None:
    """The device's side is written by SGLang's own allocation functions, from slot ids only."""
    machine = Machine(
        KINDS[kind],
        large_pages=600 if page_tokens == 1 else 60,
        page_tokens=page_tokens,
        chunk_tokens=64,
        mirrored=True,
    )
    host, device = machine.rows.rows.host, machine.rows.req_to_token.numpy()
    tokens = machine.arena.row_tokens
    compared = 0
    for step in live(machine):
        for row in np.flatnonzero(tokens):
            assert (host[row, : tokens[row]] == device[row, : tokens[row]]).all(), step
            compared += int(tokens[row])
        if isinstance(machine.arena, HybridArenaAllocator):
            translation = machine.arena.translation
            assert (translation.host == translation.device_table.numpy()).all(), step
    assert compared > 1000


def test_a_request_holds_distinct_slots_and_window_slots_for_its_last_tokens() -> None:
    machine = Machine(KINDS["window"], large_pages=400, chunk_tokens=64)
    req = machine.prefill(range(100), max_new=200)
    for _ in range(3 * W):
        machine.decode([req])
    slots = machine.slots(req).numpy()
    assert len(set(slots.tolist())) == len(slots) == 100 + 3 * W
    assert isinstance(machine.arena, HybridArenaAllocator)
    window = machine.arena.translation.host[slots]
    live_tokens = np.flatnonzero(window)
    assert live_tokens[-1] == len(slots) - 1
    interval = machine.demand.slide_interval_tokens
    own = live_tokens[live_tokens >= req.kv.cache_protected_len]
    assert W <= len(own) <= W + interval
    assert len(set(window[live_tokens].tolist())) == len(live_tokens)


def test_pairs_are_set_and_forgotten_on_both_sides(apart: Translation) -> None:
    apart.set(ids(3, 5), ids(30, 50))
    apart.forget(ids(3))
    for side in (apart.host, apart.device_table.numpy()):
        assert side.tolist() == [0, 0, 0, 0, 0, 50, 0, 0, -1]


def test_clearing_keeps_the_sentinel_and_the_tensor_that_kernels_captured(
    apart: Translation,
) -> None:
    captured = apart.device_table
    apart.set(ids(1, 2), ids(7, 8))
    apart.clear()
    assert apart.device_table is captured
    for side in (apart.host, captured.numpy()):
        assert side.tolist() == [0] * 8 + [-1]


def test_a_location_of_minus_one_stays_minus_one(apart: Translation) -> None:
    """SGLang passes -1 as the last location of a request without a prefix."""
    assert apart.device_table[torch.tensor([-1])].tolist() == [-1]


def test_on_a_cpu_both_sides_are_one_memory() -> None:
    table = Translation(4, CPU)
    table.set(ids(2), ids(9))
    assert table.device_table[2] == 9
    array = ids(1, 2)
    assert to_device(array, CPU).data_ptr() == array.ctypes.data
