# SPDX-License-Identifier: Apache-2.0
"""The hook table is true of the installed SGLang, and says so when it is not."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.runtime_context import get_context

from machine import Machine, make_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext import hooks, plugin
from sglang_jenga.sglang_ext.hook_table import HOOKS, Hook

WRAPPED = [hook for hook in HOOKS if hook.kind != "uses"]


def test_every_symbol_is_where_the_table_says_with_the_parameters_we_use() -> None:
    assert hooks.check_symbols() == []


def test_every_hook_is_in_place_once_sglang_has_loaded_its_plugins() -> None:
    assert hooks.check_applied() == []
    hooks.require_intact()


def test_the_table_explains_each_hook_and_names_no_symbol_twice() -> None:
    assert len({hook.target for hook in HOOKS}) == len(HOOKS)
    for hook in HOOKS:
        assert hook.reason and hook.upstream and hook.kind in ("after", "around", "uses")


def with_table(monkeypatch: pytest.MonkeyPatch, *rows: Hook) -> None:
    monkeypatch.setattr(hooks, "HOOKS", rows)


def some_hook(**changes: Any) -> Hook:
    return replace(WRAPPED[0], **changes)


def test_a_symbol_that_was_renamed_is_reported_with_what_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = some_hook(target=WRAPPED[0].target + "_renamed", reason="do something")
    with_table(monkeypatch, gone)
    (problem,) = hooks.check_symbols()
    assert gone.target in problem and "is missing" in problem and "do something" in problem


def test_a_module_that_was_removed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with_table(monkeypatch, some_hook(target="sglang.srt.no_such_module.function"))
    (problem,) = hooks.check_symbols()
    assert "is missing" in problem


def test_a_parameter_that_was_renamed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with_table(monkeypatch, some_hook(parameters=("self", "nonsense")))
    (problem,) = hooks.check_symbols()
    assert "has no parameter nonsense (it has self" in problem


def test_another_release_of_sglang_is_reported_with_the_one_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks, "SUPPORTED_SGLANG", ("0.0.1",))
    problem = hooks.check_symbols()[0]
    assert "pip install sglang==0.0.1" in problem


@pytest.mark.parametrize("hook", WRAPPED, ids=lambda hook: hook.target.rsplit(".", 1)[1])
def test_a_hook_that_sglang_failed_to_apply_stops_the_server(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang only logs such a failure, and would go on with pools of its own."""
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {hook.target})
    with pytest.raises(ConfigError, match="cannot attach") as caught:
        hooks.require_intact()
    assert f"{hook.target} is not hooked" in str(caught.value)


def test_table_and_wrappers_must_match() -> None:
    with pytest.raises(ConfigError, match="hook table and wrappers differ"):
        hooks.register({})


def test_the_plugin_loads_once_however_often_it_is_asked() -> None:
    registered = {target: len(hooks) for target, hooks in HookRegistry._hooks.items()}
    plugin.load()
    assert {target: len(hooks) for target, hooks in HookRegistry._hooks.items()} == registered


# ---- a server without the backend is untouched -------------------------------------------------


class Originals:
    """Stands for SGLang's functions: records the call, returns a marker."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((args, kwargs))
        return "stock"


@pytest.fixture
def stock_server(published: None) -> Any:
    with get_context().override_server_args(radix_cache_backend=None, device="cpu"):
        assert not plugin.is_active()
        yield


@pytest.mark.usefixtures("stock_server")
@pytest.mark.parametrize("name", ["_load_model", "_config_from_budget", "_init_pools"])
def test_without_the_backend_pools_are_sglangs_own(name: str) -> None:
    original = Originals()
    subject = SimpleNamespace(is_draft_worker=False)
    arguments: tuple[Any, ...] = (subject, 123) if "budget" in name else (subject,)
    assert getattr(plugin, name)(original, *arguments) == "stock"
    assert original.calls == [(arguments, {})]


@pytest.mark.parametrize("name", ["_config_from_budget", "_init_pools"])
def test_a_draft_model_keeps_sglangs_pools(name: str) -> None:
    original = Originals()
    subject = SimpleNamespace(is_draft_worker=True)
    arguments: tuple[Any, ...] = (subject, 123) if "budget" in name else (subject,)
    assert plugin.is_active() and getattr(plugin, name)(original, *arguments) == "stock"


def test_reports_and_retraction_leave_other_allocators_alone() -> None:
    other = SimpleNamespace(token_to_kv_pool_allocator=object())
    state: dict[str, Any] = {}
    assert plugin._add_memory_usage(None, SimpleNamespace(scheduler=other), state) is None
    assert state == {}
    result = ([], 0.5, ["aborted"])
    assert plugin._retract_decode(result, other) is result


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ({"dp_rank": None, "attn_dp_size": 1, "attn_dp_rank": 0}, 0),
        ({"dp_rank": 1, "attn_dp_size": 1, "attn_dp_rank": 0}, 1),
        ({"dp_rank": None, "attn_dp_size": 4, "attn_dp_rank": 3}, 3),
    ],
)
def test_a_snapshot_names_its_data_parallel_rank(
    ranks: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(make_kinds(), large_pages=20)
    scheduler = SimpleNamespace(
        token_to_kv_pool_allocator=machine.arena,
        tree_cache=machine.tree,
        waiting_queue=[],
        max_running_requests=8,
    )
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: SimpleNamespace(**ranks))
    state: dict[str, Any] = {}
    plugin._add_memory_usage(None, SimpleNamespace(scheduler=scheduler), state)
    assert state["jenga"]["dp_rank"] == expected and state["jenga"]["kinds"]


def test_decode_falls_back_to_sglangs_own_for_another_models_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sglang.srt.mem_cache import allocation

    from sglang_jenga.sglang_ext import decode

    original = Originals()
    monkeypatch.setattr(allocation, "alloc_for_decode_default", original)
    batch: Any = SimpleNamespace(token_to_kv_pool_allocator=object())
    assert decode.alloc_for_decode(batch, 1) == "stock"
    assert original.calls == [((batch, 1), {})]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target.rsplit(".", 1)[1])
def test_targets_resolve_to_something_callable_or_a_table(hook: Hook) -> None:
    symbol = pkgutil.resolve_name(hook.target)
    assert callable(symbol) or isinstance(symbol, dict)
