# SPDX-License-Identifier: Apache-2.0
"""What Jenga does not serve is refused at start: flag, value, reason, alternative.

Real server arguments of a real (tiny) checkpoint are parsed and resolved in this process, as
``sglang.launch_server`` does before it starts anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups.overrides import declare_resolution
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs, prepare_server_args
from sink_window.policy import SinkWindow

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kernels import ATTENTION_BACKENDS
from sglang_jenga.core.policies import Chunked, Window
from sglang_jenga.sglang_ext import diagnose, plugin
from sglang_jenga.sglang_ext.config import ARENA_SIZE, REFERENCE_ATTENTION
from sglang_jenga.sglang_ext.refusal import Refusal
from sglang_jenga.sglang_ext.refusal_table import (
    CHUNKED_BACKENDS,
    OWN_POLICY_BACKENDS,
    REFUSALS,
    UNTRANSLATED_BACKEND,
)
from sglang_jenga.sglang_ext.refusals import check_backends, check_early, check_resolved

ROWS = pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row.flag)


def resolve(model: Path, *arguments: str, backend: str | None = "jenga") -> ServerArgs:
    chosen = ["--radix-cache-backend", backend] if backend else []
    server_args = prepare_server_args(
        ["--model-path", str(model), "--device", "cpu", *chosen, *arguments]
    )
    server_args.resolve_once()
    return server_args


def written(row: Refusal, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The row's feature switched on the way a user does it; the command line it takes."""
    if row.is_environment:
        monkeypatch.setenv(row.flag, row.example)
        return []
    return [row.flag, row.example] if row.example else [row.flag]


def test_a_plain_command_line_is_accepted(tiny_gemma3: Path) -> None:
    server_args = resolve(tiny_gemma3)
    check_resolved(server_args)


@ROWS
def test_the_feature_is_refused_with_flag_value_reason_and_alternative(
    row: Refusal, tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = written(row, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        resolve(tiny_gemma3, *arguments)
    said = str(caught.value).splitlines()
    (line,) = [line for line in said if line.startswith(row.flag + " ")]
    assert row.reason in line and row.alternative in line
    value = row.value_in(SimpleNamespace(**{row.field: value_of(row)}))
    assert f"(value {value!r})" in line or f"(value {value:.1f})" in line
    doctor = diagnose.command_line(
        ["--model-path", str(tiny_gemma3), "--device", "cpu", *arguments]
    )
    assert [*doctor.problems] == said
    assert line in diagnose.command_line(arguments).problems, "nor does it need the model"


def value_of(row: Refusal) -> Any:
    """The example as SGLang parses it."""
    if not row.example:
        return True
    return int(row.example) if row.example.lstrip("-").isdigit() else row.example


@ROWS
def test_sglang_has_the_field_of_each_row(row: Refusal) -> None:
    if row.is_environment:
        assert hasattr(envs, row.field) and row.field == row.flag
    else:
        assert row.field in ServerArgs.__struct_fields__
        assert row.flag == "--" + row.field.replace("_", "-")


@ROWS
def test_the_default_is_not_refused(row: Refusal) -> None:
    defaults = ServerArgs(model_path="dummy")
    assert not row.refuses(row.value_in(defaults))


@pytest.mark.parametrize(
    "row", [row for row in REFUSALS if not row.is_environment], ids=lambda row: row.flag
)
def test_a_feature_that_sglang_switches_on_by_itself_is_refused_too(
    row: Refusal, tiny_gemma3: Path
) -> None:
    server_args = resolve(tiny_gemma3)
    declare_resolution(server_args, "test", **{row.field: value_of(row)})
    if row.explicit_only:
        check_resolved(server_args)
    else:
        with pytest.raises(ConfigError, match=row.flag):
            check_resolved(server_args)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--page-size", "7"], "--page-size 7 does not divide --chunked-prefill-size"),
        (["--page-size", "100000"], "--page-size 100000 does not divide --chunked-prefill-size"),
        (["--page-size", "16", "--chunked-prefill-size", "40"], "16 does not divide"),
        (["--mem-fraction-static", "0"], "it is the share of the device's memory"),
        (["--mem-fraction-static=-0.5"], "it is the share of the device's memory"),
        (["--mem-fraction-static", "nan"], "it is the share of the device's memory"),
        (["--page-size=-1"], "a page holds at least one token"),
        (["--max-total-tokens=-5"], "those would hold nothing"),
        (["--jenga-arena-size", ""], "(flag --jenga-arena-size) is set to '': write a size"),
        (["--jenga-arena-size", " \t"], "is set to ' \\t': write a size"),
        (["--jenga-arena-size", "9" * 320], "is not a size"),
        (["--jenga-arena-size", "9" * 25], "which no machine has"),
        (["--jenga-arena-size=-1"], "is not a size"),
        (["--jenga-arena-size", "nan"], "is not a size"),
        (["--jenga-arena-size", "1e9"], "is not a size"),
        (["--jenga-arena-size", "3 parsecs"], "is not a size"),
        (["--jenga-arena-size", "\x1b[2J"], "'\\x1b[2J' is not a size"),
        (["--jenga-arena-size", "0"], "is zero"),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) else None,
)
def test_a_value_that_no_arena_can_be_cut_by_is_refused_and_doctor_says_the_same(
    arguments: list[str], says: str, tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARENA_SIZE, "1GiB")  # restored afterwards
    with pytest.raises(ConfigError) as caught:
        resolve(tiny_gemma3, *arguments)
    said = str(caught.value)
    assert says in said and said.isprintable() and len(said) < 400
    written = ["--model-path", str(tiny_gemma3), "--device", "cpu", *arguments]
    assert diagnose.command_line(written).problems == tuple(said.splitlines())


@pytest.mark.parametrize("backend", [None, "another"])
def test_an_arena_size_without_the_backend_is_refused(
    backend: str | None, tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ARENA_SIZE, raising=False)
    with pytest.raises(ConfigError, match=r"--jenga-arena-size \(value '1GiB'\) is for"):
        resolve(tiny_gemma3, "--jenga-arena-size", "1GiB", backend=backend)
    assert ARENA_SIZE not in os.environ


def test_variables_that_a_stock_server_does_not_read_are_warned_of(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ARENA_SIZE, "1GiB")
    monkeypatch.setenv(REFERENCE_ATTENTION, "banana")
    monkeypatch.setattr(plugin.logger, "handlers", [caplog.handler])
    resolve(tiny_gemma3, backend=None)
    assert "SGLANG_JENGA_ARENA_SIZE='1GiB' does nothing" in caplog.text
    assert "SGLANG_JENGA_REFERENCE_ATTENTION='banana' is not a switch" in caplog.text
    with pytest.raises(ConfigError, match="REFERENCE_ATTENTION='banana' is not a switch"):
        resolve(tiny_gemma3)


def test_all_problems_are_named_at_once(tiny_gemma3: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(tiny_gemma3, "--enable-memory-saver", "--enable-hierarchical-cache")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert any("--enable-memory-saver" in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [["--enable-memory-saver"], ["--radix-eviction-policy", "lfu"], ["--enable-pdmux"]],
    ids=lambda arguments: arguments[0],
)
def test_without_the_backend_nothing_is_refused(arguments: list[str], tiny_gemma3: Path) -> None:
    resolve(tiny_gemma3, *arguments, backend=None)


def test_malformed_settings_are_refused_before_anything_starts(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_JENGA_ARENA_SIZE", "much")
    with pytest.raises(ConfigError, match="SGLANG_JENGA_ARENA_SIZE='much' is not a size"):
        resolve(tiny_gemma3)


def test_the_flag_of_the_arena_size_reaches_the_settings(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_JENGA_ARENA_SIZE", "")  # restored afterwards
    with pytest.raises(ConfigError, match="'many' is not a size"):
        resolve(tiny_gemma3, "--jenga-arena-size", "many")


def test_a_renamed_field_is_an_error_and_not_a_silent_pass() -> None:
    with pytest.raises(AttributeError):
        check_early(SimpleNamespace())


# ---- after the model is built ------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*ATTENTION_BACKENDS, UNTRANSLATED_BACKEND])
def test_a_model_without_windows_takes_every_accepted_backend(backend: str) -> None:
    check_backends([backend, None], None)


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_windows_need_a_backend_that_translates_slots(backend: str) -> None:
    check_backends([backend, backend], Window(window_tokens=8))
    with pytest.raises(ConfigError, match=r"torch_native .*it would read sliding windows wrongly"):
        check_backends([backend, UNTRANSLATED_BACKEND], Window(window_tokens=8))


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_chunked_layers_need_a_backend_that_computes_chunks(backend: str) -> None:
    if backend in CHUNKED_BACKENDS:
        check_backends([backend], Chunked(chunk_tokens=8))
    else:
        with pytest.raises(ConfigError, match="chunked-local attention wrongly"):
            check_backends([backend], Chunked(chunk_tokens=8))


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_a_policy_of_the_models_own_needs_a_backend_that_asks_for_it(backend: str) -> None:
    sinks = SinkWindow(sink_tokens=2, window_tokens=8)
    if backend in OWN_POLICY_BACKENDS:
        check_backends([backend], sinks)
    else:
        with pytest.raises(ConfigError, match=r"sink_window\(2, 8\) wrongly.*one of jenga_ref"):
            check_backends([backend], sinks)


# ---- requests ----------------------------------------------------------------------------------


def test_a_beam_search_request_is_answered_with_the_reason() -> None:
    from machine import Machine, make_kinds

    machine = Machine(make_kinds(), large_pages=20)
    coordinator = SimpleNamespace(token_to_kv_pool_allocator=machine.arena)
    answer = plugin._validate_beam(lambda *args: "stock", coordinator, None, None)
    assert "Beam search is not supported with --radix-cache-backend jenga" in str(answer)
    coordinator.token_to_kv_pool_allocator = object()
    assert plugin._validate_beam(lambda *args: "stock", coordinator, None, None) == "stock"
