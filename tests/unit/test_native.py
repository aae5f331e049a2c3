# SPDX-License-Identifier: Apache-2.0
"""Seams of SGLang take the place of hooks where they are there, and only there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from machine import Machine, make_kinds
from patch_series.series import load
from sglang_jenga.sglang_ext import decode, hooks, native, retraction
from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase


def pretend(monkeypatch: pytest.MonkeyPatch, **seams: Any) -> None:
    """SGLang has the seams whose symbols end so, each being the given object."""
    found = {
        seam.symbol: seams[seam.symbol.rsplit(".", 1)[1]]
        for seam in native.SEAMS
        if seam.symbol.rsplit(".", 1)[1] in seams
    }
    assert len(found) == len(seams)
    monkeypatch.setattr(native, "resolved", lambda: found)


def test_the_released_sglang_has_none_of_them() -> None:
    assert native.resolved() == {}
    assert hooks.needed() == hooks.HOOKS


def test_every_seam_of_the_series_is_used_and_replaces_what_the_series_says() -> None:
    used = (patch for patch in load().patches if patch.symbols and not patch.unused)
    seams = {patch.symbols[0]: patch.removes for patch in used}
    assert {seam.symbol: seam.replaces for seam in native.SEAMS} == seams


def test_what_a_seam_replaces_is_in_the_hook_table() -> None:
    targets = {hook.target for hook in hooks.HOOKS}
    replaced = [target for seam in native.SEAMS for target in seam.replaces]
    assert len(replaced) == len(set(replaced)) and set(replaced) <= targets


def test_a_hook_that_a_seam_replaces_is_neither_checked_nor_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (seam,) = (s for s in native.SEAMS if s.symbol.endswith("register_plugin_arguments"))
    pretend(monkeypatch, register_plugin_arguments=print)
    needed = {hook.target for hook in hooks.needed()}
    assert needed == {hook.target for hook in hooks.HOOKS} - set(seam.replaces)
    monkeypatch.setattr(hooks, "HOOKS", tuple(h for h in hooks.HOOKS if h.target in seam.replaces))
    assert hooks.needed() == () and hooks.check_applied() == []


def test_what_is_registered_does_what_the_hooks_did(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, tuple[Any, ...]] = {}

    def recorder(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.__setitem__(name, arguments)

    names = [seam.symbol.rsplit(".", 1)[1] for seam in native.SEAMS if seam.attach]
    pretend(monkeypatch, **{name: recorder(name) for name in names})
    native.attach()
    assert set(calls) == set(names)
    assert calls["register_alloc_for_decode"] == (ArenaAllocatorBase, decode.alloc_for_decode)
    name, builder = calls["register_kv_pool_builder"]
    assert name == "jenga" and builder.mamba_slots_per_request(None) == 1


def test_decode_leaves_the_table_of_devices_alone_where_it_has_its_seam(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sglang.srt.mem_cache import allocation

    monkeypatch.setattr(allocation, "ALLOC_FOR_DECODE_FUNCS", {})
    pretend(monkeypatch, register_alloc_for_decode=print)
    decode.install("cpu")
    assert allocation.ALLOC_FOR_DECODE_FUNCS == {}


@pytest.mark.parametrize(
    ("message", "retracted", "aborted"),
    [(None, 1, 0), ("Out of memory even after retracting all other requests", 0, 1), ("No.", 0, 0)],
)
def test_a_retraction_is_noted_where_its_hook_is_not(
    message: str | None, retracted: int, aborted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(make_kinds(), large_pages=20)
    noted: list[tuple[Any, ...]] = []
    starvation = SimpleNamespace(note_retraction=lambda *lists: noted.append(lists))
    monkeypatch.setattr(machine.arena, "starvation", starvation)
    to_finish = None if message is None else SimpleNamespace(message=message)
    req: Any = SimpleNamespace(rid="a", to_finish=to_finish, finished=lambda: False)
    retraction.note_release(req, machine.arena)
    assert noted == []  # the hook is there and has said it

    pretend(monkeypatch, SGLANG_RETRACT_LAST_REQUEST=SimpleNamespace(set=noted.append))
    retraction.install()
    assert noted.pop() is True
    retraction.note_release(req, machine.arena)
    assert [tuple(map(len, lists)) for lists in noted] == [(retracted, 0, aborted)]


def test_the_cache_and_the_allocator_answer_the_seams_they_override() -> None:
    machine = Machine(make_kinds(), large_pages=20)
    queue: list[Any] = [SimpleNamespace(rid="a")]
    machine.tree.observe_waiting_queue(queue)
    assert machine.tree.waiting is queue
    assert machine.tree.make_embedding_cache(4096) is machine.arena.embeddings
    assert machine.arena.supports_beam_search is False


def test_only_a_scheduler_on_an_arena_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(make_kinds(), large_pages=20)
    on_arena = SimpleNamespace(
        token_to_kv_pool_allocator=machine.arena,
        tree_cache=machine.tree,
        waiting_queue=[],
        max_running_requests=8,
    )
    context = SimpleNamespace(collector=None)
    parallel = SimpleNamespace(dp_rank=0, attn_dp_size=1, attn_dp_rank=0)
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: parallel)
    other = SimpleNamespace(token_to_kv_pool_allocator=object())
    assert native.observe(other, context) is None
    observer = native.observe(on_arena, context)
    assert observer is not None
    state: dict[str, Any] = {}
    observer.add_internal_state(state)
    assert state["jenga"]["kinds"]


def test_the_builder_gives_sglangs_own_sizing_to_the_arenas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "sglang_jenga.sglang_ext.setup.size_arena",
        lambda original, kvc, budget_bytes, *, cap_tokens: original(
            kvc, budget_bytes, cap_tokens=cap_tokens
        ),
    )
    built = native.ArenaPoolBuilder().config_from_budget(
        None, 4096, 7, lambda budget_bytes, *, cap_tokens: (budget_bytes, cap_tokens)
    )
    assert built == (4096, 7)
