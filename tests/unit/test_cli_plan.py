# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga plan``, as a user runs it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sglang_jenga
from sglang_jenga.cli.__main__ import main
from sglang_jenga.core.capacity import requests_that_fit
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import read_model
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.sizes import parse_size

MANAGERS = ["jenga", "sglang-static", "sglang-unified", "vllm", "all-full", "gcd", "max"]
GIB = 2**30
SOURCE = str(Path(sglang_jenga.__file__).parents[1])


def plan(capsys: Any, *args: str) -> dict[str, Any]:
    assert main(["plan", *args, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: Any, *args: str) -> str:
    assert main(["plan", *args]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sglang-jenga plan: ")
    return str(err)


# ---- JSON ----------------------------------------------------------------------------------------


def test_the_json_has_the_fields_of_schema_1(capsys: Any) -> None:
    found = plan(capsys, "gemma3-27b", "--kv", "40GiB")
    assert found["schema"] == 1 and found["model"] == "gemma3-27b"
    full, window = found["kinds"]
    assert (full["name"], full["kind"], full["layers"]) == ("full", "full", 10)
    assert (full["slot_bytes"], full["slots_per_large_page"]) == (81920, 26)
    assert (window["slot_bytes"], window["slots_per_large_page"]) == (425984, 5)
    assert window["window"] == 1023 and "window" not in full
    assert found["large_page_bytes"] == 2129920 and found["padding_bytes_per_large_page"] == 0
    assert found["num_large_pages"] == 40 * GIB // 2129920
    assert found["arena_bytes"] == found["num_large_pages"] * 2129920
    assert [row["manager"] for row in found["capacity"]] == MANAGERS
    for row in found["capacity"]:
        assert row["prompt_tokens"] == 4096 and row["output_tokens"] == 512
        assert isinstance(row["requests"], int) and 0 <= row["waste"] < 1
    assert found["command"].startswith("sglang serve --model-path google/gemma-3-27b-it ")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arena_is_the_planners_own(name: str, capsys: Any) -> None:
    found = plan(capsys, name, "--kv", "24GiB")
    own = plan_arena(read_model(PUBLISHED[name].config).specs, arena_bytes=24 * GIB)
    assert found["num_large_pages"] == own.num_large_pages
    assert found["large_page_bytes"] == own.large_page_bytes
    assert [k["slot_bytes"] for k in found["kinds"]] == [k.slot_bytes for k in own.kinds]


def test_jengas_requests_are_those_of_the_capacity_functions(capsys: Any) -> None:
    """gpt-oss slides 8 tokens at a time: a sixteenth of its window, in whole large pages."""
    args = ("gpt-oss-20b", "--kv", "8GiB", "--prompt-tokens", "8000", "--output-tokens", "500")
    found = plan(capsys, *args)
    own = plan_arena(read_model(PUBLISHED["gpt-oss-20b"].config).specs, arena_bytes=8 * GIB)
    least = requests_that_fit(own, 8000, 500, chunk_tokens=8000, slide_tokens=128)
    most = requests_that_fit(own, 8000, 500, chunk_tokens=8000)
    assert least <= found["capacity"][0]["requests"] <= most


# ---- budget and command --------------------------------------------------------------------------


def test_given_bytes_go_into_the_command_as_they_are(capsys: Any) -> None:
    for size in ("40GiB", "1536MiB", "1234567890"):
        words = plan(capsys, "gpt-oss-20b", "--kv", size)["command"].split()
        given = words[words.index("--jenga-arena-size") + 1]
        assert parse_size(given, name="x") == parse_size(size, name="x")


def test_memory_is_what_weights_leave(capsys: Any) -> None:
    found = plan(
        capsys, "gpt-oss-20b", "--memory", "24GiB", "--weights", "13GiB",
        "--mem-fraction-static", "0.9",
    )  # fmt: skip
    left = int(24 * GIB * 0.9) - 13 * GIB
    assert left - found["large_page_bytes"] < found["arena_bytes"] <= left
    assert "24.00 GiB * 0.9" in found["budget"] and "13.00 GiB" in found["budget"]
    assert "--mem-fraction-static 0.9" in found["command"]
    assert "--jenga-arena-size" not in found["command"]


def test_without_a_budget_a_usual_gpu_is_assumed_and_said(capsys: Any) -> None:
    assert "80.00 GiB * 0.85" in plan(capsys, "gemma3-12b")["budget"]


def test_flags_reach_the_command(capsys: Any) -> None:
    command = plan(
        capsys, "qwen3-next-80b", "--memory", "80GiB", "--tp", "4", "--page-size", "64",
        "--kv-cache-dtype", "fp8_e4m3", "--chunked-prefill-size", "4096", "--dtype", "bfloat16",
    )["command"]  # fmt: skip
    for flag in (
        "--tp 4",
        "--page-size 64",
        "--kv-cache-dtype fp8_e4m3",
        "--chunked-prefill-size 4096",
        "--dtype bfloat16",
        "--mamba-ssm-dtype bfloat16",
        "--radix-cache-backend jenga",
    ):
        assert f" {flag}" in command, flag


def test_a_variable_stands_before_the_command(capsys: Any) -> None:
    found = plan(capsys, "qwen3-next-80b", "--kv", "9GiB", "--mamba-conv-dtype", "float32")
    assert found["command"].startswith("SGLANG_MAMBA_CONV_DTYPE=float32 sglang serve ")


def test_every_flag_of_a_command_is_one_that_sglang_takes(capsys: Any) -> None:
    import argparse

    from sglang.srt.server_args import ServerArgs

    from sglang_jenga.sglang_ext.config import add_flags

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    if "--jenga-arena-size" not in parser._option_string_actions:
        add_flags(parser)
    for name in PUBLISHED:
        for budget in (("--kv", "30GiB"), ("--memory", "141GiB", "--tp", "2")):
            multimodal = ("--enable-multimodal",) if name.startswith("gemma3") else ()
            words = plan(capsys, name, *budget, *multimodal)["command"].split()
            args = parser.parse_args(words[2:])
            assert args.radix_cache_backend == "jenga"


def test_a_draft_model_is_planned_and_said_to_be_refused(capsys: Any) -> None:
    alone = plan(capsys, "llama31-8b", "--kv", "20GiB")
    both = plan(capsys, "llama31-8b", "--kv", "20GiB", "--draft", "qwen3-8b")
    assert [kind["name"] for kind in both["kinds"]] == ["full", "draft:full"]
    assert both["capacity"][0]["requests"] < alone["capacity"][0]["requests"]
    assert any("refuses speculation today" in note for note in both["notes"])


# ---- terminal ------------------------------------------------------------------------------------


def test_people_get_tables_definitions_and_the_command(capsys: Any) -> None:
    assert main(["plan", "gpt-oss-20b", "--kv", "8GiB"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    assert "window(127)" in out and "partial, worst" in out
    assert "waste = 1 - needed / held" in out and "used  = needed / all bytes" in out
    assert "--swa-full-tokens-ratio 0.8 is the default" in out
    assert [line.split()[0] for line in out.splitlines() if " x  " in line] == MANAGERS
    assert out.splitlines()[-1].startswith("launch: sglang serve ")


def test_a_request_that_is_too_long_is_said(capsys: Any) -> None:
    found = plan(capsys, "llama31-8b", "--kv", "1GiB", "--prompt-tokens", "9000")
    assert found["capacity"][0]["requests"] == 0
    assert any("a request of 9,512 tokens is refused" in note for note in found["notes"])


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("gemma99", "--kv", "1GiB"), "none of the"),
        (("llama31-8b", "--kv", "100KiB"), "too small"),
        (("llama31-8b", "--memory", "16GiB"), "raise --tp or --memory"),
        (("llama31-8b", "--memory", "16GiB", "--mem-fraction-static", "2"), "not in (0, 1]"),
        (("llama31-8b", "--kv", "1GiB", "--tp", "3"), "does not split over --tp 3"),
        (("llama31-8b", "--kv", "1GiB", "--image-tokens", "5"), "count them in --prompt-tokens"),
        (("llama32-11b-vision", "--kv", "9GiB", "--page-size", "16"), "--page-size 1 only"),
    ],
)
def test_what_cannot_be_planned_is_said_on_standard_error(
    args: tuple[str, ...], message: str, capsys: Any
) -> None:
    assert message in refused(capsys, *args)


def test_unknown_weights_are_asked_for(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED["llama31-8b"].config))
    assert "Give --weights SIZE, or --kv SIZE" in refused(capsys, str(path), "--memory", "80GiB")
    assert plan(capsys, str(path), "--memory", "80GiB", "--weights", "16GiB")["num_large_pages"]


def test_a_command_line_that_makes_no_sense_exits_with_2(capsys: Any) -> None:
    for argv in (
        ["plan"],
        ["plan", "x", "--kv", "1GiB", "--memory", "2GiB"],
        ["plan", "x", "--kv", "much"],
        ["plan", "x", "--tp", "0"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
    capsys.readouterr()


# ---- kernels -------------------------------------------------------------------------------------


def test_a_backend_that_would_not_serve_the_plan_on_a_gpu_is_refused(capsys: Any) -> None:
    words = ("gemma2-9b", "--kv", "40GiB", "--attention-backend", "fa4")
    said = refused(capsys, *words, "--gpu", "sm90")
    assert "--attention-backend fa4 does not work" in said and "(sm90)" in said
    notes = plan(capsys, *words)["notes"]
    assert len([note for note in notes if note.startswith("refused on sm")]) == 2 * 4
    served = plan(capsys, "llama31-8b", "--kv", "40GiB", "--attention-backend", "fa4")
    assert not served["notes"] and "--attention-backend fa4" in served["command"]


def test_what_a_backend_copies_is_noted_with_its_bytes(capsys: Any) -> None:
    words = ("llama31-8b", "--kv", "40GiB", "--page-size", "16")
    notes = plan(capsys, *words, "--attention-backend", "trtllm_mha", "--gpu", "sm90")["notes"]
    assert ["4,096 B per token" in note for note in notes] == [True]


def test_a_gpu_without_a_backend_is_refused(capsys: Any) -> None:
    said = refused(capsys, "llama31-8b", "--kv", "40GiB", "--gpu", "sm90")
    assert "--gpu sm90 is for --attention-backend" in said


def test_states_beyond_what_their_kernels_reach_are_noted_where_they_are(
    tmp_path: Path, capsys: Any
) -> None:
    """Short convolutions multiply in 32 bits: an arena of 6 GiB is served, one of 12 is not."""
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "torch_dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "vocab_size": 65536,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert not plan(capsys, str(path), "--kv", "6GiB")["notes"]
    (note,) = plan(capsys, str(path), "--kv", "12GiB")["notes"]
    assert "refused on a GPU" in note and "multiplies slot id and stride in 32 bits" in note


# ---- speed and purity ----------------------------------------------------------------------------


def test_it_answers_in_under_300_ms_without_a_tensor_library() -> None:
    """Seconds of the processor: the machine may be busy with other tests."""
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "from sglang_jenga.cli.__main__ import main\n"
        "assert main(['plan', 'gemma3-27b', '--kv', '40GiB']) == 0\n"
        "found = {'torch', 'sglang', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not found, found"
    )
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.3, took
