# SPDX-License-Identifier: Apache-2.0
"""No allocation and no free path waits for the device: the host knows every slot id already.

The KV buffers, the request table and the translation table lie on a device that cannot be read
(see no_sync); whole lives of requests pass over them. On a GPU such a wait would stall the
scheduler until all queued kernels are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from image_machine import ImageMachine, picture
from lives import live
from machine import Machine, make_kinds
from no_sync import DEVICE, READ_BACK, DeviceWaits, no_device_sync
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds

W = 32
KINDS = {
    "uniform": make_kinds(),
    "window": make_kinds(window_layers=5, policy=Window(window_tokens=W)),
    "chunked": make_kinds(window_layers=3, policy=Chunked(chunk_tokens=W)),
    "states": state_kinds(),
    "window and states": state_kinds(window_layers=5, policy=Window(window_tokens=W)),
}


@pytest.fixture(autouse=True)
def device_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # SGLang's pools ask torch for the module of their device; meta has none.
    monkeypatch.setattr(torch, DEVICE, torch.cpu, raising=False)


@pytest.fixture(autouse=True)
def snapshots(published: None) -> Iterator[None]:
    with caching_strategy(LAZY):
        yield


def make_machine(
    kind: str = "window", *, page_tokens: int = 1, cached: bool = True, large_pages: int = 600
) -> Machine:
    kinds = KINDS[kind]
    return (Machine if kinds.states is None else StateMachine)(
        kinds,
        large_pages=large_pages,
        page_tokens=page_tokens,
        chunk_tokens=64,
        device=DEVICE,
        cached=cached,
    )


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_whole_life_of_requests_never_waits_for_the_device(
    kind: str, page_tokens: int, cached: bool
) -> None:
    large_pages = 600 if page_tokens == 1 else 60
    machine = make_machine(kind, page_tokens=page_tokens, cached=cached, large_pages=large_pages)
    with no_device_sync() as guard:
        steps = list(live(machine, decode_tokens=3 * W))
    assert len(steps) > 10
    assert guard.copies > 0, "slot ids did travel to the device"
    assert machine.arena.core.audit() == []


def test_requests_with_images_never_wait_for_the_device() -> None:
    machine = ImageMachine(large_pages=600, device=DEVICE)
    image = picture(1, 2)
    with no_device_sync() as guard:
        first = machine.prefill([*image, *range(30)])
        again = machine.prefill([*image, *range(20), 99])
        text = machine.prefill(range(40))
        machine.decode([first, again, text])
        machine.retract(again)
        machine.admit(again)
        machine.extend([again])
        machine.end_prefill(again)
        for req in (again, text, first):
            machine.finish(req)
        machine.tree.evict_until(lambda: False)
    assert guard.copies > 0
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


def read_back_a_slot(machine: Machine) -> None:
    machine.rows.req_to_token[0, 0].item()


def list_the_free_slots(machine: Machine) -> None:
    torch.nonzero(machine.rows.req_to_token[0])


def find_distinct_pages(machine: Machine) -> None:
    torch.unique(machine.rows.req_to_token[0])


def copy_to_the_host(machine: Machine) -> None:
    machine.rows.req_to_token[0].cpu()


def copy_and_wait(machine: Machine) -> None:
    torch.zeros(4, dtype=torch.int32).to(DEVICE)


def assign_from_the_host(machine: Machine) -> None:
    machine.rows.req_to_token[0, :4] = torch.ones(4, dtype=torch.int32)


@pytest.mark.parametrize(
    "wait",
    [
        read_back_a_slot,
        list_the_free_slots,
        find_distinct_pages,
        copy_to_the_host,
        copy_and_wait,
        assign_from_the_host,
    ],
)
def test_a_wait_planted_on_a_free_path_is_noticed(
    wait: Callable[[Machine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make_machine()
    original = HybridArenaAllocator._free_window_of

    def planted(self: HybridArenaAllocator, pages: Any) -> None:
        wait(machine)
        original(self, pages)

    monkeypatch.setattr(HybridArenaAllocator, "_free_window_of", planted)
    with pytest.raises((*READ_BACK, DeviceWaits)), no_device_sync():
        list(live(machine))


def test_a_wait_planted_on_an_allocation_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make_machine()
    original = ArenaAllocatorBase.decode

    def planted(self: ArenaAllocatorBase, rows: Any, seq_lens: Any) -> Any:
        read_back_a_slot(machine)
        return original(self, rows, seq_lens)

    monkeypatch.setattr(ArenaAllocatorBase, "decode", planted)
    with pytest.raises(READ_BACK), no_device_sync():
        list(live(machine))
