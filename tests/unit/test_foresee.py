# SPDX-License-Identifier: Apache-2.0
"""What doctor foresees of an arena is what a server says of it after the weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from built_models import kinds_of_built_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext import diagnose
from sglang_jenga.sglang_ext import setup as arena_setup
from sglang_jenga.sglang_ext.config import ARENA_SIZE


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag of the size sets a variable, which is restored after each test."""
    monkeypatch.setenv(ARENA_SIZE, "1GiB")
    monkeypatch.delenv(ARENA_SIZE)


def doctor(model: Path, *arguments: str) -> diagnose.Verdict:
    return diagnose.command_line(["--model-path", str(model), "--device", "cpu", *arguments])


def server_says(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    page_tokens: int = 1,
    context_length: int | None = None,
    max_total_tokens: int | None = None,
    budget_bytes: int = 2**33,
    chunk_tokens: int = 4096,
) -> str:
    """What sizing raises in a server that has built this model, with the stock pools' numbers."""
    from sglang.srt.runtime_context import get_context

    specs = kinds_of_built_model(model)
    window = next(s.policy for s in specs if isinstance(s.policy, Window))
    kinds = SimpleNamespace(
        specs=lambda dtype: specs, window_policy=window, states=None, cross=(), window=(1,)
    )
    stock = arena_setup.StockSplit(is_hybrid=False, window_layers=(), full_layers=())
    config = SimpleNamespace(context_len=4096, is_multimodal=False, is_encoder_decoder=False)
    config._jenga_setup = SimpleNamespace(kinds=kinds, stock=stock)
    kvc: Any = SimpleNamespace(
        model_config=config,
        mambaish_config=None,
        kv_cache_dtype=torch.float32,
        page_size=page_tokens,
        server_args=SimpleNamespace(context_length=context_length, max_mamba_cache_size=None),
        layer_info=None,
        is_hybrid_swa=False,
    )
    row = sum(spec.payload_bytes for spec in specs)
    cells = SimpleNamespace(_cell_size=row)
    monkeypatch.setattr(
        "sglang.srt.model_executor.pool_configurator.create_memory_pool_configurator",
        lambda kvc: cells,
    )

    def stock_sizes(_: Any, budget: int, *, cap_tokens: int | None) -> Any:
        tokens = budget // row if max_total_tokens is None else max_total_tokens
        if tokens // page_tokens < 1:
            raise ValueError("Increase --swa-full-tokens-ratio or the total KV budget.")
        return SimpleNamespace(max_total_num_tokens=tokens)

    fields = {
        "mem_fraction_static": 0.5,
        "max_total_tokens": max_total_tokens,
        "chunked_prefill_size": chunk_tokens,
        "device": "cpu",
    }
    with get_context().override_server_args(**fields), pytest.raises(ConfigError) as caught:
        arena_setup.size_arena(stock_sizes, kvc, budget_bytes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("size", "flags", "numbers"),
    [
        ("10", [], {}),
        ("20000", ["--page-size", "16"], {"page_tokens": 16}),
        ("1MiB", ["--context-length", "4096"], {"context_length": 4096}),
        ("8MiB", ["--page-size", "2048"], {"page_tokens": 2048}),
        (
            "64MiB",
            ["--page-size", "100000", "--chunked-prefill-size=-1"],
            {"page_tokens": 100000, "chunk_tokens": -1},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_arena_that_is_too_small_is_refused_in_the_servers_words(
    size: str,
    flags: list[str],
    numbers: dict[str, int],
    tiny_gemma3: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ARENA_SIZE, size)
    said = server_says(tiny_gemma3, monkeypatch, **numbers)
    assert doctor(tiny_gemma3, *flags, "--jenga-arena-size", size).problems == (said,)
    assert "Raise --jenga-arena-size (SGLANG_JENGA_ARENA_SIZE)" in said
    assert "--mem-fraction-static" not in said and "--max-total-tokens" not in said


def test_a_model_s_own_longest_request_need_not_fit(tiny_gemma3: Path) -> None:
    """Nobody asked for it: longer requests are refused one by one, and the boot log warns."""
    verdict = doctor(tiny_gemma3, "--dtype", "float32", "--jenga-arena-size", "1MiB")
    assert not verdict.problems
    assert verdict.arena.endswith("1.00 MiB, requests of up to 685 tokens")


def test_a_size_beyond_the_machine_is_refused_by_both(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARENA_SIZE, "900TiB")
    by_server = server_says(tiny_gemma3, monkeypatch)
    (by_doctor,) = doctor(tiny_gemma3, "--jenga-arena-size", "900TiB").problems
    for said in (by_server, by_doctor):
        assert said.startswith("--jenga-arena-size (SGLANG_JENGA_ARENA_SIZE) asks for 921,600.00")
        assert "left after the weights under --mem-fraction-static 0.5: lower the size" in said


@pytest.mark.parametrize(
    ("flags", "numbers", "decided"),
    [
        (
            ["--max-total-tokens", "5", "--page-size", "1024"],
            {"max_total_tokens": 5, "page_tokens": 1024},
            "Raise --max-total-tokens (value 5)",
        ),
        (
            ["--max-total-tokens", "500", "--context-length", "4096"],
            {"max_total_tokens": 500, "context_length": 4096},
            "Raise --max-total-tokens (value 500)",
        ),
    ],
    ids=["pages", "length"],
)
def test_advice_names_the_flag_that_decided(
    flags: list[str],
    numbers: dict[str, int],
    decided: str,
    tiny_gemma3: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_server = server_says(tiny_gemma3, monkeypatch, **numbers)
    (by_doctor,) = doctor(tiny_gemma3, *flags).problems
    for said in (by_server, by_doctor):
        assert decided in said
        assert "--swa-full-tokens-ratio" not in said and "--mem-fraction-static" not in said


def test_a_small_share_of_the_memory_is_named(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for few in (100, 20_000):
        said = server_says(tiny_gemma3, monkeypatch, budget_bytes=few, context_length=4096)
        assert "Raise --mem-fraction-static (value 0.5)" in said
        assert "--swa-full-tokens-ratio" not in said and "--max-total-tokens" not in said


def test_windows_and_a_backend_that_reads_them_wrongly_are_foreseen(tiny_gemma3: Path) -> None:
    (said,) = doctor(tiny_gemma3, "--attention-backend", "torch_native").problems
    assert "it would read sliding windows wrongly" in said


def test_a_model_that_cannot_be_planned_is_left_to_the_server(
    tiny_gemma3: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_gemma3 / "config.json").read_text())
    for file in tiny_gemma3.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]})
    )
    verdict = doctor(tmp_path, "--json-model-override-args", '{"max_position_embeddings": 512}')
    assert not verdict.problems and "changes the model" in verdict.arena


def test_ranks_without_cores_and_attention_replicas_are_said_first(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.srt.utils.common.get_cpu_ids_by_node", lambda: ["0,1"])
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND", raising=False)
    for flags in (["--tp-size", "3"], ["--dp-size", "2"]):
        (said,) = doctor(tiny_gemma3, *flags).problems
        assert "ranks, each of which needs cores of its own" in said
    replicas = ["--enable-dp-attention", "--tp-size", "2", "--dp-size", "2"]
    (said,) = doctor(tiny_gemma3, *replicas).problems
    assert "attention data parallelism" in said and "does not run on a plain CPU" in said
