# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph captures of an arena stays where it is and as it is, for the server's life.

A replayed graph reads the addresses, shapes and strides of its capture. So no tensor on the device
that a backend can reach may be replaced: not by allocation, sliding windows, eviction, retraction,
nor a flush. The device is torch's meta: its tensors are told apart from the host's by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from image_machine import ImageMachine, picture
from lives import live
from machine import Machine, make_kinds
from no_sync import DEVICE
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds

WINDOW = Window(window_tokens=32)
KINDS = {
    "full": make_kinds(),
    "window": make_kinds(window_layers=5, policy=WINDOW),
    "chunked": make_kinds(window_layers=3, policy=Chunked(chunk_tokens=32)),
    "states": state_kinds(),
    "window and states": state_kinds(window_layers=5, policy=WINDOW),
}
#: Where, shape, strides and type of a tensor: what a graph captures.
Captured = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


@pytest.fixture(autouse=True)
def device_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # SGLang's pools ask torch for the module of their device; meta has none.
    monkeypatch.setattr(torch, DEVICE, torch.cpu, raising=False)


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY):
        yield


def captured(tensor: torch.Tensor) -> Captured:
    where = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def device_tensors(*roots: object) -> dict[str, Captured]:
    """Every tensor on the device that attributes lead to from ``roots``, by the way there."""
    found: dict[str, Captured] = {}
    seen: set[int] = set()
    waiting = [(type(root).__name__, root) for root in roots]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.device.type == DEVICE:
                found[name] = captured(value)
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple):
            waiting.extend((f"{name}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            waiting.extend((f"{name}[{key!r}]", item) for key, item in value.items())
        elif type(value).__module__.startswith(("sglang", "sglang_jenga")):
            names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
            waiting.extend((f"{name}.{n}", getattr(value, n, None)) for n in names)
    return found


def of_a_server(machine: Machine) -> dict[str, Captured]:
    """What a backend can reach: the pools, the request table, the allocator with its tables."""
    return device_tensors(machine.arena.get_kvcache(), machine.rows, machine.arena)


def make_machine(kind: str, page_tokens: int) -> Machine:
    kinds = KINDS[kind]
    return (Machine if kinds.states is None else StateMachine)(
        kinds,
        large_pages=600 // page_tokens + 60,
        page_tokens=page_tokens,
        chunk_tokens=64,
        device=DEVICE,
    )


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_that_is_captured_moves(kind: str, page_tokens: int) -> None:
    machine = make_machine(kind, page_tokens)
    before = of_a_server(machine)
    for step in live(machine, decode_tokens=96):
        now = of_a_server(machine)
        moved = {name for name, what in before.items() if now.get(name) != what}
        assert not moved, f"{moved} after: {step}"


@pytest.mark.parametrize("kind", list(KINDS))
def test_that_is_views_tables_and_states(kind: str) -> None:
    """The walk found what SGLang's backends hold on to."""
    machine = make_machine(kind, 1)
    names = of_a_server(machine)
    kinds = machine.kinds
    views = [name for name in names if ".k_buffer[" in name]
    assert len(views) >= len(kinds.full) + len(kinds.window)
    assert any(name.endswith(".req_to_token") for name in names)
    if kinds.window:
        assert any(name.endswith(".full_to_swa_index_mapping") for name in names)
    if kinds.states is not None:
        assert any(".temporal" in name for name in names)
        assert any("mamba_index_mapping" in name for name in names)


def test_nor_with_images() -> None:
    machine = ImageMachine(large_pages=600, device=DEVICE)
    before = of_a_server(machine)
    image = picture(1, 2)
    first = machine.prefill([*image, *range(30)])
    again = machine.prefill([*image, *range(20), 99])
    machine.decode([first, again])
    machine.retract(again)
    machine.finish(first)
    machine.tree.evict_until(lambda: False)
    machine.flush()
    now = of_a_server(machine)
    assert {name: now.get(name) for name in before} == before


def translation_made_anew(machine: Machine) -> None:
    table = machine.arena.translation
    table.device_table = table.device_table.clone()


def views_made_anew(machine: Machine) -> None:
    pool = machine.arena.get_kvcache().full_kv_pool
    pool.k_buffer = [view[1:] for view in pool.k_buffer]


@pytest.mark.parametrize("replace", [translation_made_anew, views_made_anew])
def test_a_tensor_that_is_replaced_is_noticed(replace: Any) -> None:
    machine = make_machine("window", 1)
    before = of_a_server(machine)
    replace(machine)
    now = of_a_server(machine)
    assert any(now.get(name) != what for name, what in before.items())
